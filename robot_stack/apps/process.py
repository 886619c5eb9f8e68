"""What every process of the stack does the same way: ending on a signal, logging, one clear error."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType

from robot_stack.core.errors import RobotStackError

logger = logging.getLogger(__name__)


class Lifetime:
    """`running()` is true until SIGTERM or SIGINT arrives. Use as a context manager in the main thread."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self.interrupted = False

    def __enter__(self) -> Lifetime:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def running(self) -> bool:
        return not self._end.is_set()

    def sleep(self, duration_s: float) -> None:
        """Sleep, but wake at once when the end comes."""
        self._end.wait(duration_s)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self._end.set()


def set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("OpenGL").setLevel(logging.WARNING)


def fail(error: RobotStackError) -> int:
    """Print one clear message and give the exit code."""
    sys.stderr.write(f"robot-stack: {error}\n")
    return type(error).exit_code


def use_one_torch_thread() -> None:
    """Small networks are fastest on one thread, and results do not depend on the number of cores."""
    import torch

    torch.set_num_threads(1)
