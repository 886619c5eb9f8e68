"""A camera process whose camera goes wrong on command: `python -m tests.faults.camera_process ADDRESS KEYS MODE_FILE`.

The mode file holds one word, read before every picture; the first 8 bytes of every picture are the time at which it
was really taken, so a test knows its true age whatever number and stamps say.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from hardware.cameras.config import CameraServerConfig, SimulatedCameraConfig
from hardware.cameras.sim import SimulatedCamera, simulated_spec
from robot_stack.apps.camera import run_camera
from robot_stack.apps.process import Lifetime, fail
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import Array
from robot_stack.core.protocols import Frame
from robot_stack.transport.keys import KeyStore

CONFIG = SimulatedCameraConfig(name="front", width=64, height=48, rate_hz=30.0)
GIVE_UP_S = 1.0


def picture() -> Array:
    image = np.zeros((CONFIG.height, CONFIG.width, 3), dtype=np.uint8)
    image[0].reshape(-1)[:8] = np.frombuffer(np.int64(time.monotonic_ns()).tobytes(), dtype=np.uint8)
    return image


def taken_ns(image: Array) -> int:
    return int(np.frombuffer(image[0].reshape(-1)[:8].tobytes(), dtype=np.int64)[0])


class FailingCamera(SimulatedCamera):
    """run: nothing is wrong. repeat: the last picture again, newly stamped. stuck_clock: and newly numbered. silent: no
    picture. stuck: the driver never returns."""

    def __init__(self, mode_file: Path) -> None:
        super().__init__(simulated_spec(CONFIG), picture)
        self._mode_file = mode_file
        self._last: Frame | None = None

    def grab(self, timeout_s: float) -> Frame | None:
        mode = self._mode_file.read_text().strip()
        while mode == "stuck":
            time.sleep(1.0)
        fresh = super().grab(timeout_s)
        if mode == "run" or fresh is None or self._last is None:
            self._last = fresh or self._last
            return fresh
        if mode == "silent":
            return None
        number = fresh.number if mode == "stuck_clock" else self._last.number
        return replace(self._last, stamp_ns=fresh.stamp_ns, number=number)


def main(address: str, keys: str, mode_file: str) -> int:
    config = CameraServerConfig(address=address, give_up_s=GIVE_UP_S)
    try:
        with Lifetime() as lifetime:
            run_camera(config, FailingCamera(Path(mode_file)), KeyStore(Path(keys)), "robot", lifetime.running)
    except RobotStackError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
