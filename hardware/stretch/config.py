"""Settings of the Stretch's back-ends."""

from __future__ import annotations

from msgspec import Struct


class StretchRos2Config(Struct, frozen=True, kw_only=True):
    """stretch_ros2's driver node. namespace: below which its topics are. domain_id: DDS domain, -1 for the
    environment's. loopback_only: false to reach other machines. max_state_age_s: an older state is a fault."""

    namespace: str = "stretch_0"
    domain_id: int = -1
    loopback_only: bool = True
    max_state_age_s: float = 0.2
    connect_timeout_s: float = 10.0


class StretchBodyConfig(Struct, frozen=True, kw_only=True):
    """stretch_body, on the robot's own computer."""

    max_state_age_s: float = 0.2
