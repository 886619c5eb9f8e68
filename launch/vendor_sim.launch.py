"""The vendor's side of a robot, simulated, for a robot server with vendor:=simulated and a backend other than sim."""

from launch import LaunchDescription
from robot_stack.apps.launching import declared, stack_process


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config"),
            stack_process("vendor-sim"),
        ]
    )
