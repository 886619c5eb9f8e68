"""Shows the robot to ROS 2: joint states, poses, images, diagnostics, stop services, lifecycle."""

from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription
from robot_stack.apps.launching import declared, stack_process


def generate_launch_description() -> LaunchDescription:
    namespace = ["ros2_node.namespace=", LaunchConfiguration("namespace"), "/robot_stack"]
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config", "namespace"),
            stack_process("ros2-node", more=[namespace]),
        ]
    )
