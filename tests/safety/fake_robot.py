"""A driver at the lowest level: records what it is sent and fails on command. Everything above it is the real thing."""

from __future__ import annotations

import numpy as np

from robot_stack.core.errors import RobotError, RobotFaultError
from robot_stack.core.messages import Features, FloatArray, TaskStatus
from robot_stack.core.protocols import (
    Clearance,
    EpisodicRobot,
    Reading,
    Robot,
    RobotGeometry,
    Setpoint,
    SetpointLimits,
)
from robot_stack.core.specs import STATE, RobotSpec, vector

LIMITS = SetpointLimits(
    names=("a_rad", "b_rad"),
    lower=(-1.0, -1.0),
    upper=(1.0, 1.0),
    max_velocity=(2.0, 2.0),
    max_acceleration=(10.0, 10.0),
    max_jerk=(400.0, 400.0),
)


class TwoLinkGeometry(RobotGeometry):
    """A planar arm of two links, (0.5, 0.4) m; its tip and elbow are guarded, and its tip may not come near a post
    of its own at (0.2, 0.2) m."""

    def __init__(self) -> None:
        self.looks = 0
        self.fail = ""

    @property
    def box_lower_m(self) -> Setpoint:
        return np.array([-1.0, -0.6, -0.1])

    @property
    def box_upper_m(self) -> Setpoint:
        return np.array([0.85, 0.6, 0.1])

    @property
    def min_self_distance_m(self) -> float:
        return 0.3

    def look(self, setpoint: Setpoint) -> Clearance:
        if self.fail:
            raise RobotError(self.fail)
        self.looks += 1
        first, second = float(setpoint[0]), float(setpoint[0] + setpoint[1])
        elbow = np.array([0.5 * np.cos(first), 0.5 * np.sin(first), 0.0])
        tip = elbow + np.array([0.4 * np.cos(second), 0.4 * np.sin(second), 0.0])
        distance = float(np.linalg.norm(tip - np.array([0.2, 0.2, 0.0])))
        return Clearance(points_m=np.stack([elbow, tip]), self_distance_m=distance)


class RecordingRobot(Robot):
    """Two axes; the action is the goal itself. `calls` lists what was called, `send` left out; `failing` names the
    calls that raise, and what they say."""

    def __init__(self) -> None:
        self.sent: list[Setpoint] = []
        self.calls: list[str] = []
        self.failing: dict[str, str] = {}
        self.position = np.array([0.1, -0.1])
        self.fault: str = ""
        self.goal: Setpoint | None = None
        self.effort: Setpoint | None = None
        self.reach: TwoLinkGeometry | None = None
        self.limits_now = LIMITS
        self.stamp_ns = 1
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

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise RobotError(self.failing[name])

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def limits(self) -> SetpointLimits:
        return self.limits_now

    @property
    def geometry(self) -> TwoLinkGeometry | None:
        return self.reach

    def connect(self) -> None:
        self._called("connect")

    def close(self) -> None:
        self._called("close")

    def measured_setpoint(self) -> Setpoint:
        return self.position.copy()

    def resolve(self, action: FloatArray) -> Setpoint:
        if "fault" in self.failing:
            raise RobotFaultError(self.failing["fault"])
        if "resolve" in self.failing:
            raise RobotError(self.failing["resolve"])
        return action.astype(np.float64) if self.goal is None else self.goal

    def engage(self) -> None:
        self._called("engage")

    def send(self, setpoint: Setpoint) -> None:
        if "send" in self.failing:
            raise RobotError(self.failing["send"])
        self.sent.append(setpoint)
        self.position = setpoint.copy()

    def release(self) -> None:
        self._called("release")

    def idle(self) -> None:
        self._called("idle")

    def emergency_stop(self) -> None:
        self._called("emergency_stop")

    def hold(self) -> None:
        self._called("hold")

    def read(self) -> Reading:
        if "read" in self.failing:
            raise RobotError(self.failing["read"])
        return Reading(stamp_ns=self.stamp_ns, features={STATE: self.position.astype(np.float32)}, fault=self.fault)

    def external_effort(self) -> Setpoint | None:
        if "external_effort" in self.failing:
            raise RobotError(self.failing["external_effort"])
        return self.effort


class EpisodicRecordingRobot(RecordingRobot, EpisodicRobot):
    """The same with a scene."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def reset(self, seed: int) -> None:
        self._called("reset")
        self.seeds.append(seed)
        self.position = np.array([0.01 * seed, 0.0])

    def task_status(self) -> TaskStatus:
        if "task_status" in self.failing:
            raise RobotError(self.failing["task_status"])
        return TaskStatus(reward=1.0, success=True, terminated=True)

    def ground_truth(self) -> Features:
        return {"truth": np.zeros(1, dtype=np.float32)}
