"""The robot server of one robot. It comes back inactive after it died: a person activates a real robot again."""

from launch import LaunchDescription
from robot_stack.apps.launching import declared, stack_process


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config"),
            stack_process("robot-server"),
        ]
    )
