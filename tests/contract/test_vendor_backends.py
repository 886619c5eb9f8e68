"""What every vendor back-end promises, driven over the real middleware against a vendor-side simulator in a process
of its own, behind the same guard and filter as any robot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from robot_stack.apps.build import build_robot, build_simulated
from robot_stack.core.messages import Command, Lifecycle, RobotState, Verdict
from robot_stack.core.specs import ACTION, ENVIRONMENT_STATE, IMAGES
from tests.vendor_kit import VENDORS, GuardedDriver, Vendor, VendorSide, vendor_side

STILL_TOLERANCE = 0.02
SESSION = "contract"


@pytest.fixture(scope="module", params=VENDORS, ids=str)
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VendorSide]:
    vendor: Vendor = request.param
    with vendor_side(vendor, tmp_path_factory.mktemp(str(vendor))) as running:
        yield running


@pytest.fixture
def driver(side: VendorSide) -> Iterator[GuardedDriver]:
    with GuardedDriver(side.driver()) as guarded:
        yield guarded


def activate(driver: GuardedDriver, seed: int = 0) -> None:
    driver.guard.acquire_lease(SESSION, "test")
    driver.guard.transition(Lifecycle.ACTIVE)
    driver.guard.reset(seed)


def command(driver: GuardedDriver, seq: int, action: np.ndarray) -> Verdict:
    asked = Command(session=SESSION, seq=seq, deadline_ns=2**62, action=action.astype(np.float32))
    return driver.guard.command(asked).verdict


def compared(driver: GuardedDriver, left: np.ndarray, right: np.ndarray) -> float:
    """Largest difference of two setpoints; where a mobile base counts from is its driver's own affair."""
    own = np.array([not name.startswith("base_") for name in driver.robot.limits.names])
    return float(np.abs((left - right) * own).max())


def still(driver: GuardedDriver) -> np.ndarray:
    """An action that means no motion: zero deltas, grippers as open as they are in the start pose."""
    spec = driver.robot.spec.action
    zero = np.zeros(len(spec.names), dtype=np.float32)
    return np.array([1.0 if "gripper" in name else value for name, value in zip(spec.names, zero, strict=True)])


def test_it_offers_what_the_simulated_robot_offers(side: VendorSide) -> None:
    """So a policy for the one drives the other."""
    simulated, driver = build_simulated(side.config).spec, side.driver().spec
    assert driver.action == simulated.action
    assert driver.observation == {k: v for k, v in simulated.observation.items() if not k.startswith(IMAGES)}
    assert (driver.task, driver.model, driver.control_rate_hz) == (
        simulated.task,
        simulated.model,
        simulated.control_rate_hz,
    )


def test_the_bare_driver_is_no_simulated_robot(side: VendorSide) -> None:
    """Nothing arms a real robot by itself: only the scene beside it makes it a simulated one."""
    driver = build_robot(side.config)
    assert not driver.spec.simulated
    assert ENVIRONMENT_STATE not in driver.spec.observation
    assert side.driver().spec.simulated


def test_connected_it_is_inactive_and_measures(driver: GuardedDriver, side: VendorSide) -> None:
    state = driver.run(0.3)
    assert state.lifecycle is Lifecycle.INACTIVE
    assert state.fault == ""
    for name, feature in driver.robot.spec.observation.items():
        assert state.features[name].shape == feature.shape, name
        assert state.features[name].dtype == feature.dtype, name
        assert np.isfinite(state.features[name]).all(), name
    lower, upper = np.asarray(driver.robot.limits.lower), np.asarray(driver.robot.limits.upper)
    measured = driver.robot.measured_setpoint()
    assert measured.shape == lower.shape
    assert (measured >= lower - 0.05).all()
    assert (measured <= upper + 0.05).all()


def test_limits_of_the_connected_robot_are_not_wider(driver: GuardedDriver, side: VendorSide) -> None:
    configured, connected = build_robot(side.config).limits, driver.robot.limits
    assert (np.asarray(connected.lower) >= np.asarray(configured.lower) - 1e-9).all()
    assert (np.asarray(connected.upper) <= np.asarray(configured.upper) + 1e-9).all()
    assert (np.asarray(connected.max_velocity) <= np.asarray(configured.max_velocity) + 1e-9).all()


def test_stamps_advance_while_the_vendor_publishes(driver: GuardedDriver) -> None:
    stamps = [driver.run(0.15).stamp_ns for _ in range(4)]
    assert stamps == sorted(set(stamps))


def test_activation_and_still_commands_move_nothing(driver: GuardedDriver) -> None:
    activate(driver)
    before = driver.robot.measured_setpoint()
    for seq in range(12):
        assert command(driver, seq, still(driver)) is not Verdict.REFUSED
        driver.run(0.1)
    assert driver.guard.fault == ""
    assert compared(driver, driver.robot.measured_setpoint(), before) < STILL_TOLERANCE


def test_a_moving_robot_stops_when_commands_cease(driver: GuardedDriver) -> None:
    activate(driver)
    names = driver.robot.spec.action.names
    action = np.zeros(len(names))
    axis = next(index for index, name in enumerate(names) if name.endswith("z_m") or "lift" in name)
    action[axis] = 0.5 * driver.robot.spec.action.upper_array()[axis]
    before = driver.robot.measured_setpoint()
    for seq in range(10):
        assert command(driver, seq, np.where(still(driver) == 1.0, 1.0, action)) is not Verdict.REFUSED
        driver.run(0.1)
    assert compared(driver, driver.robot.measured_setpoint(), before) > STILL_TOLERANCE / 2
    state = driver.run(3.0, until=lambda state: state.stopping and not state.moving)
    assert state.stopping
    assert not state.moving
    assert state.lifecycle is Lifecycle.ACTIVE
    rest = driver.run(1.0) and driver.robot.measured_setpoint()
    driver.run(0.5)
    assert compared(driver, driver.robot.measured_setpoint(), rest) < STILL_TOLERANCE / 2


def test_the_same_seed_sets_up_the_same_scene(driver: GuardedDriver) -> None:
    def scene(seed: int) -> np.ndarray:
        driver.guard.reset(seed)
        return driver.run(0.1).features[ENVIRONMENT_STATE]

    activate(driver)
    first = scene(5)
    assert np.abs(scene(6) - first).max() > 0.01
    np.testing.assert_allclose(scene(5), first, atol=0.005)


def test_a_broken_command_never_reaches_the_driver(driver: GuardedDriver) -> None:
    activate(driver)
    broken = np.full(len(driver.robot.spec.action.names), np.nan)
    assert command(driver, 0, broken) is Verdict.REFUSED
    assert command(driver, 1, np.full(len(broken), 1e30)) is Verdict.REFUSED
    state: RobotState = driver.run(0.2)
    assert state.fault == ""


def test_closing_twice_is_harmless_and_it_connects_again(side: VendorSide) -> None:
    robot = side.driver()
    for _ in range(2):
        robot.connect()
        assert robot.read().fault == ""
        robot.close()
    robot.close()


def test_actions_are_bounded(side: VendorSide) -> None:
    action = side.driver().spec.action
    assert ACTION not in side.driver().spec.observation
    assert (action.lower_array() < action.upper_array()).all()
