"""Settings of the Stretch's back-ends."""

from __future__ import annotations

from msgspec import Struct


class StretchRos2Config(Struct, frozen=True, kw_only=True):
    """stretch_ros2's driver node. namespace: below which its topics are (empty on a robot as delivered). domain_id: DDS
    domain, -1 for the environment's. loopback_only: false to reach other machines. max_state_age_s: an older state is
    a fault. engage_timeout_s: for the change to streaming in navigation mode. gripper_unit: of the gripper's entry in
    the streamed command, `finger_rad` or `percent`: the vendor's releases differ, so probe it with an empty gripper.
    base_gain_hz: base velocity per base error. min_battery_v: a lower battery is a fault, 0 for never.
    """

    namespace: str = "stretch_0"
    domain_id: int = -1
    loopback_only: bool = True
    max_state_age_s: float = 0.3
    connect_timeout_s: float = 10.0
    engage_timeout_s: float = 2.0
    gripper_unit: str = "finger_rad"
    base_gain_hz: float = 2.0
    min_battery_v: float = 10.5


class StretchBodyConfig(Struct, frozen=True, kw_only=True):
    """stretch_body, on the robot's own computer. max_state_age_s: an older state is a fault. base_gain_hz: base
    velocity per base error. min_battery_v: a lower battery is a fault, 0 for never."""

    max_state_age_s: float = 0.3
    base_gain_hz: float = 2.0
    min_battery_v: float = 10.5
