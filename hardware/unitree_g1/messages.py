"""The G1's message types, field by field: what goes over its DDS network, as data.

`dds.stock_type` turns an entry into the type that CycloneDDS matches by name and member; `codec` writes and reads the
same messages as bytes. Names, order and types are those of the vendor's interface packages `unitree_hg` and
`unitree_api`.
"""

from __future__ import annotations

from typing import NamedTuple

SEQUENCE = 0

LOW_COMMAND = "unitree_hg::msg::dds_::LowCmd_"
LOW_STATE = "unitree_hg::msg::dds_::LowState_"
HAND_COMMAND = "unitree_hg::msg::dds_::HandCmd_"
HAND_STATE = "unitree_hg::msg::dds_::HandState_"
REQUEST = "unitree_api::msg::dds_::Request_"
RESPONSE = "unitree_api::msg::dds_::Response_"

_MOTOR_COMMAND = "unitree_hg::msg::dds_::MotorCmd_"
_MOTOR_STATE = "unitree_hg::msg::dds_::MotorState_"
_IMU_STATE = "unitree_hg::msg::dds_::IMUState_"
_PRESS_SENSOR_STATE = "unitree_hg::msg::dds_::PressSensorState_"
_REQUEST_IDENTITY = "unitree_api::msg::dds_::RequestIdentity_"
_REQUEST_LEASE = "unitree_api::msg::dds_::RequestLease_"
_REQUEST_POLICY = "unitree_api::msg::dds_::RequestPolicy_"
_REQUEST_HEADER = "unitree_api::msg::dds_::RequestHeader_"
_RESPONSE_STATUS = "unitree_api::msg::dds_::ResponseStatus_"
_RESPONSE_HEADER = "unitree_api::msg::dds_::ResponseHeader_"


class Field(NamedTuple):
    """A member: `kind` is a basic IDL type or the name of another message; `length` None: one value, a number: an
    array of it, SEQUENCE: a sequence of any length."""

    name: str
    kind: str
    length: int | None = None


MESSAGES: dict[str, tuple[Field, ...]] = {
    _MOTOR_COMMAND: (
        Field("mode", "uint8"),
        Field("q", "float32"),
        Field("dq", "float32"),
        Field("tau", "float32"),
        Field("kp", "float32"),
        Field("kd", "float32"),
        Field("reserve", "uint32"),
    ),
    LOW_COMMAND: (
        Field("mode_pr", "uint8"),
        Field("mode_machine", "uint8"),
        Field("motor_cmd", _MOTOR_COMMAND, 35),
        Field("reserve", "uint32", 4),
        Field("crc", "uint32"),
    ),
    _IMU_STATE: (
        Field("quaternion", "float32", 4),
        Field("gyroscope", "float32", 3),
        Field("accelerometer", "float32", 3),
        Field("rpy", "float32", 3),
        Field("temperature", "int16"),
    ),
    _MOTOR_STATE: (
        Field("mode", "uint8"),
        Field("q", "float32"),
        Field("dq", "float32"),
        Field("ddq", "float32"),
        Field("tau_est", "float32"),
        Field("temperature", "int16", 2),
        Field("vol", "float32"),
        Field("sensor", "uint32", 2),
        Field("motorstate", "uint32"),
        Field("reserve", "uint32", 4),
    ),
    LOW_STATE: (
        Field("version", "uint32", 2),
        Field("mode_pr", "uint8"),
        Field("mode_machine", "uint8"),
        Field("tick", "uint32"),
        Field("imu_state", _IMU_STATE),
        Field("motor_state", _MOTOR_STATE, 35),
        Field("wireless_remote", "uint8", 40),
        Field("reserve", "uint32", 4),
        Field("crc", "uint32"),
    ),
    HAND_COMMAND: (
        Field("motor_cmd", _MOTOR_COMMAND, SEQUENCE),
        Field("reserve", "uint32", 4),
    ),
    _PRESS_SENSOR_STATE: (
        Field("pressure", "float32", 12),
        Field("temperature", "float32", 12),
        Field("lost", "uint32"),
        Field("reserve", "uint32"),
    ),
    HAND_STATE: (
        Field("motor_state", _MOTOR_STATE, SEQUENCE),
        Field("press_sensor_state", _PRESS_SENSOR_STATE, SEQUENCE),
        Field("imu_state", _IMU_STATE),
        Field("power_v", "float32"),
        Field("power_a", "float32"),
        Field("system_v", "float32"),
        Field("device_v", "float32"),
        Field("error", "uint32", 2),
        Field("reserve", "uint32", 2),
    ),
    _REQUEST_IDENTITY: (Field("id", "int64"), Field("api_id", "int64")),
    _REQUEST_LEASE: (Field("id", "int64"),),
    _REQUEST_POLICY: (Field("priority", "int32"), Field("noreply", "bool")),
    _REQUEST_HEADER: (
        Field("identity", _REQUEST_IDENTITY),
        Field("lease", _REQUEST_LEASE),
        Field("policy", _REQUEST_POLICY),
    ),
    REQUEST: (
        Field("header", _REQUEST_HEADER),
        Field("parameter", "string"),
        Field("binary", "uint8", SEQUENCE),
    ),
    _RESPONSE_STATUS: (Field("code", "int32"),),
    _RESPONSE_HEADER: (Field("identity", _REQUEST_IDENTITY), Field("status", _RESPONSE_STATUS)),
    RESPONSE: (
        Field("header", _RESPONSE_HEADER),
        Field("data", "string"),
        Field("binary", "uint8", SEQUENCE),
    ),
}
