"""The learner: stores the steps, improves the policy, publishes weights."""

from launch import LaunchDescription
from robot_stack.apps.launching import declared, stack_process


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config"),
            stack_process("learner"),
        ]
    )
