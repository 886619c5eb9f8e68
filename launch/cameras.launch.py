"""One process per camera, so that a camera that hangs can be killed alone."""

from launch import LaunchDescription
from robot_stack.apps.launching import camera_processes, declared


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config", "cameras"),
            camera_processes(),
        ]
    )
