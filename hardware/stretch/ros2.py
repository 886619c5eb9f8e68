"""The Stretch 3 through stretch_ros2's driver node: joints by streamed positions, the base by velocity.

The vendor's side holds the last streamed pose for ever and checks nothing, so every command here carries all joints,
is finite, within the limits, and needs feedback that is fresh. The base stops by the vendor's own dead-man of 0.5 s.

`engage` starts the change of mode and returns at once: the services are answered while `send` holds its commands
back. The first command then is the measured pose, and commands move from there to the filter's setpoint no faster
than the limits allow. A person's run-stop is never released from here.
"""

from __future__ import annotations

import logging
import time

import numpy as np
from numpy.typing import NDArray

from hardware.stretch import ros2_names as names
from hardware.stretch.base import BaseAxes, BaseFollower, check_base_follows
from hardware.stretch.config import StretchRos2Config
from hardware.stretch.embodiment import StretchEmbodiment, StretchMeasured
from hardware.stretch.joints import SETPOINT_NAMES
from hardware.stretch.ros2_node import Asked, Engagement, StretchNode, pose_of_odometry
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Reading, Robot, RobotGeometry, Setpoint, SetpointLimits
from robot_stack.core.specs import RobotSpec

FloatVector = NDArray[np.float64]

logger = logging.getLogger(__name__)

NODE_NAME = "robot_stack_driver"
_CLOSE_WAIT_S = 0.5
_BASE = slice(0, names.BASE_AXES)


class StretchRos2(Robot):
    """A `Robot`. Setpoint and observations: see `StretchEmbodiment`; efforts are percent, as the vendor gives them.

    The base axes begin at zero in `connect` and go on where odometry is restarted. Faults: state too old, run-stop, not
    homed, low battery; while engaged also a base that does not follow, another mode, streaming switched off.
    """

    def __init__(
        self,
        name: str,
        task: str,
        config: StretchRos2Config,
        *,
        control_rate_hz: float,
        tick_rate_hz: float = 30.0,
    ) -> None:
        names.gripper_from_aperture(0.0, config.gripper_unit)
        self._config = config
        self._embodiment = StretchEmbodiment(
            name,
            task,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            simulated=False,
            with_environment=False,
        )
        self._period_s = 1.0 / tick_rate_hz
        self._max_velocity = np.array(self.limits.max_velocity)
        self._follower = BaseFollower(config.base_gain_hz, self._period_s, self._max_velocity[_BASE])
        self._node = StretchNode(NODE_NAME, config)
        self._base = BaseAxes()
        self._counts = (0, 0)
        self._measured: StretchMeasured | None = None
        self._engagement: Engagement | None = None
        self._sent: Setpoint | None = None
        self._catching_up = True
        self._quiet_ns = 0

    # ---- what it is ----

    @property
    def spec(self) -> RobotSpec:
        return self._embodiment.spec

    @property
    def limits(self) -> SetpointLimits:
        return self._embodiment.limits

    @property
    def geometry(self) -> RobotGeometry | None:
        return self._embodiment.geometry

    # ---- life ----

    def connect(self) -> None:
        if self._node.is_open:
            return
        self._embodiment.connect()
        self._base, self._counts = BaseAxes(), (0, 0)
        self._node.open()
        try:
            self._node.wait_until_ready()
            self._refuse_unless_fit()
            self._narrow_limits()
            self._node.spin()
            self._take_state()
        except Exception:
            self._node.close()
            raise
        self.hold()

    def _refuse_unless_fit(self) -> None:
        problem = self._node.problem()
        if problem:
            raise RobotError(f"{self.spec.name}: {problem}")

    def _narrow_limits(self) -> None:
        lower, upper = np.full(len(SETPOINT_NAMES), -np.inf), np.full(len(SETPOINT_NAMES), np.inf)
        for axis, limits in self._node.joint_limits().items():
            place = SETPOINT_NAMES.index(axis)
            lower[place], upper[place] = limits
        self._embodiment.narrow_positions(lower, upper)

    def close(self) -> None:
        """Stops the base and waits, no longer than 0.5 s, until streaming is off."""
        if not self._node.is_open:
            return
        try:
            if self._engagement is not None:
                self._node.wait_for_answers([self._tell_off()], _CLOSE_WAIT_S)
        except RobotError as error:
            logger.error("%s: streaming position may still be on: %s", self.spec.name, error)
        finally:
            self._node.close()
            self._measured = None

    # ---- control ----

    def measured_setpoint(self) -> Setpoint:
        return self._embodiment.setpoint_of(self._require_measured())

    def hold(self) -> None:
        self._embodiment.hold(self._require_measured())
        self._follower.forget()
        if self._catching_up:
            self._sent = None

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self._require_measured())

    def engage(self) -> None:
        """Begin to take control. RobotError if the robot is not fit; `send` tells if the vendor's side refuses."""
        self._refuse_unless_fit()
        self._engagement = Engagement(self._node, self._config.engage_timeout_s)
        self._sent = None
        self._catching_up = True
        self._follower.forget()

    def send(self, setpoint: Setpoint) -> None:
        """RobotError, and nothing is sent, if feedback is too old or the vendor's side no longer obeys."""
        if self._engagement is None:
            raise RobotError(f"{self.spec.name}: a setpoint was sent before the robot was activated")
        problem = self._problem()
        if problem:
            raise RobotError(f"{self.spec.name}: {problem}")
        if not np.isfinite(setpoint).all():
            raise RobotError(f"{self.spec.name}: the setpoint {setpoint.tolist()} is not finite")
        if not self._engagement.advance():
            return
        self._sent = self._within(self._next(setpoint))
        measured = self._require_measured().setpoint
        check_base_follows(self.spec.name, self._sent[_BASE], measured[_BASE])
        self._node.send_pose(names.pose_command(self._sent, self._config.gripper_unit))
        self._node.send_base_velocity(*self._follower.velocity(self._sent[_BASE], measured[_BASE]))

    def _next(self, setpoint: Setpoint) -> Setpoint:
        """The setpoint, or what comes nearest to it on the way from the measured pose just after `engage`."""
        if self._sent is None:
            return self.measured_setpoint()
        if not self._catching_up:
            return setpoint
        step = self._max_velocity * self._period_s
        reached = self._sent + np.clip(setpoint - self._sent, -step, step)
        self._catching_up = not np.allclose(reached, setpoint, rtol=0.0, atol=1e-9)
        return reached

    def _within(self, setpoint: Setpoint) -> Setpoint:
        return np.clip(setpoint, self.limits.lower, self.limits.upper)

    def release(self) -> None:
        self._tell_off()

    def _tell_off(self) -> Asked:
        self._engagement = None
        self._quiet_ns = time.monotonic_ns() + s_to_ns(names.BASE_TIMEOUT_S)
        self._node.send_base_velocity(0.0, 0.0)
        return self._node.ask(names.DEACTIVATE_STREAMING)

    def idle(self) -> None:
        """Zero base velocity for as long as the vendor's dead-man waits, then silence: others may drive the base."""
        if time.monotonic_ns() < self._quiet_ns:
            self._node.send_base_velocity(0.0, 0.0)

    def emergency_stop(self) -> None:
        """Press the run-stop: motors are off until a person releases it at the robot."""
        self._engagement = None
        self._node.ask(names.RUNSTOP, on=True)
        self._node.ask(names.STOP_THE_ROBOT)
        self._node.send_base_velocity(0.0, 0.0)

    # ---- state ----

    def read(self) -> Reading:
        self._node.spin()
        self._take_state()
        problem = self._problem()
        return Reading(
            stamp_ns=self._node.newest(names.JOINT_STATES).received_ns,
            features=self._embodiment.features(self._require_measured()),
            fault=f"{self.spec.name}: {problem}" if problem else "",
        )

    def _problem(self) -> str:
        problem = self._node.problem()
        if not problem and self._engagement is not None and self._engagement.complete:
            problem = self._engagement.lost()
        return problem

    def _take_state(self) -> None:
        """Turn messages that arrived since the last call into a measured sample."""
        joints, odometry = self._node.newest(names.JOINT_STATES), self._node.newest(names.ODOMETRY)
        counts = (joints.count, odometry.count)
        if counts == self._counts:
            return
        self._base.update(*pose_of_odometry(odometry.message))
        position, velocity, effort = names.joints_from_state(joints.message)
        self._counts = counts
        self._measured = StretchMeasured(
            setpoint=np.concatenate((self._base.axes, position)),
            velocity=np.concatenate((self._base.velocity, velocity)),
            effort=np.concatenate((np.zeros(names.BASE_AXES), effort)),
            base_pose_xyyaw=self._base.pose,
        )

    def _require_measured(self) -> StretchMeasured:
        if self._measured is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._measured
