"""The edge node: runs the run's policy on the robot, records every step and ships it to the learner."""

from launch import LaunchDescription
from robot_stack.apps.launching import declared, stack_process


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config"),
            stack_process("edge"),
        ]
    )
