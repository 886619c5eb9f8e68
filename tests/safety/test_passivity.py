"""The energy that reaches the environment is bounded by the tank, whatever the policy wants."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from robot_stack.core.errors import ConfigError
from robot_stack.safety.filter import HeldBack
from robot_stack.safety.motion import MotionFilter
from robot_stack.safety.passivity import EnergyTank, EnergyTankConfig
from tests.safety.checking import assert_within_limits
from tests.safety.fake_robot import LIMITS

TICK_S = 0.01
CONFIG = EnergyTankConfig(capacity_j=3.0, initial_j=1.5, floor_j=0.5, refill_w=2.0, stiffness=0.0)


def motion(config: EnergyTankConfig = CONFIG) -> MotionFilter:
    made = MotionFilter(LIMITS, TICK_S, None, config)
    made.start(np.zeros(2))
    return made


def delivered(path: list[np.ndarray], efforts: list[np.ndarray]) -> float:
    steps = np.diff(path, axis=0)
    return float(np.maximum(-(steps * np.array(efforts)).sum(axis=1), 0.0).sum())


@pytest.mark.parametrize("effort", [5.0, 20.0, 200.0])
def test_against_a_constant_force_no_more_than_the_tank_holds_is_delivered(effort: float) -> None:
    made = motion(structs.replace(CONFIG, refill_w=0.0))
    path, efforts = [made.setpoint], []
    for tick in range(600):
        efforts.append(np.array([-effort, 0.0]))
        path.append(made.toward(np.array([1.0, 0.0]), 0.1 - TICK_S * (tick % 10), efforts[-1]))
    budget = CONFIG.initial_j - CONFIG.floor_j
    wanted = effort * 1.0
    assert delivered(path, efforts) <= min(budget, wanted) + 1e-9
    assert delivered(path, efforts) > 0.8 * min(budget, wanted)
    assert_within_limits(path, LIMITS, TICK_S)
    assert (made.held_back is HeldBack.ENERGY) == (wanted > budget)


@pytest.mark.parametrize("seed", range(5))
def test_the_inequality_holds_under_forces_that_change_slowly(seed: int) -> None:
    made, rng = motion(structs.replace(CONFIG, stiffness=50.0)), np.random.default_rng(seed)
    assert made.tank is not None
    path, efforts, refilled = [made.setpoint], [], 0.0
    effort, goal = np.zeros(2), np.zeros(2)
    for tick in range(3000):
        if tick % 10 == 0:
            goal = rng.uniform(-1.0, 1.0, 2)
        effort = 0.998 * effort + rng.normal(0.0, 0.05, 2)
        level = made.tank.level_j
        path.append(made.toward(goal, 0.1 - TICK_S * (tick % 10), effort))
        efforts.append(effort)
        drawn = -float((path[-1] - path[-2]) @ effort)
        refilled += max(made.tank.level_j - level, 0.0)
        assert made.tank.level_j == pytest.approx(level - drawn) or drawn < 0.0
        assert made.tank.level_j <= CONFIG.capacity_j
        assert made.tank.level_j - level <= CONFIG.refill_w * TICK_S + 1e-12
    assert refilled <= CONFIG.refill_w * TICK_S * 3000
    assert made.tank.level_j >= CONFIG.floor_j - 1e-9
    assert delivered(path, efforts) <= CONFIG.initial_j - CONFIG.floor_j + refilled + 1e-9
    assert_within_limits(path, LIMITS, TICK_S)


@pytest.mark.parametrize("stiffness", [50.0, 500.0])
def test_a_spring_is_pressed_no_further_than_the_tank_allows(stiffness: float) -> None:
    config = EnergyTankConfig(capacity_j=2.0, initial_j=1.0, floor_j=0.0, refill_w=0.0, stiffness=stiffness)
    made = motion(config)
    path, efforts = [made.setpoint], []
    for tick in range(800):
        efforts.append(np.array([-stiffness * max(path[-1][0] - 0.2, 0.0), 0.0]))
        path.append(made.toward(np.array([1.0, 0.0]), 0.1 - TICK_S * (tick % 10), efforts[-1]))
    pressed_m = max(point[0] for point in path) - 0.2
    assert delivered(path, efforts) <= 1.0 + 1e-9
    assert pressed_m > 0.7 * np.sqrt(2.0 * 1.0 / stiffness)


def test_an_empty_tank_lets_the_robot_go_back_and_refills() -> None:
    made = motion(structs.replace(CONFIG, initial_j=0.5))
    push = np.array([-10.0, 0.0])
    for _ in range(30):
        made.toward(np.array([0.5, 0.0]), 0.1, push)
    assert made.setpoint[0] < 1e-3
    assert made.held_back is HeldBack.ENERGY
    assert made.tank is not None
    level = made.tank.level_j
    for _ in range(60):
        made.toward(np.array([-0.3, 0.0]), 0.1, push)
    assert made.setpoint[0] == pytest.approx(-0.3, abs=0.02)
    assert made.held_back is HeldBack.NOTHING
    assert made.tank.level_j > level + 0.3
    assert made.tank.level_j - level <= 60 * TICK_S * CONFIG.refill_w + 1e-9


def test_motion_without_contact_costs_nothing() -> None:
    made, free = motion(structs.replace(CONFIG, initial_j=0.5)), MotionFilter(LIMITS, TICK_S)
    free.start(np.zeros(2))
    for tick in range(40):
        goal, left_s = np.array([0.4, -0.2]), 0.1 - TICK_S * (tick % 10)
        assert made.toward(goal, left_s, np.zeros(2)).tobytes() == free.toward(goal, left_s).tobytes()


def test_an_effort_that_is_no_number_stops_the_robot() -> None:
    made = motion()
    for _ in range(8):
        made.toward(np.array([0.5, 0.0]), 0.1, np.zeros(2))
    assert made.moving
    for _ in range(30):
        made.toward(np.array([0.5, 0.0]), 0.1, np.array([np.nan, 0.0]))
    assert not made.moving
    assert made.held_back is HeldBack.ENERGY
    assert made.tank is not None and made.tank.level_j == CONFIG.initial_j


def test_the_stop_is_booked_and_a_start_fills_the_tank_again() -> None:
    made = motion()
    assert made.tank is not None
    for _ in range(8):
        made.toward(np.array([0.5, 0.0]), 0.1, np.array([-0.1, 0.0]))
    level = made.tank.level_j
    before = made.setpoint
    for _ in range(20):
        made.stop(np.array([-2.0, 0.0]))
    assert made.tank.level_j == pytest.approx(level - 2.0 * (made.setpoint - before)[0])
    made.start(np.zeros(2))
    assert made.tank.level_j == CONFIG.initial_j


def test_pace_and_levels_by_hand() -> None:
    tank = EnergyTank(CONFIG, TICK_S)
    effort = np.array([-10.0, 0.0])
    assert tank.pace == 1.0
    assert tank.affords(effort, np.array([[0.04, 0.0], [0.02, 0.0], [0.0, 0.0]]))  # 10 N * 0.06 m of 1 J
    assert tank.pace == pytest.approx(1.0 / (4.0 * 0.6))
    assert not tank.affords(effort, np.array([[0.101, 0.0]]))
    assert tank.affords(effort, np.array([[0.1, 0.0]]))
    assert not tank.affords(effort, np.array([[0.08, 0.0], [-0.2, 0.0], [0.04, 0.0]]))  # what comes back does not count
    stiff = EnergyTank(structs.replace(CONFIG, stiffness=100.0), TICK_S)
    still = np.zeros(2)
    assert stiff.affords(still, np.array([[0.08, 0.0], [-0.06, 0.0]]))  # 100 N/m / 2 * (0.14 m)^2 = 0.98 J
    assert not stiff.affords(still, np.array([[0.08, 0.08], [-0.06, 0.0]]))
    tank.book(effort, np.array([0.1, 0.0]))
    assert tank.level_j == pytest.approx(0.5)
    assert tank.left_j == 0.0
    assert tank.pace == 0.05
    tank.book(effort, np.array([-0.001, 0.0]))
    assert tank.level_j == pytest.approx(0.51)
    tank.book(effort, np.array([-0.1, 0.0]))
    assert tank.level_j == pytest.approx(0.53)  # 2 W for 10 ms
    tank.book(effort, np.array([0.1, 0.0]))
    assert tank.left_j == 0.0
    for _ in range(500):
        tank.book(effort, np.array([-0.1, 0.0]))
    assert tank.level_j == CONFIG.capacity_j


@pytest.mark.parametrize(
    "changes",
    [
        {"floor_j": -0.1},
        {"floor_j": 2.0},
        {"initial_j": 4.0},
        {"capacity_j": np.inf},
        {"capacity_j": np.nan},
        {"refill_w": -1.0},
        {"refill_w": np.inf},
        {"stiffness": -1.0},
        {"stiffness": np.inf},
    ],
)
def test_a_tank_that_makes_no_sense_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="energy tank"):
        EnergyTank(structs.replace(CONFIG, **changes), TICK_S)


def test_the_corners_of_a_configuration_are_allowed() -> None:
    EnergyTank(EnergyTankConfig(capacity_j=1.0, initial_j=1.0, floor_j=1.0, refill_w=0.0, stiffness=0.0), TICK_S)
    EnergyTank(EnergyTankConfig(capacity_j=1.0, initial_j=0.0, floor_j=0.0), TICK_S)
