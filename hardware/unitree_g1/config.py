"""Settings of the G1's back-ends."""

from __future__ import annotations

from msgspec import Struct


class G1BusConfig(Struct, frozen=True, kw_only=True):
    """The robot's DDS network (back-end `dds`), or the same topics through ROS 2 (back-end `ros2`).

    domain_id: 0 on the robot. interface: network interface; `lo` stays on this machine. hands: `none` or `dex3`.
    kp, kd: joint gains of the arms; waist_gain_scale multiplies both for the waist. weight_rise_s, weight_fall_s:
    seconds for the arm_sdk weight to ramp from 0 to 1 and back. max_tilt_rad: of the pelvis; beyond it the robot is
    damped. dex3_right_order: which finger comes after the right hand's thumb, `index_first` (as the vendor's
    teleoperation sends it) or `middle_first` (as its model file lists it). hand_kp, hand_kd: gains of the hands.
    max_motor_temperature_c: of casing or winding. motor_error_mask: bits of a motor's error word that count.
    """

    domain_id: int = 0
    interface: str = "lo"
    hands: str = "none"
    kp: float = 80.0
    kd: float = 3.0
    waist_gain_scale: float = 4.0
    weight_rise_s: float = 1.0
    weight_fall_s: float = 2.0
    max_tilt_rad: float = 1.0
    max_state_age_s: float = 0.05
    connect_timeout_s: float = 10.0
    dex3_right_order: str = "index_first"
    hand_kp: float = 1.5
    hand_kd: float = 0.1
    max_motor_temperature_c: float = 100.0
    motor_error_mask: int = 0xFFFFFFFF
