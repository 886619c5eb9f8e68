"""Everything of one robot. By default: the simulated Franka, its robot server, and the ROS 2 node; nothing moves.

ros2 launch robot_stack bringup.launch.py robot:=franka backend:=ros2 vendor:=simulated
"""

from pathlib import Path

from launch import LaunchDescription
from robot_stack.apps.launching import declared, included, switched_on, vendor_is_simulated

FOLDER = Path(__file__).resolve().parent


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *declared("robot", "backend", "vendor", "task", "run", "port_base", "config", "namespace", "cameras"),
            *declared("ros2_node", "edge", "learner", "teleop"),
            included(FOLDER / "vendor_sim.launch.py", vendor_is_simulated()),
            included(FOLDER / "robot_server.launch.py"),
            included(FOLDER / "cameras.launch.py"),
            included(FOLDER / "ros2_node.launch.py", switched_on("ros2_node")),
            included(FOLDER / "learner.launch.py", switched_on("learner")),
            included(FOLDER / "edge.launch.py", switched_on("edge")),
            included(FOLDER / "teleop.launch.py", switched_on("teleop")),
        ]
    )
