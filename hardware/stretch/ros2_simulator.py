"""The vendor's side of a Stretch 3 in simulation: stretch_ros2's driver node, with our world behind it.

Same topics, services, modes and rates as the vendor's node at 30 Hz, and the same weaknesses: streamed targets are
held for ever, zeros mean "go to zero", nothing asks who is sending. A target that is not finite would break the
physics, so it is ignored and counted. Not simulated: the trajectory action, the gamepad's commands, IMUs; homing and
stowing move nothing and are answered when they begin. The base's dead-man counts simulated time.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from typing import Any

from hardware.sim.vendor import VendorSimulator
from hardware.stretch import ros2_names as names
from hardware.stretch.config import StretchRos2Config
from hardware.stretch.joints import ARM_SEGMENTS, JOINT_STATE_NAMES, JOINT_STATE_OF, SETPOINT_NAMES, finger_of_aperture
from hardware.stretch.limits import default_limits
from hardware.stretch.sim import SimulatedStretch
from robot_stack.core.errors import RobotError
from robot_stack.core.scene_messages import InjectFault, VendorFault
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable

logger = logging.getLogger(__name__)

RATE_HZ = 30.0
FINGERS = ("joint_gripper_finger_left", "joint_gripper_finger_right")
PROCEDURE_S = 5.0
TOOL = "eoa_wrist_dw3_tool_sg3"

_BASE_SPEED_M_S, _BASE_TURN_RAD_S = 0.12, 0.4
_NARROWED_BY = 0.1
_COMMANDABLE = (names.NAVIGATION, names.POSITION)
_SUFFERED = (
    VendorFault.NONE,
    VendorFault.LOST_PACKETS,
    VendorFault.STUCK_JOINT,
    VendorFault.RUNSTOP,
    VendorFault.FROZEN_STATE,
    VendorFault.WRONG_LIMITS,
)


class StretchRos2Simulator(VendorSimulator):
    """A `VendorSimulator`.

    Attributes:
        mode, is_homed, is_runstopped, is_streaming, battery_v: what the node publishes; tests may set them.
        ignored: counts of pose commands that were dropped, by cause.
    """

    def __init__(self, world: SimulatedStretch, config: StretchRos2Config) -> None:
        self._world = world
        self._config = config
        self._link = Ros2Link(
            names.NODE_NAME,
            config.namespace,
            domain_id=None if config.domain_id < 0 else config.domain_id,
            loopback_only=config.loopback_only,
        )
        self._limits = default_limits()
        self._fault = InjectFault(fault=VendorFault.NONE)
        self._random = random.Random(0)
        self._publishers: dict[str, Any] = {}
        self.mode = names.POSITION
        self.is_homed = True
        self.is_runstopped = False
        self.is_streaming = False
        self.battery_v = 12.8
        self.ignored = {"wrong_length": 0, "not_finite": 0, "not_streaming": 0}
        self._mode_before = names.POSITION
        self._time_s = 0.0
        self._procedure_ends_s = 0.0
        self._twist = (0.0, 0.0)
        self._twist_time_s = -math.inf
        self._increment = [0.0, 0.0]

    @property
    def world(self) -> SimulatedStretch:
        return self._world

    @property
    def period_s(self) -> float:
        return 1.0 / RATE_HZ

    # ---- life ----

    def open(self) -> None:
        self._world.connect()
        self._link.open()
        self._open_topics()
        self._open_services()

    def _open_topics(self) -> None:
        from geometry_msgs.msg import Twist
        from nav_msgs.msg import Odometry
        from sensor_msgs.msg import BatteryState, JointState
        from std_msgs.msg import Bool, Float64MultiArray, String

        node, qos = self._link.node, newest_reliable()
        types = {
            names.JOINT_STATES: JointState,
            names.JOINT_LIMITS: JointState,
            names.ODOMETRY: Odometry,
            names.BATTERY: BatteryState,
            names.MODE: String,
            names.TOOL: String,
            names.IS_HOMED: Bool,
            names.IS_RUNSTOPPED: Bool,
            names.IS_STREAMING: Bool,
        }
        self._publishers = {topic: node.create_publisher(kind, topic, qos) for topic, kind in types.items()}
        node.create_subscription(Float64MultiArray, names.POSE_COMMAND, self._take_pose, qos)
        node.create_subscription(Twist, names.COMMAND_VELOCITY, self._take_twist, qos)

    def _open_services(self) -> None:
        from std_srvs.srv import SetBool, Trigger

        triggers: dict[str, Callable[[], str]] = {
            names.SWITCH_TO_NAVIGATION: lambda: self._change_mode(names.NAVIGATION),
            names.SWITCH_TO_POSITION: lambda: self._change_mode(names.POSITION),
            names.SWITCH_TO_TRAJECTORY: lambda: self._change_mode(names.TRAJECTORY),
            names.SWITCH_TO_GAMEPAD: lambda: self._change_mode(names.GAMEPAD),
            names.ACTIVATE_STREAMING: lambda: self._set_streaming(True),
            names.DEACTIVATE_STREAMING: lambda: self._set_streaming(False),
            names.STOP_THE_ROBOT: self._stop_the_robot,
            names.HOME_THE_ROBOT: lambda: self._begin_procedure(names.HOMING),
            names.STOW_THE_ROBOT: lambda: self._begin_procedure(names.STOWING),
            names.GET_JOINT_STATES: self._publish_limits,
        }
        for name, act in triggers.items():
            self._link.node.create_service(Trigger, name, _answering(act))
        switches: dict[str, Callable[[bool], str]] = {
            names.RUNSTOP: self._set_runstop,
            names.SELF_COLLISION_AVOIDANCE: lambda on: f"self collision avoidance: {on}",
        }
        for name, switch in switches.items():
            self._link.node.create_service(SetBool, name, _answering_switch(switch))

    def close(self) -> None:
        self._link.close()
        self._world.close()

    def reset(self, seed: int) -> None:
        self._link.spin()  # targets that wait in the queue belong to the scene before
        self._world.reset(seed)
        self._stand_still()

    def _stand_still(self) -> None:
        self._twist = (0.0, 0.0)
        self._twist_time_s = -math.inf
        self._increment = [0.0, 0.0]
        self._world.command_base_velocity(0.0, 0.0)

    def inject(self, fault: InjectFault) -> None:
        if fault.fault not in _SUFFERED:
            known = ", ".join(kind.value for kind in _SUFFERED)
            raise RobotError(f"the Stretch's vendor side has no fault '{fault.fault.value}'; it has {known}")
        if fault.fault is VendorFault.RUNSTOP:
            self._set_runstop(True)
        elif self._fault.fault is VendorFault.RUNSTOP:
            self._set_runstop(False)
        self._fault = fault

    # ---- time ----

    def tick(self) -> None:
        self._link.spin()
        if self.mode in (names.HOMING, names.STOWING) and self._time_s >= self._procedure_ends_s:
            self.is_homed = self.is_homed or self.mode == names.HOMING
            self.mode = self._mode_before
        self._drive_base()
        self._world.advance(self.period_s)
        self._time_s += self.period_s
        if self._fault.fault is not VendorFault.FROZEN_STATE:
            self._publish_state()

    def _drive_base(self) -> None:
        forward, turn = 0.0, 0.0
        if self.mode == names.NAVIGATION and self._time_s - self._twist_time_s < names.BASE_TIMEOUT_S:
            forward, turn = self._twist
        elif self.mode == names.POSITION:
            forward = self._step_increment(0, _BASE_SPEED_M_S)
            turn = self._step_increment(1, _BASE_TURN_RAD_S)
        stuck = self._stuck_axis()
        blocked = self.is_runstopped
        self._world.command_base_velocity(
            0.0 if blocked or stuck == 0 else forward, 0.0 if blocked or stuck == 1 else turn
        )

    def _step_increment(self, axis: int, speed: float) -> float:
        velocity = max(-speed, min(speed, self._increment[axis] / self.period_s))
        self._increment[axis] -= velocity * self.period_s
        return velocity

    def _stuck_axis(self) -> int:
        return self._fault.axis if self._fault.fault is VendorFault.STUCK_JOINT else -1

    def _lost(self) -> bool:
        return self._fault.fault is VendorFault.LOST_PACKETS and self._random.random() < self._fault.share

    # ---- commands ----

    def _take_twist(self, message: Any) -> None:
        command = (float(message.linear.x), float(message.angular.z))
        if self.mode != names.NAVIGATION or self._lost():
            return
        if not all(math.isfinite(value) for value in command):
            self.ignored["not_finite"] += 1
            return
        self._twist, self._twist_time_s = command, self._time_s

    def _take_pose(self, message: Any) -> None:
        values = [float(value) for value in message.data]
        if self._lost():
            return
        if not self.is_streaming or self.is_runstopped or self.mode not in _COMMANDABLE:
            self.ignored["not_streaming"] += 1
        elif len(values) != names.STREAM_LENGTH:
            self.ignored["wrong_length"] += 1
            logger.error("joint_pose_cmd has %d values, %s takes %d", len(values), TOOL, names.STREAM_LENGTH)
        elif not all(math.isfinite(value) for value in values):
            self.ignored["not_finite"] += 1
        else:
            self._command(values)

    def _command(self, values: list[float]) -> None:
        stuck = self._stuck_axis()
        for name, target in names.targets_of_command(values, self._config.gripper_unit).items():
            axis = SETPOINT_NAMES.index(name)
            if axis != stuck:
                lower, upper = self._limits.lower[axis], self._limits.upper[axis]
                self._world.command_joint(name, max(lower, min(upper, target)))
        increment = values[-names.BASE_AXES :]
        if self.mode == names.POSITION and any(increment):
            if all(increment):
                logger.error("joint_pose_cmd: the base cannot translate and rotate at once in position mode")
            else:
                self._increment = increment

    # ---- services ----

    def _change_mode(self, mode: str) -> str:
        """As at the vendor, nothing forbids it while the run-stop is pressed; the motors stay off all the same."""
        self._stand_still()
        self.mode = mode
        return f"Now in {mode} mode."

    def _set_streaming(self, streaming: bool) -> str:
        self.is_streaming = streaming
        return f"streaming position: {streaming}"

    def _stop_the_robot(self) -> str:
        self._stand_still()
        for name, value in zip(SETPOINT_NAMES, self._world.measured.setpoint.tolist(), strict=True):
            if name in names.JOINT_AXES:
                self._world.command_joint(name, value)
        return "Stopped the robot."

    def _begin_procedure(self, mode: str) -> str:
        if self.mode in (names.HOMING, names.STOWING, names.RUNSTOPPED):
            raise RobotError(f"cannot begin {mode} in mode {self.mode}")
        self._stand_still()
        self._mode_before, self.mode = self.mode, mode
        self._procedure_ends_s = self._time_s + PROCEDURE_S
        return f"{mode} began"

    def _set_runstop(self, pressed: bool) -> str:
        if pressed and not self.is_runstopped:
            self._stop_the_robot()
            self._mode_before, self.mode = self.mode, names.RUNSTOPPED
        elif not pressed and self.mode == names.RUNSTOPPED:
            self.mode = self._mode_before
        self.is_runstopped = pressed
        return f"is_runstopped: {pressed}"

    # ---- state ----

    def _publish_state(self) -> None:
        from sensor_msgs.msg import BatteryState
        from std_msgs.msg import Bool, String

        self._publish(names.JOINT_STATES, self._joint_state())
        self._publish(names.ODOMETRY, self._odometry())
        self._publish(names.BATTERY, BatteryState(voltage=self.battery_v, percentage=math.nan, present=True))
        self._publish(names.MODE, String(data=self.mode))
        self._publish(names.TOOL, String(data=TOOL))
        self._publish(names.IS_HOMED, Bool(data=self.is_homed))
        self._publish(names.IS_RUNSTOPPED, Bool(data=self.is_runstopped))
        self._publish(names.IS_STREAMING, Bool(data=self.is_streaming))

    def _publish(self, topic: str, message: Any) -> None:
        if not self._lost():
            self._publishers[topic].publish(message)

    def _joint_state(self) -> Any:
        from sensor_msgs.msg import JointState

        measured = self._world.measured
        columns = zip(measured.setpoint.tolist(), measured.velocity.tolist(), measured.effort.tolist(), strict=True)
        joints = {
            JOINT_STATE_OF[axis]: values
            for axis, values in zip(SETPOINT_NAMES, columns, strict=True)
            if axis in names.JOINT_AXES
        }
        extension, extension_rate, extension_effort = joints[JOINT_STATE_OF[names.ARM_AXIS]]
        for segment in ARM_SEGMENTS:
            joints[segment] = (extension / 4, extension_rate / 4, extension_effort)
        aperture, aperture_rate, grip = joints[JOINT_STATE_OF[names.GRIPPER_AXIS]]
        for finger in FINGERS:
            joints[finger] = (finger_of_aperture(aperture), finger_of_aperture(aperture_rate), grip)
        message = JointState(name=JOINT_STATE_NAMES)
        message.header.stamp = self._link.node.get_clock().now().to_msg()
        message.position, message.velocity, message.effort = (
            [joints[name][place] for name in JOINT_STATE_NAMES] for place in range(3)
        )
        return message

    def _odometry(self) -> Any:
        from nav_msgs.msg import Odometry

        x_m, y_m, yaw_rad, forward_m_s, turn_rad_s = self._world.odometry()
        message = Odometry(child_frame_id="base_link")
        message.header.frame_id = "odom"
        message.header.stamp = self._link.node.get_clock().now().to_msg()
        message.pose.pose.position.x, message.pose.pose.position.y = x_m, y_m
        message.pose.pose.orientation.z, message.pose.pose.orientation.w = math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)
        message.twist.twist.linear.x, message.twist.twist.angular.z = forward_m_s, turn_rad_s
        return message

    def _publish_limits(self) -> str:
        from sensor_msgs.msg import JointState

        message = JointState()
        narrowed = _NARROWED_BY if self._fault.fault is VendorFault.WRONG_LIMITS else 0.0
        lowers, uppers = [], []
        for axis, joint in JOINT_STATE_OF.items():
            place = SETPOINT_NAMES.index(axis)
            lower, upper = self._limits.lower[place], self._limits.upper[place]
            margin = narrowed * (upper - lower)
            lower, upper = lower + margin, upper - margin
            if axis == names.GRIPPER_AXIS:
                lower, upper = (names.gripper_from_aperture(value, names.PERCENT) for value in (lower, upper))
            message.name.append(joint)
            lowers.append(lower)
            uppers.append(upper)
        message.position, message.velocity = lowers, uppers
        self._publish(names.JOINT_LIMITS, message)
        return "published the joint limits"


def _answering(act: Callable[[], str]) -> Callable[[Any, Any], Any]:
    """A Trigger service that does it and answers with what was done, or with why not."""

    def answer(request: Any, response: Any) -> Any:
        try:
            response.success, response.message = True, act()
        except RobotError as error:
            response.success, response.message = False, str(error)
        return response

    return answer


def _answering_switch(act: Callable[[bool], str]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, response: Any) -> Any:
        response.success, response.message = True, act(bool(request.data))
        return response

    return answer
