"""Parts of the teleop server alone: messages, flow control, access, clocks, and who has control."""

from __future__ import annotations

import json
import stat
import struct
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from robot_stack.core.errors import AuthenticationError, ConfigError, MessageError
from robot_stack.core.messages import CameraFrame, Done, Failed
from robot_stack.core.seat import Driven, Intent, Phase
from robot_stack.teleop.access import LoginLimit, Sessions, Tokens
from robot_stack.teleop.audit import Audit
from robot_stack.teleop.certificate import ensure_certificate
from robot_stack.teleop.config import TeleopConfig, TeleopRobot
from robot_stack.teleop.control import Control
from robot_stack.teleop.messages import Drive, Role, decode_page_message
from robot_stack.teleop.page import MAX_DROPPED, Page
from robot_stack.teleop.pictures import HEADER, Flow, PictureBox
from robot_stack.teleop.robot_links import take_frame
from robot_stack.teleop.seat_link import BestOffset, words_of
from robot_stack.teleop.server import check_config, is_loopback

ROBOT = TeleopRobot(
    name="a", seat_address="", seat_state_address="", robot_address="", state_address="", keys_directory=""
)
CONFIG = TeleopConfig(robots=(ROBOT,), directory="")


# ---- messages ----------------------------------------------------------------------------------------------------


def test_a_drive_is_read_by_type() -> None:
    text = '{"type":"drive","robot":"a","seq":3,"deadline_us":9,"intent":"correct","moves":{"dx_m":0.5}}'
    drive = decode_page_message(text)
    assert isinstance(drive, Drive) and drive.intent is Intent.CORRECT and drive.moves == {"dx_m": 0.5}


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        decode_page_message(data)
    except MessageError as error:
        assert "malformed" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"drive","robot":"a","seq":1,"deadline_us":1,"intent":"hold","moves":{"x":"1"}}',
        '{"type":"drive","robot":"a","seq":1,"deadline_us":1,"intent":"hold","moves":{"x":NaN}}',
        '{"type":"drive","robot":"a","seq":1.5,"deadline_us":1,"intent":"hold"}',
        '{"type":"watch","robot":"' + "a" * 65 + '"}',
        '{"type":"label","robot":"a","episode":{"run":"r"}}',
        "[" * 5000,
    ],
)
def test_wrong_values_are_refused(text: str) -> None:
    with pytest.raises(MessageError, match="malformed"):
        decode_page_message(text)


def test_a_large_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(MessageError, match="larger than the 16384 allowed"):
        decode_page_message(" " * 20_000)


def test_refusals_come_in_words() -> None:
    assert words_of(Done()) == ""
    assert words_of(Failed(reason="x", message="not now")) == "not now"
    assert words_of(Driven(seq=1, phase=Phase.PAUSED, refusal="too late")) == "too late"


# ---- pictures and flow -------------------------------------------------------------------------------------------


def test_a_picture_says_whose_it_is_and_when_it_was_taken() -> None:
    box = PictureBox("franka_0", "wrist", 90)
    image = np.full((32, 48, 3), (200, 30, 90), np.uint8)
    box.put(image, 5_000_000_000)
    picture = box.newest
    assert picture is not None and box.problem == ""
    magic, robot, camera, _, number, stamp_us = HEADER.unpack_from(picture.data)
    names = picture.data[HEADER.size : HEADER.size + robot + camera]
    assert (magic, names, number, stamp_us) == (b"RSP1", b"franka_0wrist", 1, 5e6)
    decoded = simplejpeg.decode_jpeg(picture.data[HEADER.size + robot + camera :])
    assert decoded.shape == image.shape and np.abs(decoded.astype(int) - image).max() < 12


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(MessageError, match="wrist"):
        PictureBox("franka_0", "wrist", 90).put(image, 0)


def frame(stamp_ns: int, fault: str = "", size: int = 8) -> CameraFrame:
    image = np.zeros((size, size, 3), np.uint8)
    return CameraFrame(boot="b", camera="c", stamp_ns=stamp_ns, device_time_ns=0, number=1, image=image, fault=fault)


def test_a_hanging_camera_is_told_and_keeps_its_last_picture() -> None:
    box = PictureBox("a", "c", 80)
    take_frame(box, frame(1_000), 2_000)
    take_frame(box, frame(3_000, fault="it hangs", size=0), 4_000)
    assert box.problem == "it hangs" and box.newest is not None and box.newest.stamp_ns == 1_000
    take_frame(box, frame(5_000), 6_000)
    assert box.problem == "" and box.newest.stamp_ns == 5_000


def test_a_stamp_of_another_hosts_clock_is_not_believed() -> None:
    box = PictureBox("a", "c", 80)
    take_frame(box, frame(10**18), 7_000)
    assert box.newest is not None and box.newest.stamp_ns == 7_000


def test_flow_sends_the_newest_and_no_more_than_the_page_takes() -> None:
    flow = Flow(in_flight=2)
    assert [flow.admits(number) for number in (1, 1, 2, 3)] == [True, False, True, False]
    flow.taken(1)
    assert flow.admits(9) and not flow.admits(10)
    flow.taken(9)  # and 2 with it
    assert flow.admits(10) and flow.admits(11) and not flow.admits(12)
    assert not Flow().admits(0)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=80))
def test_flow_never_goes_back_and_never_exceeds_its_window(events: list[tuple[bool, int]]) -> None:
    flow, sent, acknowledged = Flow(in_flight=3), [0], 0
    for is_ack, number in events:
        if is_ack:
            flow.taken(number)
            acknowledged = max(acknowledged, number)
        elif flow.admits(number):
            assert number > sent[-1]
            sent.append(number)
            assert sum(one > acknowledged for one in sent) <= 3


def page(rate_hz: float = 20.0) -> Page:
    sessions = Sessions(60.0)
    session = sessions.find(sessions.open("u", Role.OPERATOR))
    assert session is not None
    return Page(1, session, "", "", rate_hz)


def test_a_page_is_shown_the_newest_state_only() -> None:
    one = page()
    one.show(1, "one")
    one.show(2, "two")
    assert one.texts() == ["two"] and one.texts() == []
    one.show(3, "three")
    assert one.texts() == ["three"]
    one.show(4, "four")
    assert one.texts() == []  # two are on their way
    one.acknowledged("", 3)
    assert one.texts() == ["four"]


def test_a_page_may_say_so_much_and_is_cut_off_in_the_end() -> None:
    one = page(rate_hz=20.0)
    said = sum(one.may_speak() for _ in range(200))
    assert 20 <= said <= 40 and not one.floods
    for _ in range(MAX_DROPPED + 50):
        one.may_speak()
    assert one.floods


def test_a_page_that_never_reads_is_not_told_everything() -> None:
    one = page()
    for _ in range(1000):
        one.refuse("no")
    assert len(one.texts()) <= 64


# ---- clocks ------------------------------------------------------------------------------------------------------


@given(
    offset=st.integers(-(10**15), 10**15),
    ways=st.lists(st.tuples(st.integers(0, 50_000_000), st.integers(0, 50_000_000)), min_size=1, max_size=40),
)
def test_a_deadline_is_never_later_on_the_edges_clock_than_it_was_meant(
    offset: int, ways: list[tuple[int, int]]
) -> None:
    clock = BestOffset()
    for i, (there, back) in enumerate(ways):
        sent = i * 10**9
        clock.measured(sent, sent + there + offset, sent + there + back)
    deadline = 60 * 10**9
    error = min(sum(way) for way in ways[-30:]) + 4
    assert deadline + offset - error <= clock.safe_deadline_ns(deadline) <= deadline + offset


def test_an_old_measurement_is_forgotten_because_clocks_drift() -> None:
    clock = BestOffset(pings=5)
    clock.measured(0, 1_000, 0)  # the best there ever was
    for i in range(5):
        clock.measured(i, i + 9_000_000, i + 100)
    assert clock.to_local_ns(9_000_000) < 1_000


# ---- access ------------------------------------------------------------------------------------------------------


def test_tokens_are_made_once_and_only_their_hashes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "gui" / "tokens.json"
    tokens = Tokens(path)
    made = tokens.ensure()
    assert set(made) == {"admin", "operator", "viewer"} and tokens.ensure() == {}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    assert not any(token.split(".")[1] in content for token in made.values())
    assert tokens.check(made["admin"]).role is Role.ADMIN
    for wrong in (made["admin"][:-1], made["admin"].replace("admin", "viewer"), "admin.", ""):
        with pytest.raises(AuthenticationError, match="not known"):
            tokens.check(wrong)


def test_a_new_token_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    old = tokens.ensure()["viewer"]
    new = tokens.make("viewer", Role.OPERATOR)
    assert tokens.check(new).role is Role.OPERATOR
    with pytest.raises(AuthenticationError):
        tokens.check(old)
    with pytest.raises(ConfigError, match="cannot name a user"):
        tokens.make("a.b", Role.VIEWER)


@pytest.mark.parametrize("harm", ["readable", "torn", "other version"])
def test_tokens_that_cannot_be_trusted_are_refused(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "tokens.json"
    tokens = Tokens(path)
    tokens.ensure()
    if harm == "readable":
        path.chmod(0o644)
    elif harm == "torn":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":9'))
    with pytest.raises(ConfigError, match="tokens"):
        tokens.ensure()


def test_a_log_in_ends_and_can_be_ended() -> None:
    now_ns = [0]
    sessions = Sessions(10.0, lambda: now_ns[0])
    cookie, other = sessions.open("a", Role.VIEWER), sessions.open("b", Role.ADMIN)
    found = sessions.find(cookie)
    assert found is not None and (found.user, found.role) == ("a", Role.VIEWER)
    assert sessions.find(cookie + "x") is None
    sessions.close(other)
    assert sessions.find(other) is None
    now_ns[0] = 10_000_000_000
    assert sessions.find(cookie) is None


def test_guessing_is_limited_by_address_and_in_all() -> None:
    now_s = [0.0]
    limit = LoginLimit(3, lambda: now_s[0])
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b")
    assert sum(limit.allows(f"c{i}") for i in range(100)) == 30 - 4
    now_s[0] = 61.0
    assert limit.allows("a")


def test_the_audit_log_is_whole_lines_that_others_cannot_read(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.open()
    audit.note("eve", "viewer", "10.0.0.1", "franka_0", "drive", 'no "right"\n')
    entry = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[0])
    assert (entry["user"], entry["outcome"]) == ("eve", 'no "right"\n')
    age_s = (datetime.now(timezone.utc) - datetime.fromisoformat(entry["time"])).total_seconds()
    assert 0 <= age_s < 60
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_a_full_audit_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robot_stack.teleop.audit.MAX_BYTES", 400)
    audit = Audit(tmp_path / "audit.jsonl")
    for i in range(5):
        audit.note("u", "operator", "", "r", f"command {i}", "done")
    kept = [
        *(tmp_path / "audit.jsonl.1").read_text().splitlines(),
        *(tmp_path / "audit.jsonl").read_text().splitlines(),
    ]
    assert json.loads(kept[-1])["what"] == "command 4"


def test_the_certificate_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path, ["robot-pc", "127.0.0.1"])
    before = certificate.read_bytes()
    assert ensure_certificate(tmp_path, ["x"])[0].read_bytes() == before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by other users"):
        ensure_certificate(tmp_path, ["x"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(CONFIG, robots=()), "needs robots"),
        (replace(CONFIG, robots=(ROBOT, ROBOT)), "names of their own"),
        (replace(CONFIG, host="0.0.0.0"), "without TLS"),
        (replace(CONFIG, camera_rate_hz=0.0), "1 to 60"),
        (replace(CONFIG, state_rate_hz=500.0), "1 to 60"),
        (replace(CONFIG, jpeg_quality=0), "1 to 100"),
    ],
)
def test_wrong_settings_are_refused_in_words(config: TeleopConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config(config)


def test_beyond_loopback_with_tls_is_allowed() -> None:
    check_config(replace(CONFIG, host="0.0.0.0", tls=True))
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("10.0.0.2")


# ---- control -----------------------------------------------------------------------------------------------------


def test_control_is_given_asked_for_and_forgotten() -> None:
    control = Control()
    control.given(1, "a")
    control.asked(2, "b")
    control.asked(3, "c")
    assert [asker.user for asker in control.view().askers] == ["b", "c"]
    control.given(2, "b")
    assert (control.page, control.user) == (2, "b") and not control.has_asked(2) and control.has_asked(3)
    control.forget(3)
    control.free()
    assert control.view().page == -1 and not control.view().askers


def test_the_header_is_what_the_page_reads() -> None:
    assert HEADER.size == 20 and struct.unpack("<I", b"RSP1")[0] == 0x31505352
    assert time.monotonic_ns() // 1000 < 2**53  # exact in JavaScript
