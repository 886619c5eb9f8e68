"""The camera process: owns one camera and publishes its newest fresh picture.

A camera that hangs is told once per frame period, in words, on the same stream. If nothing helps for `give_up_s` the
process ends, and its supervisor starts it again: for most cameras that hang, a new process is the only cure. If the
driver itself never returns, no code of ours runs any more; a timer of the kernel ends the process then.
"""

from __future__ import annotations

import faulthandler
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

import numpy as np

from hardware.cameras.config import CameraServerConfig
from robot_stack.core.clock import NS_PER_S, s_to_ns
from robot_stack.core.errors import CameraHangsError, RobotError
from robot_stack.core.messages import CameraFrame
from robot_stack.core.protocols import Camera, Frame
from robot_stack.edge.freshness import Freshness, FreshnessJudge, Sample
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher

logger = logging.getLogger(__name__)

CAMERA_FRAME = SERVICES["camera.frame"]
CONNECT_RETRY_S = 1.0
WATCHDOG_MARGIN_S = 1.0
_NOTHING = np.zeros((0, 0, 3), dtype=np.uint8)


class CameraServer:
    """Publishes one camera until `keep_running` says no. The publisher is opened by the caller's `with`.

    `alive` is called in every round, and has to be called again within `give_up_s` and a second.
    """

    def __init__(
        self,
        camera: Camera,
        config: CameraServerConfig,
        frames: Publisher,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._camera = camera
        self._name = camera.spec.name
        self._period_s = 1.0 / camera.spec.rate_hz
        self._give_up_ns = s_to_ns(config.give_up_s)
        self._frames = frames
        self._alive = alive
        self._boot = uuid4().hex
        self._judge = FreshnessJudge(camera.spec.rate_hz, config.max_age_s)
        self._problem = ""
        self._told_ns = 0
        self.published = 0
        self.dropped: Counter[str] = Counter()

    def run(self, keep_running: Callable[[], bool]) -> None:
        """Connect, publish, and close the camera; CameraHangsError if it hangs for good."""
        try:
            self._judge.silent_ns(time.monotonic_ns())
            connected = False
            while keep_running():
                self._alive()
                if not connected:
                    connected = self._connect()
                    continue
                frame = self._grab()
                if frame is not None and self._is_fresh(frame):
                    self._publish(frame)
                self._tell_if_it_hangs()
        finally:
            self._camera.close()

    def _connect(self) -> bool:
        """True once connected. A camera that is away may be plugged in again; wrong settings end the process."""
        try:
            self._camera.connect()
        except RobotError as error:
            self._problem = str(error)
            self._tell_if_it_hangs()
            time.sleep(min(CONNECT_RETRY_S, self._give_up_ns / NS_PER_S / 2))
            return False
        self._problem = ""
        logger.info("camera '%s' (%s) publishes at %s", self._name, self._camera.spec.model, self._frames.address)
        return True

    def _grab(self) -> Frame | None:
        """The next picture; None if none came within a period or the driver failed."""
        began_s = time.monotonic()
        try:
            frame = self._camera.grab(self._period_s)
        except RobotError as error:
            self._problem = str(error)
            time.sleep(max(0.0, began_s + self._period_s - time.monotonic()))
            return None
        if frame is None:
            self._problem = "no picture came"
        return frame

    def _is_fresh(self, frame: Frame) -> bool:
        sample = Sample(self._boot, frame.number, frame.device_time_ns, frame.stamp_ns)
        verdict = self._judge.take(sample, time.monotonic_ns())
        if verdict.usable:
            self._problem = ""
            return True
        self.dropped[verdict.value] += 1
        self._problem = _IN_WORDS[verdict].format(number=frame.number)
        return False

    def _publish(self, frame: Frame) -> None:
        self._frames.send(
            CameraFrame(
                boot=self._boot,
                camera=self._name,
                stamp_ns=frame.stamp_ns,
                device_time_ns=frame.device_time_ns,
                number=frame.number,
                image=frame.image,
                depth_mm=frame.depth_mm,
            )
        )
        self.published += 1

    def _tell_if_it_hangs(self) -> None:
        """Publish the fault, once per period; CameraHangsError once it has lasted too long."""
        now_ns = time.monotonic_ns()
        silent_ns = self._judge.silent_ns(now_ns)
        if not self._judge.frozen(now_ns) or now_ns - self._told_ns < s_to_ns(self._period_s):
            return
        self._told_ns = now_ns
        text = f"camera '{self._name}' hangs: nothing fresh for {silent_ns / 1e6:.0f} ms; {self._problem}"
        self._frames.send(
            CameraFrame(
                boot=self._boot,
                camera=self._name,
                stamp_ns=now_ns,
                device_time_ns=0,
                number=-1,
                image=_NOTHING,
                fault=text,
            )
        )
        if silent_ns > self._give_up_ns:
            raise CameraHangsError(f"{text}. The process ends so that it is started again; check cable and power")


_IN_WORDS = {
    Freshness.REPEATED: "it repeats picture {number}, or its clock stands",
    Freshness.FROZEN: "it repeats picture {number}, or its clock stands",
    Freshness.BACKWARDS: "its number or clock went back (picture {number})",
    Freshness.STALE: "its pictures are too old",
    Freshness.CLOCK: "its clock and this host's contradict each other",
}


class KernelWatchdog:
    """Ends this process, with a traceback, unless `alive` is called again in time. Use as a context manager.

    The kernel's timer and the signal's default action need neither the interpreter's lock nor a working thread, so it
    works while a driver's C code hangs and holds the lock.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __enter__(self) -> KernelWatchdog:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
        self.alive()
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        faulthandler.unregister(signal.SIGALRM)

    def alive(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s)


def run_camera(
    config: CameraServerConfig,
    camera: Camera,
    keys: KeyStore,
    key_name: str,
    keep_running: Callable[[], bool],
) -> None:
    """Own this camera and publish it at `config.address` until told to end. For the main thread of a process.

    Raises:
        CameraHangsError: nothing fresh for `config.give_up_s`; its exit code asks for a restart.
        MissingDependencyError, ConfigError: a restart will not help.
    """
    with (
        KernelWatchdog(config.give_up_s + WATCHDOG_MARGIN_S) as watchdog,
        Publisher(CAMERA_FRAME, config.address, keys, key_name) as frames,
    ):
        CameraServer(camera, config, frames, watchdog.alive).run(keep_running)
