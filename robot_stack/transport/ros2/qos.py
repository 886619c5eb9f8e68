"""Quality of service for every kind of topic. A reliable subscriber receives nothing from a best-effort publisher."""

from __future__ import annotations

from typing import Any

from robot_stack.transport.ros2.link import require_rclpy


def newest_reliable() -> Any:
    """Commands and states that must arrive, newest only. Publishers of it fit every subscriber."""
    return _profile(reliable=True, depth=1)


def newest_best_effort() -> Any:
    """Sensor streams: a subscriber of it fits every publisher, best-effort or reliable."""
    return _profile(reliable=False, depth=1)


def _profile(*, reliable: bool, depth: int) -> Any:
    require_rclpy()
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )
