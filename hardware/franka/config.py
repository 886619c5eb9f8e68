"""Settings of the Franka's back-ends."""

from __future__ import annotations

from msgspec import Struct


class FrankaRos2Config(Struct, frozen=True, kw_only=True):
    """franka_ros2 with the CRISP controllers, or a joint trajectory controller.

    namespace: of the robot's nodes. domain_id: DDS domain, -1 for the environment's. loopback_only: false to reach
    other machines. stream: `target_joint` (CRISP joint impedance), `target_pose` (CRISP Cartesian impedance) or
    `joint_trajectory`. controller: name of the trajectory controller. gripper: name of the gripper's node.
    gripper_interface: `auto` takes what is there of `topic` (ours, for an adapter node), `franka_msgs`,
    `control_msgs`; a name takes that one only. max_state_age_s: an older state is a fault. limits: `rectangle`, or
    `full` for the whole range with the vendor's velocity limit that depends on the position.
    following_error_rad: a joint that is further from its target for following_time_s is a fault; standstill_error_rad:
    the same for a joint that does not move though nothing holds the arm. external_sign: of the vendor's estimates of
    external torque and wrench, which point the other way than ours; push the hand up and force_z_n must rise.
    """

    namespace: str = "franka_0"
    domain_id: int = -1
    loopback_only: bool = True
    stream: str = "target_joint"
    controller: str = "fr3_arm_controller"
    gripper: str = "franka_gripper"
    gripper_interface: str = "auto"
    max_state_age_s: float = 0.1
    connect_timeout_s: float = 10.0
    limits: str = "rectangle"
    following_error_rad: float = 0.2
    standstill_error_rad: float = 0.02
    following_time_s: float = 0.3
    external_sign: float = -1.0


class FrankaFciConfig(Struct, frozen=True, kw_only=True):
    """The vendor's control interface, driven directly. host: of the robot's control unit.

    stiffness_nm_rad: of the joint impedance, seven values; damping is critical. realtime: false to try without a
    real-time kernel. limits, external_sign: as above.
    """

    host: str = "172.16.0.2"
    max_state_age_s: float = 0.05
    connect_timeout_s: float = 10.0
    limits: str = "rectangle"
    realtime: bool = True
    stiffness_nm_rad: tuple[float, ...] = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
    external_sign: float = -1.0
