"""The operator's page. Its edges need config:="edge.operator=seat"; bringup's teleop:=true says so to its own."""

from launch import LaunchDescription
from robot_stack.apps.launching import declared, stack_process


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config"),
            stack_process("teleop"),
        ]
    )
