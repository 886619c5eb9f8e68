"""The vendor's side of a Franka on ROS 2, simulated: franka_ros2's topics and a CRISP-like controller over real DDS.

What it copies: topic names, message types, best-effort state topics, queue depth 1, a target held for ever when its
sender dies, targets ignored while more than one publisher is on their topic, an order of joints that is not the arm's,
the gripper's 15 Hz, the sign of the wrench estimate, and errors that stay until somebody recovers.

What it does not: it runs at 100 Hz where the real controller and its state topics run at 1 kHz, actions and services
of franka_msgs (no such package here: the stand-ins `target_width` and `error_recovery` are ours).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits, ros2_names
from hardware.franka.config import FrankaRos2Config
from hardware.franka.gripper import SPEED_M_S
from hardware.franka.model import FINGER_JOINTS, TCP_SITE
from hardware.franka.ros2_controller import ArmController, HandController
from hardware.franka.ros2_stream import hand_kinematics, pose_message
from hardware.franka.sim import SimulatedFranka
from hardware.sim.vendor import VendorSimulator
from robot_stack.core.errors import RobotError
from robot_stack.core.scene_messages import InjectFault, VendorFault
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort, newest_reliable

FloatVector = NDArray[np.float64]

PERIOD_S = 0.01
GRIPPER_EVERY = 7

# A broadcaster promises no order of its joints.
_JOINT_ORDER = (3, 0, 1, 2, 6, 5, 4)
_NARROWED_SHARE = 0.9
# The vendor's estimates of external torque and wrench have the sign of the robot's reaction.
_VENDOR_SIGN = -1.0
_FAULTS = (
    VendorFault.NONE,
    VendorFault.LOST_PACKETS,
    VendorFault.STUCK_JOINT,
    VendorFault.REFLEX,
    VendorFault.FROZEN_STATE,
    VendorFault.WRONG_LIMITS,
)


@dataclass(frozen=True, slots=True)
class _Publishers:
    joints: Any
    wrench: Any
    torques: Any
    pose: Any
    gripper: Any
    description: Any


@dataclass(slots=True)
class _Inbox:
    """The newest message of one topic, how many were handled, and who takes it."""

    newest: Newest[Any]
    take: Callable[[Any, FloatVector], None]
    publisher_count: Callable[[], int]
    alone: bool
    handled: int = 0


class FrankaRos2Simulator(VendorSimulator):
    """A `VendorSimulator`: one node `franka_ros2` below the configured namespace, with `SimulatedFranka` behind it."""

    def __init__(self, world: SimulatedFranka, config: FrankaRos2Config) -> None:
        self._world = world
        self._config = config
        self._link = ros2_names.make_link("franka_ros2", config)
        self._fault = InjectFault(fault=VendorFault.NONE)
        self._stuck_at = 0.0
        self._rng = np.random.default_rng(0)
        self._ticks = 0
        self._kinematics = hand_kinematics()
        self._arm = ArmController(self._kinematics)
        self._hand = HandController(SPEED_M_S)
        self._publishers: _Publishers | None = None
        self._inboxes: list[_Inbox] = []

    @property
    def world(self) -> SimulatedFranka:
        return self._world

    @property
    def period_s(self) -> float:
        return PERIOD_S

    @property
    def error(self) -> str:
        """Why the arm is stopped, in words, or ''."""
        return self._arm.error

    # ---- life -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._world.connect()
        self._link.open()
        self._publishers = self._make_publishers(self._link)
        self._inboxes = self._make_inboxes(self._link)
        self._make_services(self._link)
        self._rest()
        self._publish_description()

    def _make_publishers(self, link: Ros2Link) -> _Publishers:
        from geometry_msgs.msg import PoseStamped, WrenchStamped
        from sensor_msgs.msg import JointState
        from std_msgs.msg import String

        make = link.node.create_publisher
        best_effort, reliable = newest_best_effort(), newest_reliable()
        return _Publishers(
            joints=make(JointState, ros2_names.JOINT_STATES, reliable),
            wrench=make(WrenchStamped, ros2_names.EXTERNAL_WRENCH, best_effort),
            torques=make(JointState, ros2_names.EXTERNAL_TORQUES, best_effort),
            pose=make(PoseStamped, ros2_names.CURRENT_POSE, best_effort),
            gripper=make(JointState, ros2_names.gripper_joint_states(self._config), reliable),
            description=make(String, ros2_names.ROBOT_DESCRIPTION, ros2_names.latched()),
        )

    def _make_inboxes(self, link: Ros2Link) -> list[_Inbox]:
        from geometry_msgs.msg import PoseStamped
        from sensor_msgs.msg import JointState
        from std_msgs.msg import Float64MultiArray
        from trajectory_msgs.msg import JointTrajectory

        def inbox(kind: Any, topic: str, take: Callable[[Any, FloatVector], None], alone: bool = True) -> _Inbox:
            newest: Newest[Any] = link.subscribe_newest(kind, topic, newest_reliable())
            return _Inbox(newest, take, lambda: int(link.node.count_publishers(topic)), alone)

        arm, config = self._arm, self._config
        trajectory = f"{config.controller}/{ros2_names.JOINT_TRAJECTORY}"
        return [
            inbox(JointState, ros2_names.TARGET_JOINT, arm.take_joints),
            inbox(PoseStamped, ros2_names.TARGET_POSE, arm.take_pose),
            inbox(JointTrajectory, trajectory, arm.take_trajectory, alone=False),
            inbox(Float64MultiArray, ros2_names.gripper_target(config), self._take_width, alone=False),
        ]

    def _make_services(self, link: Ros2Link) -> None:
        from std_srvs.srv import Trigger

        link.node.create_service(Trigger, ros2_names.ERROR_RECOVERY, self._recover)
        link.node.create_service(Trigger, ros2_names.gripper_stop(self._config), self._stop_hand)

    def close(self) -> None:
        self._link.close()
        self._publishers, self._inboxes = None, []
        self._world.close()

    def reset(self, seed: int) -> None:
        self._world.reset(seed)
        self._link.spin()
        for inbox in self._inboxes:
            inbox.handled = inbox.newest.count
        self._rest()

    def _rest(self) -> None:
        setpoint = self._world.measured_setpoint()
        self._arm.rest_at(setpoint[:7])
        self._hand.rest_at(float(setpoint[7]))

    # ---- faults -----------------------------------------------------------------------------------------------

    def inject(self, fault: InjectFault) -> None:
        """Begin or end a fault. An error that it caused stays until `error_recovery`, as on the robot.

        Lost packets: the share of targets that do not arrive and of samples that are not sent. Frozen state: nothing is
        sent at all. Wrong limits: a narrower robot description, for whoever connects later.
        """
        if fault.fault not in _FAULTS:
            known = ", ".join(known.value for known in _FAULTS)
            raise RobotError(f"the Franka's side cannot suffer '{fault.fault.value}'; it can: {known}")
        if not 0.0 <= fault.share <= 1.0 or not 0 <= fault.axis < 8:
            raise RobotError(f"share {fault.share:g} has to lie in [0, 1] and axis {fault.axis} in 0 to 7")
        setpoint = self._world.measured_setpoint()
        described_before = self._fault.fault is VendorFault.WRONG_LIMITS
        self._fault = fault
        self._stuck_at = float(setpoint[fault.axis])
        if fault.fault is VendorFault.REFLEX:
            self._arm.stop("cartesian_reflex", setpoint[:7])
        if described_before or fault.fault is VendorFault.WRONG_LIMITS:
            self._publish_description()

    def _lost(self) -> bool:
        return self._fault.fault is VendorFault.LOST_PACKETS and bool(self._rng.random() < self._fault.share)

    # ---- time -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self._link.spin()
        measured = self._world.measured_setpoint()[:7]
        for inbox in self._inboxes:
            self._handle(inbox, measured)
        velocities = self._world.measured().velocities_rad_s
        setpoint = np.append(self._arm.step(PERIOD_S, velocities, measured), self._hand.step(PERIOD_S))
        if self._fault.fault is VendorFault.STUCK_JOINT:
            setpoint[self._fault.axis] = self._stuck_at
        self._world.send(setpoint)
        self._world.advance(PERIOD_S)
        self._ticks += 1
        if self._fault.fault is not VendorFault.FROZEN_STATE and not self._lost():
            self._publish()

    def _handle(self, inbox: _Inbox, measured_rad: FloatVector) -> None:
        if inbox.newest.count == inbox.handled:
            return
        inbox.handled = inbox.newest.count
        if self._lost() or (inbox.alone and inbox.publisher_count() > 1):
            return
        inbox.take(inbox.newest.message, measured_rad)

    def _take_width(self, message: Any, measured_rad: FloatVector) -> None:
        self._hand.take(message)

    def _recover(self, request: Any, response: Any) -> Any:
        self._arm.recover(self._world.measured_setpoint()[:7])
        response.success, response.message = True, "recovered"
        return response

    def _stop_hand(self, request: Any, response: Any) -> Any:
        self._hand.rest_at(float(self._world.measured_setpoint()[7]))
        response.success = True
        return response

    # ---- state ------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        if self._publishers is None:
            return
        measured = self._world.measured()
        stamp = self._link.node.get_clock().now().to_msg()
        self._publish_joints(self._publishers, measured.joints_rad, measured.velocities_rad_s, stamp)
        self._publish_forces(self._publishers, stamp)
        self._publishers.pose.publish(pose_message(*self._kinematics.site_pose(TCP_SITE, measured.joints_rad), stamp))
        if self._ticks % GRIPPER_EVERY == 0:
            self._publish_gripper(self._publishers, measured.gripper_width_m, stamp)

    def _publish_joints(
        self, to: _Publishers, joints_rad: FloatVector, velocities_rad_s: FloatVector, stamp: Any
    ) -> None:
        order = list(_JOINT_ORDER)
        message = _joint_state([limits.JOINT_NAMES[index] for index in order], stamp)
        message.position, message.velocity = joints_rad[order].tolist(), velocities_rad_s[order].tolist()
        message.effort = self._world.drive_torques()[order].tolist()
        to.joints.publish(message)

    def _publish_forces(self, to: _Publishers, stamp: Any) -> None:
        from geometry_msgs.msg import WrenchStamped

        message = WrenchStamped()
        message.header.stamp, message.header.frame_id = stamp, ros2_names.BASE_FRAME
        values = (self._world.wrench_at(TCP_SITE) * _VENDOR_SIGN).tolist()
        force, moment = message.wrench.force, message.wrench.torque
        force.x, force.y, force.z, moment.x, moment.y, moment.z = values
        to.wrench.publish(message)
        torques = _joint_state(list(limits.JOINT_NAMES), stamp)
        torques.effort = (self._world.contact_torques() * _VENDOR_SIGN).tolist()
        torques.position = torques.velocity = [0.0] * 7
        to.torques.publish(torques)

    def _publish_gripper(self, to: _Publishers, width_m: float, stamp: Any) -> None:
        message = _joint_state(list(FINGER_JOINTS), stamp)
        message.position, message.velocity, message.effort = [width_m / 2] * 2, [0.0] * 2, [0.0] * 2
        to.gripper.publish(message)

    def _publish_description(self) -> None:
        from std_msgs.msg import String

        if self._publishers is not None:
            narrow = self._fault.fault is VendorFault.WRONG_LIMITS
            self._publishers.description.publish(String(data=robot_description(_NARROWED_SHARE if narrow else 0.0)))


def _joint_state(names: list[str], stamp: Any) -> Any:
    from sensor_msgs.msg import JointState

    message = JointState(name=names)
    message.header.stamp = stamp
    return message


def robot_description(share_of_rectangle: float = 0.0) -> str:
    """A minimal URDF with our full limits or, where `share_of_rectangle` > 0, with that share of the rectangle's."""
    lower, upper = np.asarray(limits.FULL_LOWER_RAD), np.asarray(limits.FULL_UPPER_RAD)
    if share_of_rectangle > 0.0:
        lower, upper = np.asarray(limits.RECTANGLE_LOWER_RAD), np.asarray(limits.RECTANGLE_UPPER_RAD)
        shrink = (upper - lower) / 2 * (1.0 - share_of_rectangle)
        lower, upper = lower + shrink, upper - shrink
    links = "".join(f'<link name="fr3_link{number}"/>' for number in range(8))
    joints = "".join(
        f'<joint name="{name}" type="revolute"><parent link="fr3_link{index}"/><child link="fr3_link{index + 1}"/>'
        f'<axis xyz="0 0 1"/><limit lower="{lower[index]:.6f}" upper="{upper[index]:.6f}" '
        f'velocity="{limits.FULL_VELOCITY_RAD_S[index]}" effort="{limits.MAX_TORQUE_NM[index]}"/></joint>'
        for index, name in enumerate(limits.JOINT_NAMES)
    )
    return f'<?xml version="1.0"?><robot name="fr3">{links}{joints}</robot>'
