"""A driver at the lowest level: records what it is sent and fails on command. Everything above it is the real thing."""

from __future__ import annotations

import numpy as np

from robot_stack.core.errors import RobotError, RobotFaultError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Reading, Robot, Setpoint, SetpointLimits
from robot_stack.core.specs import STATE, RobotSpec, vector


class RecordingRobot(Robot):
    """Two axes; the action is the goal itself."""

    def __init__(self) -> None:
        self.sent: list[Setpoint] = []
        self.position = np.array([0.1, -0.1])
        self.fail_resolve: str = ""
        self.fail_send: str = ""
        self.fault: str = ""
        self.resolved_nan = False
        self.closed = False
        self._spec = RobotSpec(
            name="recording_0",
            model="recording",
            task="none",
            simulated=False,
            control_rate_hz=10.0,
            tick_rate_hz=100.0,
            command_timeout_s=0.15,
            max_episode_steps=10,
            action=vector(("a_rad", "b_rad"), lower=(-1.0, -1.0), upper=(1.0, 1.0)),
            observation={STATE: vector(("a_rad", "b_rad"))},
        )
        self._limits = SetpointLimits(
            names=("a_rad", "b_rad"),
            lower=(-1.0, -1.0),
            upper=(1.0, 1.0),
            max_velocity=(2.0, 2.0),
            max_acceleration=(10.0, 10.0),
        )

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def limits(self) -> SetpointLimits:
        return self._limits

    def connect(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def measured_setpoint(self) -> Setpoint:
        return self.position.copy()

    def resolve(self, action: FloatArray) -> Setpoint:
        if self.fail_resolve:
            raise RobotFaultError(self.fail_resolve)
        goal = action.astype(np.float64)
        return np.full(2, np.nan) if self.resolved_nan else goal

    def send(self, setpoint: Setpoint) -> None:
        if self.fail_send:
            raise RobotError(self.fail_send)
        self.sent.append(setpoint)
        self.position = setpoint.copy()

    def hold(self) -> None:
        pass

    def read(self) -> Reading:
        return Reading(stamp_ns=1, features={STATE: self.position.astype(np.float32)}, fault=self.fault)
