"""Settings of the G1's back-ends."""

from __future__ import annotations

from msgspec import Struct


class G1BusConfig(Struct, frozen=True, kw_only=True):
    """The robot's DDS network (back-end `dds`), or the same topics through ROS 2 (back-end `ros2`).

    domain_id: 0 on the robot. interface: network interface; `lo` stays on this machine. hands: `none` or `dex3`.
    kp, kd: joint gains of the arms; waist_gain_scale multiplies both for the waist. weight_rise_s, weight_fall_s:
    seconds for the arm_sdk weight to ramp from 0 to 1 and back. max_tilt_rad: of the pelvis, beyond it the robot is damped.
    """

    domain_id: int = 0
    interface: str = "lo"
    hands: str = "none"
    kp: float = 60.0
    kd: float = 1.5
    waist_gain_scale: float = 4.0
    weight_rise_s: float = 1.0
    weight_fall_s: float = 2.0
    max_tilt_rad: float = 1.0
    max_state_age_s: float = 0.05
    connect_timeout_s: float = 10.0
