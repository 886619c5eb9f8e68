"""The G1's fast codec against CycloneDDS's own serialisation: every field, both ways, in memory and over the wire."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from hardware.unitree_g1 import dds, messages
from hardware.unitree_g1.codec import (
    HAND_MOTORS,
    MOTORS,
    HandCommand,
    HandState,
    LowCommand,
    LowState,
    crc32_mpeg2_of_words,
)
from hardware.unitree_g1.rpc import Request, Response, decode_request, decode_response, encode_request, encode_response
from robot_stack.core.errors import MessageError

_CLAIMS: list[socket.socket] = []


def claim_domain() -> int:
    """A DDS domain that no other test process uses: its number is claimed through a TCP port until this one ends."""
    for offset in range(70):
        domain = 20 + (os.getpid() + offset) % 70
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", 41000 + domain))
        except OSError:
            claim.close()
            continue
        _CLAIMS.append(claim)
        return domain
    raise AssertionError("all DDS domains from 20 to 89 are in use by other tests")


DOMAIN = claim_domain()
ROUNDS = 30

_RANGES = {"uint8": 2**8, "uint32": 2**32, "int16": 2**15, "int32": 2**31, "int64": 2**63}


def random_message(name: str, rng: np.random.Generator, lengths: dict[str, int]) -> Any:
    """A stock message of that type, every field random. `lengths`: of the sequences, by field name."""
    values = {}
    for field in messages.MESSAGES[name]:
        length = lengths[field.name] if field.length == messages.SEQUENCE else field.length
        values[field.name] = (
            random_value(field.kind, rng, lengths)
            if length is None
            else [random_value(field.kind, rng, lengths) for _ in range(length)]
        )
    return dds.stock_type(name)(**values)


def random_value(kind: str, rng: np.random.Generator, lengths: dict[str, int]) -> Any:
    if kind in messages.MESSAGES:
        return random_message(kind, rng, lengths)
    if kind == "float32":
        return float(np.float32(rng.normal(0.0, 1e3)))
    if kind == "string":
        return "".join(chr(code) for code in rng.integers(0x20, 0x2FF, rng.integers(0, 40)))
    if kind == "bool":
        return bool(rng.integers(2))
    lowest = -_RANGES[kind] if kind.startswith("int") else 0
    return int(rng.integers(lowest, _RANGES[kind] - 1, dtype=np.int64 if lowest else np.uint64))


def fields_of(kind: str) -> list[str]:
    return [field.name for field in messages.MESSAGES[f"unitree_hg::msg::dds_::{kind}_"]]


def assert_motors_equal(motor: Any, modes: Any, stock: Any, kind: str) -> None:
    """A structured array of motors equals the stock messages, `mode` compared through `modes`."""
    np.testing.assert_array_equal(modes, [each.mode for each in stock])
    for name in fields_of(kind)[1:]:
        np.testing.assert_array_equal(motor[name], [getattr(each, name) for each in stock], err_msg=name)


def fill_motors(motor: Any, stock: Any, kind: str) -> None:
    for name in fields_of(kind)[1:]:
        motor[name] = [getattr(each, name) for each in stock]


def assert_imu_equal(imu: Any, stock: Any) -> None:
    for name in fields_of("IMUState"):
        np.testing.assert_array_equal(imu[name], getattr(stock, name), err_msg=name)


def fill_imu(imu: Any, stock: Any) -> None:
    for name in fields_of("IMUState"):
        imu[name] = getattr(stock, name)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_low_command_both_ways(seed: int) -> None:
    stock = random_message(messages.LOW_COMMAND, np.random.default_rng(seed), {})
    decoded = LowCommand(stock.serialize())
    assert_motors_equal(decoded.motor, decoded.modes, stock.motor_cmd, "MotorCmd")
    for name in ("mode_pr", "mode_machine", "reserve", "crc"):
        np.testing.assert_array_equal(decoded.record[name], getattr(stock, name), err_msg=name)

    encoded = LowCommand()
    fill_motors(encoded.motor, stock.motor_cmd, "MotorCmd")
    encoded.modes = np.array([each.mode for each in stock.motor_cmd], dtype=np.uint8)
    for name in ("mode_pr", "mode_machine", "reserve", "crc"):
        encoded.record[name] = getattr(stock, name)
    assert bytes(encoded.cdr) == stock.serialize()
    assert dds.stock_type(messages.LOW_COMMAND).deserialize(bytes(encoded.cdr)) == stock


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_low_state_both_ways(seed: int) -> None:
    stock = random_message(messages.LOW_STATE, np.random.default_rng(seed), {})
    plain = ("version", "mode_pr", "mode_machine", "tick", "wireless_remote", "reserve", "crc")
    decoded = LowState(stock.serialize())
    assert_motors_equal(decoded.motor, decoded.modes, stock.motor_state, "MotorState")
    assert_imu_equal(decoded.imu, stock.imu_state)
    for name in plain:
        np.testing.assert_array_equal(decoded.record[name], getattr(stock, name), err_msg=name)

    encoded = LowState()
    fill_motors(encoded.motor, stock.motor_state, "MotorState")
    fill_imu(encoded.imu, stock.imu_state)
    encoded.modes = np.array([each.mode for each in stock.motor_state], dtype=np.uint8)
    for name in plain:
        encoded.record[name] = getattr(stock, name)
    assert bytes(encoded.cdr) == stock.serialize()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_hand_command_both_ways(seed: int) -> None:
    stock = random_message(messages.HAND_COMMAND, np.random.default_rng(seed), {"motor_cmd": HAND_MOTORS})
    decoded = HandCommand(stock.serialize())
    assert_motors_equal(decoded.motor, decoded.motor["mode"], stock.motor_cmd, "MotorCmd")
    np.testing.assert_array_equal(decoded.record["reserve"], stock.reserve)

    encoded = HandCommand()
    fill_motors(encoded.motor, stock.motor_cmd, "MotorCmd")
    encoded.motor["mode"] = [each.mode for each in stock.motor_cmd]
    encoded.record["reserve"] = stock.reserve
    assert bytes(encoded.cdr) == stock.serialize()


@pytest.mark.parametrize("sensors", [0, 1, 9, 12])
def test_hand_state_both_ways(sensors: int) -> None:
    lengths = {"motor_state": HAND_MOTORS, "press_sensor_state": sensors}
    stock = random_message(messages.HAND_STATE, np.random.default_rng(sensors), lengths)
    power = ("power_v", "power_a", "system_v", "device_v")
    decoded = HandState(stock.serialize())
    assert_motors_equal(decoded.motor, decoded.motor["mode"], stock.motor_state, "MotorState")
    assert_imu_equal(decoded.imu, stock.imu_state)
    np.testing.assert_array_equal(decoded.record["power"], [getattr(stock, name) for name in power])
    for name in fields_of("PressSensorState"):
        expected = [getattr(each, name) for each in stock.press_sensor_state]
        np.testing.assert_array_equal(decoded.sensor[name].tolist(), expected)

    encoded = HandState(sensors=sensors)
    fill_motors(encoded.motor, stock.motor_state, "MotorState")
    encoded.motor["mode"] = [each.mode for each in stock.motor_state]
    fill_imu(encoded.imu, stock.imu_state)
    for name in fields_of("PressSensorState"):
        for index, each in enumerate(stock.press_sensor_state):
            encoded.sensor[name][index] = getattr(each, name)
    encoded.record["power"] = [getattr(stock, name) for name in power]
    encoded.record["error"], encoded.record["reserve"] = stock.error, stock.reserve
    assert bytes(encoded.cdr) == stock.serialize()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_requests_and_responses_both_ways(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stock = random_message(messages.REQUEST, rng, {"binary": seed % 7})
    ours = Request(
        id=stock.header.identity.id,
        api_id=stock.header.identity.api_id,
        parameter=stock.parameter,
        lease_id=stock.header.lease.id,
        priority=stock.header.policy.priority,
        no_reply=stock.header.policy.noreply,
        binary=bytes(stock.binary),
    )
    assert decode_request(padded(stock.serialize())) == ours
    assert encode_request(ours) == padded(stock.serialize())

    stock = random_message(messages.RESPONSE, rng, {"binary": seed % 5})
    identity = stock.header.identity
    answer = Response(
        id=identity.id,
        api_id=identity.api_id,
        code=stock.header.status.code,
        data=stock.data,
        binary=bytes(stock.binary),
    )
    assert decode_response(padded(stock.serialize())) == answer
    assert encode_response(answer) == padded(stock.serialize())


def padded(cdr: bytes) -> bytes:
    """As CycloneDDS pads a message before it sends it."""
    return cdr + bytes(-len(cdr) % 4)


# ---- checksum ---------------------------------------------------------------------------------------------------


def reference_crc(words: list[int]) -> int:
    """CRC-32/MPEG-2, bit by bit."""
    crc = 0xFFFFFFFF
    for word in words:
        crc ^= word
        for _ in range(32):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


# C aligns a structure to its largest member; CDR does not.
ALIGNED: tuple[str, Any] = ("<u4", [])


def words_of(*parts: tuple[str, Any]) -> list[int]:
    """The C layout of these values, each aligned to its size, as little-endian words without the last one."""
    layout = bytearray()
    for dtype, values in parts:
        array = np.atleast_1d(np.asarray(values, dtype=dtype))
        layout += bytes(-len(layout) % array.itemsize) + array.tobytes()
    layout += bytes(-len(layout) % 4)
    return np.frombuffer(bytes(layout), dtype="<u4").tolist()


def test_known_checksums() -> None:
    assert crc32_mpeg2_of_words(np.frombuffer(b"4321", dtype="<u4")) == reference_crc([0x31323334])
    assert LowCommand().expected_crc() == 0xFE172F9F
    command = LowCommand()
    command.record["mode_machine"] = 5
    command.modes = np.array([1] * 29 + [0] * 6, dtype=np.uint8)
    command.motor["q"][:29] = [0.1 * index for index in range(29)]
    command.motor["kp"][:29], command.motor["kd"][:29] = 60.0, 1.5
    assert command.expected_crc() == 0x91D932DB


@pytest.mark.parametrize("seed", range(5))
def test_checksums_are_those_of_the_c_layout(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stock = random_message(messages.LOW_COMMAND, rng, {})
    parts: list[tuple[str, Any]] = [("u1", [stock.mode_pr, stock.mode_machine])]
    for motor in stock.motor_cmd:
        parts += [ALIGNED, ("u1", motor.mode), ("<f4", [motor.q, motor.dq, motor.tau, motor.kp, motor.kd])]
        parts.append(("<u4", motor.reserve))
    words = words_of(*parts, ("<u4", stock.reserve))
    assert len(words) == 250
    assert LowCommand(stock.serialize()).expected_crc() == reference_crc(words)

    state = random_message(messages.LOW_STATE, rng, {})
    imu = state.imu_state
    parts = [("<u4", state.version), ("u1", [state.mode_pr, state.mode_machine]), ("<u4", state.tick)]
    parts += [("<f4", [*imu.quaternion, *imu.gyroscope, *imu.accelerometer, *imu.rpy]), ("<i2", imu.temperature)]
    for each in state.motor_state:
        parts += [ALIGNED, ("u1", each.mode), ("<f4", [each.q, each.dq, each.ddq, each.tau_est])]
        parts += [("<i2", each.temperature), ("<f4", each.vol)]
        parts += [("<u4", [*each.sensor, each.motorstate, *each.reserve])]
    words = words_of(*parts, ("u1", state.wireless_remote), ("<u4", state.reserve))
    assert len(words) == 522
    assert LowState(state.serialize()).expected_crc() == reference_crc(words)


@pytest.mark.parametrize("message", [LowCommand, LowState])
def test_a_changed_bit_shows_and_padding_does_not_count(message: type[LowCommand] | type[LowState]) -> None:
    sealed = message()
    sealed.motor["q"] = np.arange(MOTORS)
    cdr = sealed.seal()
    padding = set(range(len(cdr))) - {offset for offset in range(4, len(cdr) - 4) if is_data(message, offset)}
    for offset in range(4, len(cdr)):
        changed = bytearray(cdr)
        changed[offset] ^= 0x10
        is_padding = offset in padding and offset < len(cdr) - 4
        assert message(bytes(changed)).crc_is_good() == is_padding, offset
    assert message(cdr).crc_is_good()


def is_data(message: type[LowCommand] | type[LowState], offset: int) -> bool:
    """Whether that byte of the CDR belongs to a member: padding follows each motor's `mode` only."""
    first_mode, stride = (6, 28) if message is LowCommand else (74, 56)
    header = 4 if message is LowCommand else 72
    if message is LowState and offset in (14, 15):
        return False
    in_record, motor = (offset - header) % stride, (offset - header) // stride
    if not 0 <= motor < MOTORS or offset < header:
        return True
    if motor == 0:
        return offset <= first_mode or in_record >= 4
    return in_record == 0 or in_record >= 4


# ---- hostile bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [LowCommand, LowState, HandCommand, HandState, decode_request, decode_response])
def test_damaged_messages_are_refused(decode: Callable[[bytes], object]) -> None:
    rng = np.random.default_rng(0)
    for length in [*range(64), 216, 220, 1000, 1004, 1500, 2092]:
        cdr = rng.bytes(length)
        with pytest.raises(MessageError):
            decode(b"\x00\x00" + cdr[2:] if length > 1 else cdr)
    for length in range(0, 200):
        cdr = b"\x00\x01\x00\x00" + rng.bytes(length)
        try:
            decode(cdr)
        except MessageError:
            continue
        assert decode in (decode_request, decode_response), f"{length} random bytes were taken for a message"


# ---- over the wire ----------------------------------------------------------------------------------------------


def receive(take: Callable[[], list[Any]]) -> Any:
    deadline_s = time.monotonic() + 10.0
    while time.monotonic() < deadline_s:
        samples = take()
        if samples:
            return samples[-1]
        time.sleep(0.005)
    raise AssertionError("nothing arrived within 10 s")


CASES = [
    (messages.LOW_COMMAND, {}),
    (messages.LOW_STATE, {}),
    (messages.HAND_COMMAND, {"motor_cmd": 7}),
    (messages.HAND_STATE, {"motor_state": 7, "press_sensor_state": 9}),
    (messages.REQUEST, {"binary": 3}),
    (messages.RESPONSE, {"binary": 2}),
]


ECHO = """
import sys, time
from cyclonedds.domain import DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from hardware.unitree_g1 import dds
link = dds.DdsLink(int(sys.argv[1]), "lo")
participant = DomainParticipant(int(sys.argv[1]))
pairs = []
for index, name in enumerate(sys.argv[2:]):
    there, back = (Topic(participant, f"rt/{way}{index}", dds.stock_type(name)) for way in ("there", "back"))
    pairs.append((DataReader(participant, there), DataWriter(participant, back)))
while True:
    for reader, writer in pairs:
        for sample in reader.take():
            if hasattr(sample, "__idl__"):
                writer.write(sample)
    time.sleep(0.002)
"""


def test_the_stock_side_in_another_process_echoes_every_message() -> None:
    """Fast writer -> stock reader -> stock writer -> fast reader, and all bytes are as they were."""
    names = [name for name, _ in CASES]
    echo = subprocess.Popen([sys.executable, "-c", ECHO, str(DOMAIN), *names])
    link = dds.DdsLink(DOMAIN, "lo")
    try:
        for index, (name, lengths) in enumerate(CASES):
            cdr = padded(random_message(name, np.random.default_rng(index), lengths).serialize())
            writer, reader = link.writer(f"rt/there{index}", name), link.reader(f"rt/back{index}", name)
            assert receive(partial(write_and_take, writer, cdr, reader)) == cdr, name
    finally:
        echo.kill()
        echo.wait()
        link.close()


def write_and_take(writer: dds.RawWriter, cdr: bytes, reader: dds.RawReader) -> list[bytes]:
    writer.write(cdr)
    return reader.take()


def test_a_writer_that_leaves_is_no_message() -> None:
    reading, writing = dds.DdsLink(DOMAIN, "lo"), dds.DdsLink(DOMAIN, "lo")
    reader = reading.reader("rt/leaving", messages.LOW_STATE, 8)
    writer = writing.writer("rt/leaving", messages.LOW_STATE)
    cdr = LowState().seal()
    assert receive(partial(write_and_take, writer, cdr, reader)) == cdr
    reader.take()
    del writer
    writing.close()
    time.sleep(0.2)
    assert reader.take() == []
    reading.close()
