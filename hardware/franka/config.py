"""Settings of the Franka's back-ends."""

from __future__ import annotations

from msgspec import Struct


class FrankaRos2Config(Struct, frozen=True, kw_only=True):
    """franka_ros2 with the CRISP controllers, or a joint trajectory controller.

    namespace: of the robot's nodes. domain_id: DDS domain, -1 for the environment's. loopback_only: false to reach
    other machines. stream: `target_joint` (CRISP joint impedance), `target_pose` (CRISP Cartesian impedance) or
    `joint_trajectory`. controller: name of the trajectory controller. gripper: name of the gripper's node.
    max_state_age_s: an older state is a fault.
    """

    namespace: str = "franka_0"
    domain_id: int = -1
    loopback_only: bool = True
    stream: str = "target_joint"
    controller: str = "fr3_arm_controller"
    gripper: str = "franka_gripper"
    max_state_age_s: float = 0.1
    connect_timeout_s: float = 10.0


class FrankaFciConfig(Struct, frozen=True, kw_only=True):
    """The vendor's control interface, driven directly. host: of the robot's control unit."""

    host: str = "172.16.0.2"
    max_state_age_s: float = 0.05
    connect_timeout_s: float = 10.0
