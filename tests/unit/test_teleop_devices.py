"""Input devices against their counterparts: servos on a serial bus byte for byte, HID reports through the real
pyspacemouse, encrypted streams, logs; and the link that owns a device."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_stack.core.clock import ManualClock, s_to_ns
from robot_stack.core.errors import AuthenticationError, ConfigError, DeviceError
from robot_stack.core.teleop_device import DeviceReading, PlayedDevice, TeleopDevice, wrong_with
from robot_stack.teleop.device_link import DeviceLink
from robot_stack.teleop.devices.build import build_device
from robot_stack.teleop.devices.leader_arm import LeaderArm
from robot_stack.teleop.devices.replay import LogWriter, RecordedDevice, ReplayDevice, read_log
from robot_stack.teleop.devices.settings import (
    KINDS,
    DeviceSettings,
    LeaderArmSettings,
    LeaderHand,
    LeaderJoint,
    ReplaySettings,
    SpaceMouseSettings,
    ZeroMqSettings,
    device_settings,
)
from robot_stack.teleop.devices.spacemouse import SpaceMouse
from robot_stack.teleop.devices.zeromq import BridgeClock, ZeroMqDevice
from robot_stack.transport.keys import Role
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher
from tests.device_kit import DynamixelBus, HeldDevice, HidMouse
from tests.transport_kit import LOOPBACK, eventually, make_keys

TICK_RAD = 2 * math.pi / 4096


def reading_of(device: TeleopDevice, within_s: float = 5.0) -> DeviceReading:
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        reading = device.read(0.02)
        if reading is not None:
            return reading
    raise AssertionError(f"'{device.name}' said nothing for {within_s} s")


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_word_or_a_file_makes_a_device(tmp_path: Path) -> None:
    mouse = device_settings("mouse", "spacemouse")
    assert mouse == SpaceMouseSettings(name="mouse") and isinstance(build_device(mouse), SpaceMouse)
    path = tmp_path / "gello.json"
    path.write_text('{"kind": "leader_arm", "port": "/dev/x", "joints": [{"name": "a", "id": 1, "sign": -1}]}')
    gello = device_settings("gello", str(path))
    assert isinstance(gello, LeaderArmSettings) and gello.joints == (LeaderJoint(name="a", id=1, sign=-1),)
    assert isinstance(build_device(gello), LeaderArm) and gello.drives_by == "joints"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"kind": "mouse"}', "there is no kind 'mouse'; there are: spacemouse, leader_arm, ros2_joy"),
        ("{}", "there is no kind None"),
        ("[]", "no JSON object"),
        ('{"kind": "spacemouse", "sped": 1}', "sped"),
        ('{"kind": "spacemouse", "speed": 2}', "speed"),
        ('{"kind": "leader_arm", "joints": [{"name": "a", "id": 1}]}', "port"),
        ('{"kind": "leader_arm", "port": "p", "joints": [{"name": "a", "id": 1}, {"name": "b", "id": 1}]}', "own"),
        (
            '{"kind": "leader_arm", "port": "p", "joints": [{"name": "a", "id": 1}],'
            ' "hand": {"id": 2, "open_rad": 1, "closed_rad": 1}}',
            "differ",
        ),
        ('{"kind": "replay", "path": "p", "record": "q"}', "leave 'record' out"),
    ],
)
def test_what_a_file_says_wrong_is_refused_in_words(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "device.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        device_settings("it", str(path))


@pytest.mark.parametrize("given", ["space_mouse", "", "gone.json"])
def test_what_is_neither_a_kind_nor_a_file_is_refused_in_words(given: str) -> None:
    with pytest.raises(ConfigError, match=r"'it': (there is no kind .*spacemouse|gone.json cannot be read)"):
        device_settings("it", given)


def test_every_kind_makes_a_device_and_opens_nothing() -> None:
    more = {"leader_arm": {"port": "p", "joints": [{"name": "a", "id": 1}]}, "replay": {"path": "p"}}
    more["zeromq"] = {"address": "a", "keys_directory": "d"}
    for kind, record in KINDS.items():
        extra = {"topic": "t"} if kind.startswith("ros2") else more.get(kind, {})
        settings = msgspec.convert({"kind": kind, "name": "it", **extra}, record)
        assert settings.drives_by in ("deflection", "pose", "joints") and build_device(settings).name == "it"
    with pytest.raises(ConfigError, match="no device is made of DeviceSettings; there are: spacemouse"):
        build_device(DeviceSettings(name="it"))


@given(st.one_of(st.floats(allow_nan=True), st.just(math.inf)))
def test_no_reading_gets_through_with_what_cannot_be(value: float) -> None:
    fine = -1.0 <= value <= 1.0
    assert bool(wrong_with(DeviceReading(stamp_ns=0, deflection={"x": value}))) is not fine
    assert bool(wrong_with(DeviceReading(stamp_ns=0, hand=value))) is not (0.0 <= value <= 1.0)
    assert bool(wrong_with(DeviceReading(stamp_ns=0, joints={"a": value}))) is not math.isfinite(value)
    place = DeviceReading(stamp_ns=0, pose_in_device=(value, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    assert bool(wrong_with(place)) is not math.isfinite(value)
    turned = DeviceReading(stamp_ns=0, pose_in_device=(0.0, 0.0, 0.0, 0.0, 0.0, value, 0.0))
    assert bool(wrong_with(turned)) is not (abs(abs(value) - 1.0) < 0.01)


# ---- leader arm ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[DynamixelBus]:
    with DynamixelBus(tmp_path / "arm", {1: 2048, 2: -512, 9: 1024}) as plugged:
        yield plugged


def leader(bus: DynamixelBus, **more: object) -> LeaderArmSettings:
    return LeaderArmSettings(
        name="gello",
        port=str(bus.path),
        joints=(LeaderJoint(name="a", id=1, zero_rad=math.pi / 2), LeaderJoint(name="b", id=2, sign=-1)),
        hand=LeaderHand(id=9, open_rad=math.pi / 2, closed_rad=math.pi),
        **more,  # type: ignore[arg-type]
    )


def test_a_leader_arm_tells_its_joints_by_sign_and_zero_and_its_hand(bus: DynamixelBus) -> None:
    arm = LeaderArm(leader(bus))
    arm.open()
    try:
        before_ns = time.monotonic_ns()
        reading = reading_of(arm)
        assert reading.joints == {"a": pytest.approx(math.pi / 2), "b": pytest.approx(512 * TICK_RAD)}
        assert reading.hand == pytest.approx(1.0) and reading.held is None
        assert before_ns <= reading.stamp_ns <= time.monotonic_ns()
        bus.ticks.update({1: 0x00FDFFFF, 9: 1536})  # bytes that look like a header are stuffed
        reading = reading_of(arm)
        assert reading.joints["a"] == pytest.approx(0x00FDFFFF * TICK_RAD - math.pi / 2)
        assert reading.hand == pytest.approx(0.5)
        bus.ticks[9] = 4000
        assert reading_of(arm).hand == 0.0
    finally:
        arm.close()
    assert set(bus.asked) == {0x01, 0x82}  # pings and reads: nothing is ever written to a servo


def test_a_servo_that_is_missing_is_named(bus: DynamixelBus) -> None:
    bus.mute = {2}
    arm = LeaderArm(leader(bus))
    with pytest.raises(DeviceError, match=r"no answer from servo 2 at .*arm, 57600 baud; check its power"):
        arm.open()
    arm.close()


def test_wrong_checksums_are_no_readings_and_end_in_words(bus: DynamixelBus) -> None:
    arm = LeaderArm(leader(bus))
    arm.open()
    try:
        reading_of(arm)
        bus.corrupt = True
        assert arm.read(0.02) is None
        with pytest.raises(DeviceError, match="do not answer"):
            for _ in range(5):
                assert arm.read(0.02) is None
    finally:
        arm.close()


def test_a_leader_arm_is_unplugged_and_plugged_in_again(bus: DynamixelBus) -> None:
    with DeviceLink(LeaderArm(leader(bus))) as link:
        assert isinstance(link, DeviceLink)
        assert eventually(lambda: link.look.reading is not None, 5.0)
        bus.unplug()
        assert eventually(lambda: "gello" in link.look.problem, 5.0) and link.look.reading is None
        bus.ticks[1] = 3072
        bus.plug()
        assert eventually(lambda: link.look.reading is not None, 10.0)
        assert link.look.reading is not None and link.look.reading.joints["a"] == pytest.approx(math.pi)


def test_a_port_that_is_not_there_and_a_baud_rate_that_is_none(bus: DynamixelBus, tmp_path: Path) -> None:
    gone = LeaderArm(msgspec.structs.replace(leader(bus), port=str(tmp_path / "nothing")))
    with pytest.raises(DeviceError, match=r"nothing cannot be opened: .*dialout"):
        gone.open()
    gone.close()
    with pytest.raises(DeviceError, match="12345 is no baud rate"):
        LeaderArm(leader(bus, baud_rate=12345)).open()


# ---- SpaceMouse ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hid() -> HidMouse:
    pytest.importorskip("pyspacemouse")
    return HidMouse()


def test_the_reports_of_a_spacemouse_become_deflections(hid: HidMouse) -> None:
    mouse = SpaceMouse(SpaceMouseSettings(name="mouse"), hid.opened_as)
    mouse.open()
    assert mouse.read(0.01) is None  # at rest it says nothing
    hid.says(0, -350, -175, 0, 0, 0)  # pushed away from the person, and half up
    assert reading_of(mouse).deflection == {
        "x": pytest.approx(1.0),
        "y": 0.0,
        "z": pytest.approx(0.5),
        "roll": 0.0,
        "pitch": 0.0,
        "yaw": 0.0,
    }
    hid.says(-500, 0, 0, 0, 0, 0)  # to the left, further than the device's nominal end
    assert reading_of(mouse).deflection["y"] == 1.0
    hid.says(0, 0, 0, 0, 0, 0)
    assert not any(reading_of(mouse).deflection.values())
    mouse.close()
    assert hid.closed == 1


def test_only_the_newest_of_many_reports_is_given(hid: HidMouse) -> None:
    mouse = SpaceMouse(SpaceMouseSettings(name="mouse"), hid.opened_as)
    mouse.open()  # and the first thing that it says is not lost
    for step in range(0, 351, 50):
        hid.says(0, -step, 0, 0, 0, 0)
    assert reading_of(mouse).deflection["x"] == pytest.approx(1.0)
    assert mouse.read(0.0) is None


def test_a_button_is_repeated_while_it_is_pressed_but_an_old_deflection_is_not(hid: HidMouse) -> None:
    mouse = SpaceMouse(SpaceMouseSettings(name="mouse", max_age_s=0.05), hid.opened_as)
    mouse.open()
    hid.says(0, -350, 0, 0, 0, 0)
    hid.presses(1)
    first = reading_of(mouse)
    assert first.hand == 0.0 and first.buttons == ("0",) and first.deflection["x"] == pytest.approx(1.0)
    time.sleep(0.06)
    again = reading_of(mouse)
    assert again.hand == 0.0 and not any(again.deflection.values()) and again.stamp_ns > first.stamp_ns
    hid.presses(2)
    assert reading_of(mouse).hand == 1.0
    hid.presses(0)
    assert reading_of(mouse).hand is None and mouse.read(0.05) is None


def test_a_spacemouse_that_is_unplugged_while_it_is_deflected_is_gone_at_once_and_comes_back(hid: HidMouse) -> None:
    with DeviceLink(SpaceMouse(SpaceMouseSettings(name="mouse"), hid.opened_as)) as link:
        assert isinstance(link, DeviceLink)
        assert eventually(lambda: not link.look.problem, 5.0)
        hid.says(0, -350, 0, 0, 0, 0)
        assert eventually(lambda: link.look.reading is not None, 5.0)
        hid.plugged = False
        assert eventually(lambda: "plug it in again" in link.look.problem, 5.0) and link.look.reading is None
        hid.plugged = True
        assert eventually(lambda: not link.look.problem, 10.0) and link.look.reading is None


def test_without_a_spacemouse_it_says_what_to_do() -> None:
    pytest.importorskip("pyspacemouse")
    with pytest.raises(DeviceError, match="apt-get install libhidapi-hidraw0"):
        SpaceMouse(SpaceMouseSettings(name="mouse", model="NoSuchMouse")).open()


# ---- ZeroMQ ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_bridge_publishes_readings_and_their_age_is_known(tmp_path: Path, opened: ExitStack) -> None:
    keys = make_keys(tmp_path)
    pose = (0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 1.0)
    with Publisher(SERVICES["teleop.device"], LOOPBACK, keys, "device") as bridge:
        device = ZeroMqDevice(ZeroMqSettings(name="vr", address=bridge.address, keys_directory=str(keys.directory)))
        opened.callback(device.close)
        device.open()
        origin_ns, got = 10**15, list[DeviceReading]()

        def said(on_its_way_s: float = 0.0) -> bool:
            stamp_ns = time.monotonic_ns() - origin_ns  # a clock of another origin
            time.sleep(on_its_way_s)
            bridge.send(DeviceReading(stamp_ns=stamp_ns, held=True, pose_in_device=pose, hand=0.5))
            reading = device.read(0.05)
            got.extend([reading] if reading is not None else [])
            return reading is not None

        assert eventually(said, 10.0)
        assert got[0].pose_in_device == pose and got[0].held is True and got[0].hand == 0.5
        assert all(said() for _ in range(20))
        assert eventually(lambda: said() and time.monotonic_ns() - got[-1].stamp_ns < s_to_ns(0.08), 5.0)
        assert said(on_its_way_s=0.3)
        assert time.monotonic_ns() - got[-1].stamp_ns > s_to_ns(0.2)  # what was late on its way is old


def test_only_the_bridge_that_the_settings_name_is_heard_and_only_by_an_operators_key(
    tmp_path: Path, opened: ExitStack
) -> None:
    keys = make_keys(tmp_path)
    with Publisher(SERVICES["teleop.device"], LOOPBACK, keys, "device") as bridge:
        told = ZeroMqSettings(name="vr", address=bridge.address, keys_directory=str(keys.directory))
        with pytest.raises(AuthenticationError, match="lets in: operator"):
            ZeroMqDevice(msgspec.structs.replace(told, key="viewer")).open()
        keys.make("device2", Role.DEVICE)
        device = ZeroMqDevice(msgspec.structs.replace(told, server_key="device2"))
        opened.callback(device.close)
        device.open()
        for _ in range(15):
            bridge.send(DeviceReading(stamp_ns=0, held=True))
            try:
                assert device.read(0.03) is None
            except AuthenticationError:
                break


def test_a_bridge_that_starts_again_has_a_new_clock() -> None:
    clock = BridgeClock()
    assert clock.to_local_ns(1000, 5_000_000) == 5_000_000
    assert clock.to_local_ns(2000, 5_000_900) == 5_000_900  # quicker: the distance is smaller than was thought
    assert clock.to_local_ns(3000, 5_009_000) == 5_001_900
    assert clock.to_local_ns(10, 6_000_000) == 6_000_000


# ---- logs ------------------------------------------------------------------------------------------------------------


def written(path: Path, *after_s: float) -> Path:
    with LogWriter(path) as log:
        for number, at_s in enumerate(after_s):
            log.write(DeviceReading(stamp_ns=s_to_ns(50.0 + at_s), deflection={"x": number / 10}))
    return path


def test_a_log_is_played_as_it_was_recorded_each_time_it_is_begun(tmp_path: Path) -> None:
    path = written(tmp_path / "logs" / "mouse.jsonl", 0.0, 0.02, 0.1, 0.5)
    clock = ManualClock(start_ns=s_to_ns(7.0))
    device = ReplayDevice("log", path, clock.now_ns, lambda duration_s: clock.advance_ns(s_to_ns(duration_s)))
    device.open()
    assert isinstance(device, PlayedDevice) and device.read(0.02) is None
    for _ in range(2):
        begun_ns = clock.now_ns()
        device.begin()
        played = [device.read(0.02) for _ in range(40)]
        came = [one for one in played if one is not None]
        assert [one.stamp_ns - begun_ns for one in came] == [s_to_ns(at_s) for at_s in (0.0, 0.02, 0.1, 0.5)]
        assert [one.deflection["x"] for one in came] == [0.0, 0.1, 0.2, 0.3] and device.over
        clock.advance_ns(s_to_ns(3.0))


def test_a_log_that_was_there_is_kept(tmp_path: Path) -> None:
    path = written(written(tmp_path / "log.jsonl", 0.0, 0.1), 0.0)
    assert len(read_log(path)) == 1 and len(read_log(tmp_path / "log.jsonl.1")) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ('{"stamp_ns": 0}\n{"stamp', "line 2 .* is no reading"),
        ('{"stamp_ns": 5}\n{"stamp_ns": 4}', "line 2 .* older than the line before"),
        ('{"stamp_ns": 0, "deflection": {"x": 7}}', "line 1 .* allowed: -1 to 1"),
    ],
)
def test_a_log_that_is_wrong_is_told_by_its_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(DeviceError, match=words):
        build_device(ReplaySettings(name="log", path=str(path))).open()


def test_a_device_is_recorded_beside_its_use_and_plays_the_same_again(tmp_path: Path) -> None:
    held = HeldDevice("it")
    device = RecordedDevice(held, tmp_path / "it.jsonl")
    device.open()
    said = list[DeviceReading]()
    for number in range(5):
        held.now = {"deflection": {"x": number / 5}, "held": True}
        said.append(reading_of(device))
    held.plugged = False
    with pytest.raises(DeviceError):
        device.read(0.0)
    device.close()
    held.plugged = True
    device.open()  # after the cable was out, the same log goes on
    said.append(reading_of(device))
    kept = read_log(tmp_path / "it.jsonl")
    assert [one.deflection for one in kept] == [one.deflection for one in said]
    assert [one.stamp_ns for one in kept] == [one.stamp_ns - said[0].stamp_ns for one in said]


def test_a_log_that_cannot_be_written_does_not_stop_the_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    held = HeldDevice("it")
    device = RecordedDevice(held, tmp_path / "file" / "it.jsonl")
    device.open()
    held.now = {"held": True}
    assert reading_of(device).held is True


# ---- the link --------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked() -> Iterator[tuple[HeldDevice, DeviceLink, list[str]]]:
    device, seen = HeldDevice("it"), list[str]()
    link = DeviceLink(device)
    link.listen(lambda: seen.append(link.look.problem))
    with ExitStack() as opened:
        opened.enter_context(link)
        assert eventually(lambda: not link.look.problem, 5.0)
        yield device, link, seen


def test_a_device_that_is_gone_has_said_nothing_and_whoever_listens_hears_it_first(
    linked: tuple[HeldDevice, DeviceLink, list[str]],
) -> None:
    device, link, seen = linked
    device.now = {"deflection": {"x": 1.0}}
    assert eventually(lambda: link.look.reading is not None, 5.0)
    device.plugged = False
    assert eventually(lambda: "it' was unplugged" in link.look.problem, 5.0)
    assert link.look.reading is None and "unplugged" in seen[-1]
    assert eventually(lambda: device.closes == 1, 5.0)
    device.plugged = True
    assert eventually(lambda: link.look.reading is not None, 10.0) and device.opens == 2
    assert link.look.opened_ns > 0 and not link.look.problem


@pytest.mark.parametrize("wrong", [{"deflection": {"x": math.nan}}, {"joints": {"a": math.inf}}, {"hand": 2.0}])
def test_a_reading_that_cannot_be_counts_as_gone(
    linked: tuple[HeldDevice, DeviceLink, list[str]], wrong: dict[str, object]
) -> None:
    device, link, _ = linked
    device.now = wrong
    assert eventually(lambda: "says what cannot be" in link.look.problem, 5.0) and link.look.reading is None


def test_a_log_begins_when_it_is_chosen_and_not_before(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 0.0, 0.01, 0.02)
    with DeviceLink(ReplayDevice("log", path)) as link:
        assert isinstance(link, DeviceLink)
        assert eventually(lambda: not link.look.problem, 5.0)
        time.sleep(0.1)
        assert link.look.reading is None
        number = link.begin()
        assert eventually(lambda: link.look.begun == number and link.look.reading is not None, 5.0)
        assert json.loads(path.read_text().splitlines()[0])["stamp_ns"] == 0
