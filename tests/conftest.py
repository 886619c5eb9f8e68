"""For the whole suite: how its process ends."""

from __future__ import annotations

import os
import sys

import pytest

_status: list[int] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    _status.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once where both pyrealsense2 and rclpy are loaded: each brings a Fast DDS of its own, and in one process
    their destructors crash at its end. Only the tests load both; a camera process never does."""
    if _status and {"pyrealsense2", "rclpy"} <= set(sys.modules):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status[-1])
