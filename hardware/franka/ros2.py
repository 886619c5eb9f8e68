"""The Franka through franka_ros2: targets at the tick rate to a controller that runs at 1 kHz on the robot PC.

State comes from standard messages (joint states, external wrench, gripper joint states), targets go to a CRISP
controller or a joint trajectory controller. Needed on the robot PC, in the configured namespace: franka_ros2 with its
joint state and robot state broadcasters, the chosen controller active, and for tasks with a moving gripper its node.

Neither controller notices when targets cease: it holds the last one. The safety filter ramps to rest before that, and
the keeper's safe state (`ros2_safe_state`) stands in when this process dies.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka.actions import JOINT_DELTA
from hardware.franka.config import FrankaRos2Config
from hardware.franka.embodiment import FrankaEmbodiment, FrankaMeasured, shifted_wrench
from hardware.franka.following import FollowingWatch
from hardware.franka.limits import make_limits
from hardware.franka.model import TCP_SITE
from hardware.franka.ros2_gripper import ActionGoals, GripperLine
from hardware.franka.ros2_names import (
    ERROR_RECOVERY,
    ERROR_RECOVERY_ACTION,
    JOINT_TRAJECTORY,
    TARGET_JOINT,
    TARGET_POSE,
    make_link,
    stream_topic,
)
from hardware.franka.ros2_state import FrankaRos2State
from hardware.franka.ros2_stream import TargetStream
from robot_stack.core.clock import MonotonicClock
from robot_stack.core.errors import ConfigError, RobotError, UnreachableError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Reading, Robot, RobotGeometry, Setpoint, SetpointLimits
from robot_stack.core.specs import RobotSpec
from robot_stack.transport.ros2.link import Ros2Link

FloatVector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`."""

    link: Ros2Link
    state: FrankaRos2State
    stream: TargetStream
    gripper: GripperLine | None


class FrankaRos2(Robot):
    """A `Robot`. Features, actions and setpoints are those of `FrankaEmbodiment`.

    A reading's stamp is the arrival of the newest joint state. Faults: state too old, error flags of the vendor (with
    franka_msgs), targets that are not followed, another publisher on the topic of our targets, no controller there.
    """

    def __init__(
        self,
        name: str,
        task: str,
        config: FrankaRos2Config,
        *,
        action_space: str = "ee_delta",
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 100.0,
    ) -> None:
        self._config = config
        self._topic = stream_topic(config)
        if action_space == JOINT_DELTA and config.stream == TARGET_POSE:
            raise ConfigError(
                f"{name}: the stream '{TARGET_POSE}' tells the controller a place of the hand, and the action space "
                f"{JOINT_DELTA} drives joints; choose robot.ros2.stream={TARGET_JOINT} or {JOINT_TRAJECTORY}"
            )
        self._embodiment = FrankaEmbodiment(
            name,
            task,
            action_space=action_space,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            limits_of_setpoint=make_limits(config.limits),
        )
        self._clock = MonotonicClock()
        self._watch = FollowingWatch(name, config)
        self._opened: _Opened | None = None
        self._sample: FrankaMeasured | None = None
        self._sample_count = 0

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RobotSpec:
        return self._embodiment.spec

    @property
    def limits(self) -> SetpointLimits:
        return self._embodiment.limits

    @property
    def geometry(self) -> RobotGeometry | None:
        return self._embodiment.geometry

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Wait for the robot's state and its controller, and take the robot's own limits where they are narrower.

        RobotError names what is missing: a topic, a joint, the controller, the gripper's interface, or that another
        publisher is on our topic.
        """
        if self._opened is not None:
            return
        deadline_s = time.monotonic() + self._config.connect_timeout_s
        link = make_link(f"{self.spec.name}_driver", self._config)
        link.open()
        try:
            opened = self._open_line(link)
            self._await_robot(opened, deadline_s)
        except UnreachableError as error:
            self._drop(link)
            raise RobotError(
                f"{self.spec.name}: {error} (namespace '{self._config.namespace}', domain {self._config.domain_id})"
            ) from error
        except BaseException:
            self._drop(link)
            raise
        self._opened = opened
        self.hold()

    def _open_line(self, link: Ros2Link) -> _Opened:
        moves = self._embodiment.gripper_moves
        ticks = self._embodiment.ticks_per_step
        return _Opened(
            link,
            FrankaRos2State(link, self._config, self.spec.name, with_gripper=moves, ticks=ticks),
            TargetStream(link, self._config, 1.0 / self.spec.tick_rate_hz, self._hand_pose),
            GripperLine(link, self._config) if moves else None,
        )

    def _await_robot(self, opened: _Opened, deadline_s: float) -> None:
        opened.state.wait(deadline_s)
        opened.state.joint_positions()  # names every joint that is missing
        opened.state.await_optional()
        self._embodiment.open(opened.state.facts())
        while opened.stream.listeners() == 0:
            self._spin_until(opened.link, deadline_s, self._no_controller())
        while opened.gripper is not None and not opened.gripper.find():
            reason = f"no gripper takes goals at '{self._config.gripper}' (looked for: {opened.gripper.offers})"
            self._spin_until(opened.link, deadline_s, f"{self.spec.name}: {reason}; is its node running?")
        while rivals := opened.stream.rivals():
            self._spin_until(opened.link, deadline_s, self._rival_text(rivals))

    @staticmethod
    def _spin_until(link: Ros2Link, deadline_s: float, otherwise: str) -> None:
        if time.monotonic() > deadline_s:
            raise RobotError(otherwise)
        link.spin(0.01)

    def close(self) -> None:
        """Stop talking. The controller holds the last target, which the filter has brought to rest."""
        if self._opened is not None:
            self._drop(self._opened.link)
            self._opened = None

    def _drop(self, link: Ros2Link) -> None:
        link.close()
        self._embodiment.close()
        self._sample = None
        self._watch.forget()

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._opened

    # ---- control ----------------------------------------------------------------------------------------------

    def measured_setpoint(self) -> Setpoint:
        return self._embodiment.setpoint(self._measured())

    def hold(self) -> None:
        self._embodiment.hold(self._measured())

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self._measured())

    def engage(self) -> None:
        """From now on the arm has to follow; the hand keeps its width until another is wanted."""
        self._watch.forget()
        if self._open.gripper is not None:
            self._open.gripper.start(self._measured().gripper_width_m)

    def send(self, setpoint: Setpoint) -> None:
        opened, now_ns = self._open, self._clock.now_ns()
        opened.stream.publish(setpoint[:7])
        self._watch.target(setpoint[:7].copy(), now_ns)
        if opened.gripper is not None:
            opened.gripper.want(float(setpoint[7]), now_ns)

    def release(self) -> None:
        """The controller holds the last target; nothing more is sent."""
        self._watch.forget()

    def emergency_stop(self) -> None:
        """The vendor offers no stop over topics: the target jumps back to where the arm is, and the hand stops."""
        self._open.stream.publish(self._measured().joints_rad)
        self._watch.forget()
        if self._open.gripper is not None:
            self._open.gripper.stop()

    def recover(self) -> None:
        """Ask the vendor's side to recover from a reflex or an error; waits for it, at most `connect_timeout_s`.

        Only for a person who has looked at the robot: neither this driver nor the guard ever calls it by itself.
        With franka_msgs the vendor's action is used (its result shows as the error flags going down), without it the
        service `error_recovery` (std_srvs/Trigger). Afterwards the controllers may have to be activated again.
        """
        link = self._open.link
        try:
            actions: Any = importlib.import_module("franka_msgs.action")
        except ImportError:
            self._recover_by_service(link)
            return
        goals = ActionGoals(link, actions.ErrorRecovery, ERROR_RECOVERY_ACTION)
        deadline_s = time.monotonic() + self._config.connect_timeout_s
        while not goals.ready():
            self._spin_until(link, deadline_s, f"{self.spec.name}: no action '{ERROR_RECOVERY_ACTION}' is offered")
        goals.send(actions.ErrorRecovery.Goal())

    def _recover_by_service(self, link: Ros2Link) -> None:
        from std_srvs.srv import Trigger

        try:
            answer = link.call(Trigger, ERROR_RECOVERY, Trigger.Request(), self._config.connect_timeout_s)
        except UnreachableError as error:
            raise RobotError(f"{self.spec.name}: {error}; or install franka_msgs for the vendor's action") from error
        if not answer.success:
            raise RobotError(f"{self.spec.name}: error recovery failed: {answer.message}; look at the robot")

    # ---- observation ------------------------------------------------------------------------------------------

    def read(self) -> Reading:
        measured, state = self._measured(), self._open.state
        return Reading(
            stamp_ns=state.joints.received_ns,
            features=self._embodiment.features(measured),
            fault=self._fault(measured),
        )

    def external_effort(self) -> Setpoint | None:
        torques = self._open.state.external_torques(self._clock.now_ns())
        return None if torques is None else np.append(torques, 0.0)

    def _measured(self) -> FrankaMeasured:
        """The newest sample; forward kinematics run once per joint state."""
        opened = self._open
        opened.link.spin()
        state = opened.state
        if self._sample is None or state.joints.count != self._sample_count:
            self._sample_count = state.joints.count
            joints = state.joint_positions()
            hand_m, _ = self._hand_pose(joints)
            sample = self._embodiment.measured(joints, state.joint_velocities(), np.zeros(6), state.gripper_width())
            wrench = shifted_wrench(state.mean_wrench(), hand_m, sample.tool.position_m)
            self._sample = FrankaMeasured(joints, sample.velocities_rad_s, wrench, sample.gripper_width_m, sample.tool)
        return self._sample

    def _hand_pose(self, joints_rad: FloatVector) -> tuple[FloatVector, FloatVector]:
        return self._embodiment.kinematics.site_pose(TCP_SITE, joints_rad)

    # ---- faults -----------------------------------------------------------------------------------------------

    def _fault(self, measured: FrankaMeasured) -> str:
        opened, now_ns = self._open, self._clock.now_ns()
        if fault := opened.state.fault(now_ns):
            return fault
        if rivals := opened.stream.rivals():
            return self._rival_text(rivals)
        if opened.stream.listeners() == 0:
            return self._no_controller()
        return self._watch.check(measured.joints_rad, measured.velocities_rad_s, measured.external_wrench, now_ns)

    def _rival_text(self, rivals: int) -> str:
        return (
            f"{self.spec.name}: {rivals} other publisher(s) on '{self._topic}': the controller ignores every target "
            "while more than one is there; end the other program (one that was killed vanishes after some seconds)"
        )

    def _no_controller(self) -> str:
        return f"{self.spec.name}: no controller takes targets on '{self._topic}'; load and activate it"
