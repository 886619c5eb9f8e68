"""A camera freezes: it is noticed, the policy pauses, no old picture passes as fresh, a restart brings it back.

Real processes under the real supervisor. Every picture carries the time it was really taken; each one that a feed
gives out is checked against it, through the whole of every test.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_stack.apps.camera import CAMERA_FRAME
from robot_stack.apps.supervisor import Supervisor
from robot_stack.core.errors import CameraHangsError, RobotError
from robot_stack.core.messages import CameraFrame, Lifecycle, RobotState
from robot_stack.core.protocols import CameraSpec
from robot_stack.core.specs import IMAGES, STATE, RobotSpec, vector
from robot_stack.edge.alignment import Aligner, spec_with_cameras
from robot_stack.edge.camera_feed import CameraFeed
from robot_stack.edge.freshness import FROZEN_PERIODS, FreshnessJudge
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.stream import Subscriber
from tests.faults.camera_process import CONFIG, taken_ns
from tests.transport_kit import make_keys

FROZEN_S = FROZEN_PERIODS / CONFIG.rate_hz
MARGIN_S = 0.5
"""For a loaded machine; what is exact is checked on the true age of the pictures instead."""
BACK_WITHIN_S = 15.0
START_WITHIN_S = 30.0
KEY = IMAGES + "front"


class Bench:
    """A camera process under a supervisor, and an edge that makes an observation every few milliseconds."""

    def __init__(self, folder: Path, keys: KeyStore, supervisor: Supervisor, address: str) -> None:
        self._mode_file = folder / "mode"
        self.supervisor = supervisor
        self.pictures = 0
        self.said: list[str] = []
        self.feed = CameraFeed(
            "front",
            Subscriber(CAMERA_FRAME, address, keys, "edge", "robot", CameraFrame),
            FreshnessJudge(CONFIG.rate_hz, max_age_s=0.2),
        )
        camera = CameraSpec(name="front", model="", serial="", width=64, height=48, rate_hz=CONFIG.rate_hz)
        self._aligner = Aligner(spec_with_cameras(_robot_spec(), [camera]), 1.0, {"front": self.feed})
        self.set_mode("run")
        arguments = [address, str(keys.directory), str(self._mode_file)]
        supervisor.start("camera", [sys.executable, "-m", "tests.faults.camera_process", *arguments])

    def set_mode(self, mode: str) -> None:
        self._mode_file.with_suffix(".new").write_text(mode)
        self._mode_file.with_suffix(".new").rename(self._mode_file)

    def observe(self) -> bool:
        """One observation; False if the policy has to pause. A picture that is older than it may be fails the test."""
        self.supervisor.watch()
        time.sleep(0.005)
        state = RobotState(
            boot="b",
            seq=0,
            stamp_ns=time.monotonic_ns(),
            lifecycle=Lifecycle.ACTIVE,
            features={STATE: np.zeros(1, dtype=np.float32)},
        )
        before_ns = time.monotonic_ns()
        try:
            observation = self._aligner.observe(state, 0, 0, 0)
        except RobotError as error:
            self.said.append(str(error))
            return False
        true_age_s = (before_ns - taken_ns(observation.features[KEY])) / 1e9
        assert true_age_s <= FROZEN_S, f"a picture {true_age_s * 1e3:.0f} ms old passed as fresh"
        # the stamp is read a moment before the picture is taken, so the told age is never the smaller one
        assert observation.age_ns[KEY] / 1e9 >= true_age_s
        self.pictures += 1
        return True

    def until(self, wanted: Callable[[], bool], within_s: float) -> float:
        """Observe until it is so; the seconds it took."""
        began_s = time.monotonic()
        while not wanted():
            took_s = time.monotonic() - began_s
            assert took_s < within_s, f"not within {within_s:g} s; the edge said: {self.said[-1:]}"
        return time.monotonic() - began_s

    def flows(self) -> bool:
        """Ten observations on end."""
        return all(self.observe() for _ in range(10))

    def pauses(self) -> bool:
        return not self.observe()


def _robot_spec() -> RobotSpec:
    return RobotSpec(
        name="robot_0",
        model="test",
        task="none",
        simulated=True,
        control_rate_hz=10.0,
        tick_rate_hz=100.0,
        command_timeout_s=0.15,
        max_episode_steps=10,
        action=vector(("a",), lower=(-1.0,), upper=(1.0,)),
        observation={STATE: vector(("x_m",))},
    )


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    keys = make_keys(tmp_path)
    with Supervisor(tmp_path / "logs", announce=print) as supervisor:
        made = Bench(tmp_path, keys, supervisor, _free_address())
        with made.feed:
            made.until(made.flows, START_WITHIN_S)
            yield made


def test_a_process_that_stands_still_is_noticed_and_a_new_one_takes_over(bench: Bench) -> None:
    stopped = bench.supervisor.pid("camera")
    os.kill(stopped, signal.SIGSTOP)
    assert bench.until(bench.pauses, 5.0) < FROZEN_S + MARGIN_S
    assert "no fresh picture" in bench.said[-1]
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s:
        assert bench.pauses(), "a frozen camera counts as fresh again"
    os.kill(stopped, signal.SIGKILL)
    bench.until(bench.flows, BACK_WITHIN_S)
    assert bench.supervisor.restarts() == {"camera": 1}


def test_a_process_that_goes_on_after_a_pause_sends_nothing_old(bench: Bench) -> None:
    for _ in range(3):
        os.kill(bench.supervisor.pid("camera"), signal.SIGSTOP)
        bench.until(bench.pauses, 5.0)
        os.kill(bench.supervisor.pid("camera"), signal.SIGCONT)
        bench.until(bench.flows, 5.0)
    assert bench.supervisor.restarts() == {"camera": 0}


@pytest.mark.parametrize(
    ("mode", "words"), [("repeat", "repeats picture"), ("stuck_clock", "clock"), ("silent", "no pic")]
)
def test_a_camera_that_hangs_is_told_in_words_and_its_process_started_again(
    bench: Bench, mode: str, words: str, tmp_path: Path
) -> None:
    bench.set_mode(mode)
    assert bench.until(bench.pauses, 5.0) < FROZEN_S + MARGIN_S
    bench.until(lambda: bench.pauses() and words in bench.said[-1], 1.0)
    assert "camera 'front' hangs" in bench.said[-1]
    bench.until(lambda: bench.pauses() and bench.supervisor.restarts() == {"camera": 1}, 10.0)
    bench.set_mode("run")
    bench.until(bench.flows, BACK_WITHIN_S)
    assert CameraHangsError.exit_code >= 64, "the supervisor takes a smaller code as one that a restart cannot cure"
    assert "hangs: nothing fresh" in (tmp_path / "logs" / "camera.log").read_text()


def test_a_driver_that_never_returns_is_ended_by_the_kernel(bench: Bench, tmp_path: Path) -> None:
    bench.set_mode("stuck")
    assert bench.until(bench.pauses, 5.0) < FROZEN_S + MARGIN_S
    bench.until(lambda: bench.pauses() and bench.supervisor.restarts() == {"camera": 1}, 10.0)
    bench.set_mode("run")
    bench.until(bench.flows, BACK_WITHIN_S)
    log = (tmp_path / "logs" / "camera.log").read_text()
    assert "in grab" in log, "the log does not tell where the driver hung"
