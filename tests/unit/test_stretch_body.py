"""The Stretch's stretch_body driver. The library is not installed here: its absence is the real thing, its presence a
stand-in with the library's names, which keeps a status and records calls."""

from __future__ import annotations

import importlib.util
import math
import signal
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hardware.stretch.body import StretchBody
from hardware.stretch.config import StretchBodyConfig
from hardware.stretch.joints import ARM, BASE_TRANSLATION, GRIPPER, HEAD_PAN, LIFT, WRIST_YAW
from hardware.stretch.limits import default_limits
from robot_stack.core.errors import MissingDependencyError, RobotError
from robot_stack.core.specs import ENVIRONMENT_STATE

TASK = "stretch_reach_grasp"


def make_driver(**settings: float) -> StretchBody:
    return StretchBody("stretch_0", TASK, StretchBodyConfig(**settings), control_rate_hz=10.0)


class Joint:
    def __init__(self, robot: StandIn, name: str, limits: tuple[float | None, float | None]) -> None:
        self.robot, self.name, self.limits = robot, name, limits

    def get_soft_motion_limits(self) -> list[float | None]:
        return list(self.limits)

    def move_to(self, position: float) -> None:
        self.robot.calls.append((self.name, position))


class Chain:
    def __init__(self, robot: StandIn, limits: dict[str, tuple[float | None, float | None]]) -> None:
        self.motors = {name: Joint(robot, name, pair) for name, pair in limits.items()}

    def move_to(self, joint: str, position: float) -> None:
        self.motors[joint].move_to(position)


class StandIn:
    """The names of stretch_body.robot.Robot that the driver uses; a part's status is fresh unless it is in `frozen`."""

    starts = True
    homed = True

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.frozen: set[str] = set()
        self.stamp = 0.0
        self.stopped = False
        self.lift, self.arm = Joint(self, "lift", (0.0, 0.9)), Joint(self, "arm", (0.0, 0.6))
        wrist = {"wrist_yaw": (-1.3, 5.0), "wrist_pitch": (None, None), "wrist_roll": (-2.9, 2.9)}
        self.end_of_arm = Chain(self, wrist | {"stretch_gripper": (None, None)})
        self.head = Chain(self, {"head_pan": (-3.0, 1.2), "head_tilt": (-1.5, 0.3)})
        self.base, self.pimu = types.SimpleNamespace(), types.SimpleNamespace()
        self.base.set_velocity = lambda forward, turn: self.calls.append(("base", forward, turn))
        self.pimu.runstop_event_trigger = lambda: self.calls.append(("runstop",))
        servo = {"pos": 0.0, "vel": 0.0, "effort": 0.0, "timestamp_pc": 0.0}
        self.status: dict[str, Any] = {
            "pimu": {"runstop_event": False, "voltage": 12.6, "timestamp_pc": 0.0},
            "base": {"x": 0.0, "y": 0.0, "theta": 0.0, "x_vel": 0.0, "theta_vel": 0.0, "timestamp_pc": 0.0},
            "lift": {"pos": 0.6, "vel": 0.01, "force": 5.0, "timestamp_pc": 0.0},
            "arm": {"pos": 0.1, "vel": 0.0, "force": 0.0, "timestamp_pc": 0.0},
            "head": {"head_pan": servo | {"pos": -1.0}, "head_tilt": servo | {"pos": -0.5}},
            "end_of_arm": {
                "wrist_yaw": servo | {"pos": 0.2},
                "wrist_pitch": servo | {"pos": -0.3},
                "wrist_roll": servo | {"pos": 0.1},
                "stretch_gripper": servo | {"pos_pct": 35.0},
            },
        }

    def startup(self) -> bool:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return self.starts

    def is_homed(self) -> bool:
        return self.homed

    def get_status(self) -> dict[str, Any]:
        self.stamp += 0.03
        boards = {name: self.status[name] for name in ("pimu", "base", "lift", "arm")}
        boards |= {"head": self.status["head"]["head_pan"], "wrist": self.status["end_of_arm"]["wrist_yaw"]}
        for name, board in boards.items():
            if name not in self.frozen:
                board["timestamp_pc"] = self.stamp
        return self.status

    def push_command(self) -> None:
        self.calls.append(("push",))

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """stretch_body, as far as the driver sees it; `library.robot` is what it made."""
    made = types.SimpleNamespace(robot=None, prepare=lambda robot: None)

    def make() -> StandIn:
        made.robot = StandIn()
        made.prepare(made.robot)
        return made.robot

    module = types.ModuleType("stretch_body.robot")
    module.Robot = make
    monkeypatch.setitem(sys.modules, "stretch_body", types.ModuleType("stretch_body"))
    monkeypatch.setitem(sys.modules, "stretch_body.robot", module)
    return made


@pytest.fixture
def driver(library: types.SimpleNamespace) -> Iterator[StretchBody]:
    driver = make_driver(max_state_age_s=0.5)
    driver.connect()
    yield driver
    driver.close()


# ---- without the library ----


def test_the_drivers_spec_is_known_without_the_library():
    driver = make_driver()
    assert not driver.spec.simulated and driver.spec.model == "stretch_3"
    assert ENVIRONMENT_STATE not in driver.spec.observation
    driver.close()


@pytest.mark.skipif(importlib.util.find_spec("stretch_body") is not None, reason="stretch_body is installed here")
def test_a_missing_library_is_named_with_the_way_to_install_it():
    with pytest.raises(MissingDependencyError, match=r"hello-robot-stretch-body.*robot-stack\[stretch\]"):
        make_driver().connect()


@pytest.mark.parametrize("error", [KeyError("HELLO_FLEET_PATH"), SystemExit(1)])
def test_a_computer_that_is_not_the_robots_is_told_so(library, error):
    def fail(robot: StandIn) -> None:
        raise error

    library.prepare = fail
    with pytest.raises(RobotError, match="HELLO_FLEET_PATH and HELLO_FLEET_ID"):
        make_driver().connect()


# ---- connect ----


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda robot: setattr(robot, "starts", False), "another process may be using it"),
        (lambda robot: setattr(robot, "homed", False), "not homed"),
        (lambda robot: robot.status["pimu"].update(runstop_event=True), "run-stop is pressed"),
        (lambda robot: robot.status["pimu"].update(voltage=9.0), "battery is at 9.0 V"),
        (lambda robot: robot.status["lift"].update(pos=math.nan), "not finite"),
    ],
)
def test_a_robot_that_is_not_fit_is_refused_and_let_go(library, spoil, words):
    library.prepare = spoil
    driver = make_driver()
    with pytest.raises(RobotError, match=words):
        driver.connect()
    assert library.robot.stopped
    assert not any(call[0] != "push" for call in library.robot.calls), "it must not be commanded"


def test_the_library_does_not_keep_our_signals(library):
    ours = signal.getsignal(signal.SIGTERM)
    driver = make_driver()
    driver.connect()
    assert signal.getsignal(signal.SIGTERM) is ours
    driver.close()


def test_limits_of_the_robot_only_narrow_ours(driver):
    ours = default_limits()
    assert driver.limits.upper[LIFT] == 0.9
    assert driver.limits.upper[ARM] == ours.upper[ARM]
    assert driver.limits.lower[WRIST_YAW] == -1.3
    assert driver.limits.upper[HEAD_PAN] == 1.2


# ---- state and commands ----


def test_the_status_becomes_the_setpoint(driver):
    expected = [0.0, 0.0, 0.6, 0.1, 0.2, -0.3, 0.1, 0.045, -1.0, -0.5]
    np.testing.assert_allclose(driver.measured_setpoint(), expected)
    features = driver.read().features
    assert {name: value.shape for name, value in features.items()} == {
        name: feature.shape for name, feature in driver.spec.observation.items()
    }


def test_the_first_command_is_the_measured_pose_and_later_ones_say_what_changed(driver, library):
    driver.engage()
    goal = driver.measured_setpoint()
    goal[LIFT] += 0.01
    driver.send(goal)
    first = {call[0]: call[1:] for call in library.robot.calls}
    assert first["lift"] == (0.6,) and first["arm"] == (0.1,) and first["head_pan"] == (-1.0,)
    assert first["stretch_gripper"] == pytest.approx((35.0,))
    assert first["base"] == (0.0, 0.0)
    assert library.robot.calls[-1] == ("push",)
    library.robot.calls.clear()
    driver.send(goal)
    assert library.robot.calls == [("lift", pytest.approx(0.61)), ("base", 0.0, 0.0), ("push",)]


def test_the_base_is_driven_by_velocity_and_stopped_by_release(driver, library):
    driver.engage()
    goal = driver.measured_setpoint()
    driver.send(goal)
    goal = goal.copy()
    goal[BASE_TRANSLATION] += 0.003
    driver.send(goal)
    _, forward, turn = next(call for call in reversed(library.robot.calls) if call[0] == "base")
    assert forward == pytest.approx(0.003 * 30 + 2.0 * 0.003) and turn == 0.0
    driver.release()
    assert library.robot.calls[-2:] == [("base", 0.0, 0.0), ("push",)]
    with pytest.raises(RobotError, match="before the robot was activated"):
        driver.send(goal)


def test_targets_stay_inside_the_limits(driver, library):
    driver.engage()
    goal = driver.measured_setpoint()
    driver.send(goal)
    goal[LIFT], goal[GRIPPER] = 2.0, 1.0
    driver.send(goal)
    assert ("lift", 0.9) in library.robot.calls
    assert ("stretch_gripper", pytest.approx(70.0)) in library.robot.calls


def test_setpoints_that_are_not_finite_never_arrive(driver, library):
    driver.engage()
    library.robot.calls.clear()
    goal = driver.measured_setpoint()
    goal[ARM] = math.inf
    with pytest.raises(RobotError, match="not finite"):
        driver.send(goal)
    assert not library.robot.calls


def test_a_pressed_run_stop_is_a_fault_and_ends_commands(driver, library):
    driver.engage()
    goal = driver.measured_setpoint()
    library.robot.status["pimu"]["runstop_event"] = True
    assert "run-stop is pressed" in driver.read().fault
    library.robot.calls.clear()
    with pytest.raises(RobotError, match="run-stop is pressed"):
        driver.send(goal)
    assert not library.robot.calls


@pytest.mark.parametrize("part", ["lift", "base", "head", "wrist", "pimu"])
def test_a_part_that_is_no_longer_heard_is_a_fault(driver, library, part):
    driver.engage()
    library.robot.frozen.add(part)
    goal = driver.measured_setpoint()
    stamp_ns = driver.read().stamp_ns
    time.sleep(0.55)
    reading = driver.read()
    assert f"no state from '{part}' for" in reading.fault
    assert reading.stamp_ns <= stamp_ns
    with pytest.raises(RobotError, match="no state from"):
        driver.send(goal)


def test_an_emergency_stop_presses_the_run_stop_and_stops_the_base(driver, library):
    driver.engage()
    driver.send(driver.measured_setpoint())
    library.robot.calls.clear()
    driver.emergency_stop()
    assert library.robot.calls == [("runstop",), ("base", 0.0, 0.0), ("push",)]
    with pytest.raises(RobotError, match="before the robot was activated"):
        driver.send(driver.measured_setpoint())


def test_closing_stops_the_base_and_the_library_and_is_harmless_twice(driver, library):
    driver.engage()
    driver.close()
    assert library.robot.calls[-2:] == [("base", 0.0, 0.0), ("push",)]
    assert library.robot.stopped
    driver.close()
    with pytest.raises(RobotError, match="not connected"):
        driver.read()
