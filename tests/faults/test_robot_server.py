"""The robot server's own faults, with real processes on both sides of the vendor's interface."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from robot_stack.apps.connections import remote_robot, robot_client
from robot_stack.apps.keys import OPERATOR_KEY
from robot_stack.core.errors import CommandRefusedError, RobotStackError
from robot_stack.core.messages import Lifecycle, RobotState, StopLevel, StopRobot
from robot_stack.core.scene_messages import GetScene, SceneState, VendorFault
from robot_stack.core.specs import STATE
from tests.vendor_kit import VENDORS, Vendor, VendorSide, vendor_side, wait_until

SAFE_WITHIN_S = 0.2
PERIOD_S = 0.01
REST = 0.02


@pytest.fixture(params=VENDORS, ids=str)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VendorSide]:
    """A robot server, its keeper, and the vendor's side."""
    vendor: Vendor = request.param
    with vendor_side(vendor, tmp_path_factory.mktemp(str(vendor))) as side:
        side.start("robot-server")
        wait_until(lambda: side.robot_state().lifecycle is Lifecycle.INACTIVE, 60.0, "the robot server serves")
        yield side


def measured(side: VendorSide) -> np.ndarray:
    """The simulator's own truth about the robot."""
    scene = side.scene(GetScene())
    assert isinstance(scene, SceneState)
    return scene.measured


def drive(side: VendorSide, steps: int) -> RobotState:
    """Move with half the action's range for so many control steps, then fall silent without a word."""
    with remote_robot(side.config.network, side.keys) as robot:
        robot.connect(30.0)
        robot.arm(10.0)
        begun = robot.reset(0)
        spec = robot.spec.action
        action = np.where([name.endswith("z_m") or "lift" in name for name in spec.names], 0.5, 0.0)
        action = (action * spec.upper_array()).astype(np.float32)
        state = begun.state
        for _ in range(steps):
            state = robot.step(action).state
        return state


def started_again(side: VendorSide) -> bool:
    side.supervisor.watch()
    return side.supervisor.restarts()["robot-server"] == 1


def test_a_killed_server_leaves_the_vendors_side_safe_and_never_arms_again(served: VendorSide) -> None:
    drive(served, 8)
    moving_from = measured(served)
    os.kill(served.server_pid(), signal.SIGKILL)
    killed_s = time.monotonic()
    time.sleep(SAFE_WITHIN_S)
    soon_after = measured(served)
    time.sleep(1.0)
    rest = measured(served)
    time.sleep(0.5)
    assert time.monotonic() - killed_s < 10.0
    held = np.array([not name.startswith("base_") for name in served.driver().limits.names])
    assert np.abs((rest - soon_after) * held).max() < 0.35, "the release is a slow ramp, not a fall"
    assert np.abs((soon_after - moving_from) * held).max() < 0.1
    wait_until(lambda: started_again(served), 60.0, "keeper and server are started again")
    wait_until(lambda: served.robot_state().lifecycle is not Lifecycle.UNCONFIGURED, 60.0, "a new server serves")
    for _ in range(5):
        assert served.robot_state().lifecycle is Lifecycle.INACTIVE
        time.sleep(0.1)


def test_a_frozen_vendor_state_is_a_latched_fault(served: VendorSide) -> None:
    drive(served, 3)
    served.inject(VendorFault.FROZEN_STATE)
    wait_until(lambda: served.robot_state().lifecycle is Lifecycle.FAULT, 5.0, "the fault is latched")
    served.inject(VendorFault.NONE)
    time.sleep(1.0)
    state = served.robot_state()
    assert state.lifecycle is Lifecycle.FAULT, "nothing clears a fault by itself"
    assert state.fault != ""
    with remote_robot(served.config.network, served.keys) as robot:
        robot.connect(10.0)
        with pytest.raises(RobotStackError, match="person"):
            robot.arm(1.0)


def test_every_level_of_stop(served: VendorSide) -> None:
    def stop(level: StopLevel) -> None:
        with robot_client(served.config.network, served.keys, OPERATOR_KEY) as client:
            client.request(StopRobot(reason="test", level=level), timeout_s=5.0)

    drive(served, 3)
    stop(StopLevel.HOLD)
    assert served.robot_state().lifecycle is Lifecycle.ACTIVE
    stop(StopLevel.RELEASE)
    wait_until(lambda: served.robot_state().lifecycle is Lifecycle.INACTIVE, 5.0, "released")
    drive(served, 3)
    stop(StopLevel.EMERGENCY)
    wait_until(lambda: served.robot_state().lifecycle is Lifecycle.FAULT, 2.0, "the fault is latched")
    assert "emergency" in served.robot_state().fault
    with remote_robot(served.config.network, served.keys) as robot:
        robot.connect(10.0)
        with pytest.raises((CommandRefusedError, RobotStackError)):
            robot.arm(0.5)


def test_the_dead_edge_is_noticed_and_the_state_goes_on(served: VendorSide) -> None:
    """An edge that falls silent: the stop is over within a second, and watchers still get fresh states."""
    drive(served, 5)
    wait_until(lambda: not served.robot_state().moving, 3.0, "the robot rests")
    first, second = served.robot_state(), served.robot_state()
    assert second.stamp_ns >= first.stamp_ns
    assert STATE in second.features
