"""The operator's screen. Needs a release that has `robot-stack teleop`; where there is none the process ends at once
with a message that lists the commands, and is not started again."""

from launch import LaunchDescription
from robot_stack.apps.launching import declared, stack_process


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config"),
            stack_process("teleop"),
        ]
    )
