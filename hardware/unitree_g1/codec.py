"""The G1's messages as numpy views of their CDR bytes: no copy and no loop over 35 motors.

Encoding: XCDR version 1, little-endian, with the four bytes of encapsulation in front, as DDS carries it. A member is
aligned to its own size, counted from the end of the encapsulation; a structure as such is not aligned. So the first
motor's `mode` directly follows whatever byte stands before it, while that of every later motor comes after a `uint32`:
the first motor's `mode` lies at another place in its record than all others. `modes` hides that.

The checksum is computed over the C layout of the message (there, structures are aligned): CRC-32/MPEG-2 of its
32-bit words, each with the most significant byte first. `zlib.crc32` is the same polynomial with all bits mirrored, so
mirrored bytes in and a mirrored result out give it at C speed.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import MessageError

MOTORS = 35
HAND_MOTORS = 7
PRESS_SENSORS = 9

ENCAPSULATION = bytes((0, 1, 0, 0))

_MIRRORED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))

_MOTOR_COMMAND = np.dtype(
    {
        "names": ["mode", "q", "dq", "tau", "kp", "kd", "reserve"],
        "formats": ["u1", "<f4", "<f4", "<f4", "<f4", "<f4", "<u4"],
        "offsets": [0, 4, 8, 12, 16, 20, 24],
        "itemsize": 28,
    }
)
_MOTOR_STATE = np.dtype(
    {
        "names": ["mode", "q", "dq", "ddq", "tau_est", "temperature", "vol", "sensor", "motorstate", "reserve"],
        "formats": ["u1", "<f4", "<f4", "<f4", "<f4", ("<i2", 2), "<f4", ("<u4", 2), "<u4", ("<u4", 4)],
        "offsets": [0, 4, 8, 12, 16, 20, 24, 28, 36, 40],
        "itemsize": 56,
    }
)
_IMU_STATE = np.dtype(
    {
        "names": ["quaternion", "gyroscope", "accelerometer", "rpy", "temperature"],
        "formats": [("<f4", 4), ("<f4", 3), ("<f4", 3), ("<f4", 3), "<i2"],
        "offsets": [0, 16, 28, 40, 52],
        "itemsize": 54,
    }
)
_PRESS_SENSOR = np.dtype([("pressure", "<f4", 12), ("temperature", "<f4", 12), ("lost", "<u4"), ("reserve", "<u4")])
# Motor 0's record begins where its `mode` would be if it followed a word; `first_mode` is where it really is.
_LOW_COMMAND = np.dtype(
    {
        "names": ["encapsulation", "mode_pr", "mode_machine", "first_mode", "motor", "reserve", "crc"],
        "formats": ["S4", "u1", "u1", "u1", (_MOTOR_COMMAND, MOTORS), ("<u4", 4), "<u4"],
        "offsets": [0, 4, 5, 6, 4, 984, 1000],
        "itemsize": 1004,
    }
)
_LOW_STATE = np.dtype(
    {
        "names": [
            *("encapsulation", "version", "mode_pr", "mode_machine", "tick", "imu", "first_mode", "motor"),
            *("wireless_remote", "reserve", "crc"),
        ],
        "formats": [
            *("S4", ("<u4", 2), "u1", "u1", "<u4", _IMU_STATE, "u1", (_MOTOR_STATE, MOTORS)),
            *(("u1", 40), ("<u4", 4), "<u4"),
        ],
        "offsets": [0, 4, 12, 13, 16, 20, 74, 72, 2032, 2072, 2088],
        "itemsize": 2092,
    }
)
_HAND_COMMAND = np.dtype(
    [("encapsulation", "S4"), ("motors", "<u4"), ("motor", _MOTOR_COMMAND, HAND_MOTORS), ("reserve", "<u4", 4)]
)


@functools.cache
def _hand_state_dtype(sensors: int) -> np.dtype[np.void]:
    imu = 404 + sensors * _PRESS_SENSOR.itemsize
    return np.dtype(
        {
            "names": ["encapsulation", "motors", "motor", "sensors", "sensor", "imu", "power", "error", "reserve"],
            "formats": [
                *("S4", "<u4", (_MOTOR_STATE, HAND_MOTORS), "<u4", (_PRESS_SENSOR, sensors), _IMU_STATE),
                *(("<f4", 4), ("<u4", 2), ("<u4", 2)),
            ],
            "offsets": [0, 4, 8, 400, 404, imu, imu + 56, imu + 72, imu + 80],
            "itemsize": imu + 88,
        }
    )


def crc32_mpeg2_of_words(words: NDArray[np.uint32]) -> int:
    """CRC-32/MPEG-2 (polynomial 0x04C11DB7, start 0xFFFFFFFF, nothing mirrored, no final xor) of 32-bit words, most
    significant byte first."""
    mirrored = zlib.crc32(words.byteswap().tobytes().translate(_MIRRORED)) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def _padding_mask(words: int, first_mode_word: int, motor_words: int) -> NDArray[np.uint32]:
    """All ones, but only the lowest byte where a motor's `mode` stands: padding does not count, whatever it holds."""
    mask = np.full(words, 0xFFFFFFFF, dtype=np.uint32)
    mask[first_mode_word : first_mode_word + MOTORS * motor_words : motor_words] = 0xFF
    return mask


_COMMAND_MASK = _padding_mask(250, 1, 7)
_COMMAND_MASK[0] = 0xFFFF
_STATE_MASK = _padding_mask(522, 18, 14)
_STATE_MASK[[2, 17]] = 0xFFFF


def _checked(cdr: bytes | bytearray, size: int, name: str) -> bytes | bytearray:
    if len(cdr) != size or cdr[:2] != ENCAPSULATION[:2]:
        raise MessageError(
            f"a {name} message of {len(cdr)} bytes with encapsulation {bytes(cdr[:4]).hex()} is not one of {size} "
            "bytes in little-endian CDR; does the robot's firmware use other message definitions?"
        )
    return cdr


def _view(cdr: bytes | bytearray | None, dtype: np.dtype[np.void], name: str) -> tuple[bytes | bytearray, Any]:
    if cdr is None:
        cdr = bytearray(ENCAPSULATION + bytes(dtype.itemsize - len(ENCAPSULATION)))
    return cdr, np.frombuffer(_checked(cdr, dtype.itemsize, name), dtype=dtype).reshape(())


class LowCommand:
    """A LowCmd: a new one, all zero and writable, or a view of received bytes (read-only if they are).

    `motor` (35,) is a structured array with the fields q (rad), dq (rad/s), tau (N m), kp (N m/rad), kd (N m s/rad),
    reserve; use `modes` for the motors' mode bytes. MessageError if the bytes are no LowCmd.
    """

    __slots__ = ("_words", "cdr", "motor", "record")

    def __init__(self, cdr: bytes | bytearray | None = None) -> None:
        self.cdr, self.record = _view(cdr, _LOW_COMMAND, "LowCmd")
        self.motor: NDArray[Any] = self.record["motor"]
        self._words = np.frombuffer(self.cdr, dtype="<u4", count=248, offset=8)

    @property
    def modes(self) -> NDArray[np.uint8]:
        """(35,): a copy."""
        return _modes(self.record, self.motor)

    @modes.setter
    def modes(self, modes: NDArray[np.uint8]) -> None:
        self.motor["mode"][1:] = modes[1:]
        self.record["first_mode"] = modes[0]

    def expected_crc(self) -> int:
        words = np.empty(250, dtype=np.uint32)
        cdr = self.cdr
        words[0] = cdr[4] | cdr[5] << 8
        words[1] = cdr[6]
        words[2:] = self._words
        words &= _COMMAND_MASK
        return crc32_mpeg2_of_words(words)

    def crc_is_good(self) -> bool:
        return int(self.record["crc"]) == self.expected_crc()

    def seal(self) -> bytes:
        """Set the checksum and return the bytes to send."""
        self.record["crc"] = self.expected_crc()
        return bytes(self.cdr)


class LowState:
    """A LowState: a new one, all zero and writable, or a view of received bytes (read-only if they are).

    `motor` (35,) is a structured array with q, dq, ddq, tau_est, temperature (35, 2) in degrees C, vol, sensor,
    motorstate, reserve; `imu` has quaternion (w, x, y, z), gyroscope, accelerometer, rpy, temperature.
    MessageError if the bytes are no LowState.
    """

    __slots__ = ("_words", "cdr", "imu", "motor", "record")

    def __init__(self, cdr: bytes | bytearray | None = None) -> None:
        self.cdr, self.record = _view(cdr, _LOW_STATE, "LowState")
        self.motor: NDArray[Any] = self.record["motor"]
        self.imu = self.record["imu"]
        self._words = np.frombuffer(self.cdr, dtype="<u4", count=521, offset=4)

    @property
    def tick(self) -> int:
        return int(self.record["tick"])

    @property
    def mode_machine(self) -> int:
        return int(self.record["mode_machine"])

    @property
    def modes(self) -> NDArray[np.uint8]:
        """(35,): a copy."""
        return _modes(self.record, self.motor)

    @modes.setter
    def modes(self, modes: NDArray[np.uint8]) -> None:
        self.motor["mode"][1:] = modes[1:]
        self.record["first_mode"] = modes[0]

    def expected_crc(self) -> int:
        words = np.empty(522, dtype=np.uint32)
        words[:18] = self._words[:18]
        words[18] = self.cdr[74]
        words[19:] = self._words[18:]
        words &= _STATE_MASK
        return crc32_mpeg2_of_words(words)

    def crc_is_good(self) -> bool:
        return int(self.record["crc"]) == self.expected_crc()

    def seal(self) -> bytes:
        """Set the checksum and return the bytes to send."""
        self.record["crc"] = self.expected_crc()
        return bytes(self.cdr)


def _modes(record: Any, motor: NDArray[Any]) -> NDArray[np.uint8]:
    modes: NDArray[np.uint8] = motor["mode"].copy()
    modes[0] = record["first_mode"]
    return modes


class HandCommand:
    """A HandCmd of seven motors; `motor` (7,) has mode, q, dq, tau, kp, kd, reserve."""

    __slots__ = ("cdr", "motor", "record")

    def __init__(self, cdr: bytes | bytearray | None = None) -> None:
        self.cdr, self.record = _view(cdr, _HAND_COMMAND, "HandCmd")
        self.motor: NDArray[Any] = self.record["motor"]
        if cdr is None:
            self.record["motors"] = HAND_MOTORS
        _check_motors(int(self.record["motors"]), "HandCmd")


class HandState:
    """A HandState of seven motors and any number of press sensors: `motor` (7,), `sensor` (n,), `imu`, and in
    `record` power (V, A, system V, device V), error (2,), reserve (2,)."""

    __slots__ = ("cdr", "imu", "motor", "record", "sensor")

    def __init__(self, cdr: bytes | bytearray | None = None, *, sensors: int = PRESS_SENSORS) -> None:
        if cdr is not None:
            sensors = int.from_bytes(cdr[400:404], "little")
            # a size that cannot be right is refused below, before a view of such a size is made
            sensors = sensors if sensors * _PRESS_SENSOR.itemsize < len(cdr) else 0
        self.cdr, self.record = _view(cdr, _hand_state_dtype(sensors), "HandState")
        if cdr is None:
            self.record["motors"] = HAND_MOTORS
            self.record["sensors"] = sensors
        _check_motors(int(self.record["motors"]), "HandState")
        self.motor: NDArray[Any] = self.record["motor"]
        self.sensor: NDArray[Any] = self.record["sensor"]
        self.imu = self.record["imu"]


def _check_motors(motors: int, name: str) -> None:
    if motors != HAND_MOTORS:
        raise MessageError(
            f"a {name} message with {motors} motors is not that of a Dex3-1 hand, which has {HAND_MOTORS}"
        )
