"""Input devices on the teleop server's host, from the encrypted stream of a bridge to the motion of a simulated robot:
who may use them, what ends it, and what is recorded of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from selenium.webdriver.support.ui import Select

from robot_stack.core.clock import s_to_ns
from robot_stack.core.messages import Source
from robot_stack.core.seat import Intent, LeaveSeat, TakeSeat
from robot_stack.core.teleop_device import DeviceReading
from robot_stack.teleop.config import TeleopConfig
from robot_stack.teleop.device_desk import DeviceDesk
from robot_stack.teleop.device_drive import Told
from robot_stack.teleop.devices.replay import LogWriter
from robot_stack.teleop.devices.settings import ReplaySettings, SpaceMouseSettings, ZeroMqSettings
from robot_stack.teleop.robot import RobotLink
from robot_stack.teleop.server import TeleopServer
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher
from tests.browser_kit import browser
from tests.device_kit import HeldDevice
from tests.teleop_kit import Edge, PlainPage, teleop_world
from tests.transport_kit import LOOPBACK, eventually

MAX_AGE_S = 0.25
"""Of readings; longer than the default, for a machine that is busy with other tests."""


@dataclass
class World:
    server: TeleopServer
    edge: Edge
    directory: Path
    bridge: Publisher

    def page(self, user: str = "operator", *, acknowledges: bool = True) -> PlainPage:
        return PlainPage(self.server.url, self.server.new_tokens[user], acknowledges=acknowledges)

    def says(self, **reading: Any) -> None:
        """One reading of the bridge."""
        self.bridge.send(DeviceReading(stamp_ns=time.monotonic_ns(), **reading))

    def hand(self, page: PlainPage, seconds: float, x_m: float = 0.0, *, held: bool = True) -> None:
        """The person's hand is there for so long."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.says(held=held, pose_in_device=(x_m, 1.0, 2.0, 0.0, 0.0, 0.0, 1.0))
            page.read(0.02)

    def chosen(self, page: PlainPage, device: str = "vr") -> None:
        page.send("usedevice", device=device, intent="recover")
        page.until(lambda: self.view(page, device)["robot"] == "franka_0")

    def view(self, page: PlainPage, device: str = "vr") -> dict[str, Any]:
        return next(one for one in page.states[-1]["devices"] if one["name"] == device)

    def tool_x_m(self) -> float:
        return float(self.edge.seat.read().features["observation.state"][0])

    def goal_x_m(self) -> float:
        state = self.edge.seat.read().features["observation.state"]
        return float(state[0] + state[9])

    def audit(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.directory / "gui" / "audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("devices")
    with ExitStack() as opened:
        bridges = list[Publisher]()

        def with_devices(config: TeleopConfig) -> TeleopConfig:
            keys = config.robots[0].keys_directory
            bridges.append(
                opened.enter_context(Publisher(SERVICES["teleop.device"], LOOPBACK, KeyStore(Path(keys)), "device"))
            )
            vr = ZeroMqSettings(
                name="vr", address=bridges[0].address, keys_directory=keys, gives="pose", max_age_s=MAX_AGE_S
            )
            log = ReplaySettings(name="log", path=str(directory / "log.jsonl"), max_age_s=MAX_AGE_S, speed=1.0)
            return replace(config, devices=(vr, log), logins_per_minute=200.0)

        with LogWriter(directory / "log.jsonl") as log:
            for step in range(100):  # at rest, then a second and a half along x, then at rest
                x = 1.0 if 10 <= step < 85 else 0.0
                log.write(DeviceReading(stamp_ns=s_to_ns(0.02 * step), deflection={"x": x}))
        server, edge = opened.enter_context(teleop_world(directory, config=with_devices))
        yield World(server, edge, directory, bridges[0])


@pytest.fixture(autouse=True)
def free_seat(world: World) -> Iterator[None]:
    """Every test begins with a running episode that nobody drives."""
    assert eventually(lambda: not world.edge.seat.read().holder, 10.0)
    assert eventually(lambda: world.edge.seat.read().episode is not None, 20.0)
    yield
    with world.page() as page:  # what was paused is ended, so that the next episode begins
        page.take()
        page.drive("resume")
        page.drive("finish")
        page.read(0.3)


def engaged(world: World, page: PlainPage, x_m: float = 0.0) -> None:
    """Chosen, seen open, and held."""
    world.chosen(page)
    world.hand(page, 0.3, x_m, held=False)
    world.hand(page, 0.4, x_m)
    assert world.view(page)["state"] == "engaged" and world.edge.seat.phase.value == "recovering"


def test_a_hand_leads_the_robot_and_is_recorded_as_a_recovery(world: World) -> None:
    with world.page() as page:
        page.take()
        steps_before = len(world.edge.steps)
        engaged(world, page, x_m=5.0)
        start_m = world.goal_x_m()
        world.hand(page, 2.5, 5.03)
        assert world.goal_x_m() - start_m == pytest.approx(0.03, abs=0.004)
        world.hand(page, 0.1, 5.03, held=False)
        assert eventually(lambda: world.edge.seat.phase.value == "paused", 2.0)
        page.until(lambda: world.view(page)["state"] == "ready")
    sources = {step.source for step in world.edge.steps[steps_before:]}
    assert Source.HUMAN_RECOVERY in sources and Source.HUMAN_CORRECTION not in sources
    noted = [entry["what"] for entry in world.audit() if "'vr'" in entry["what"]]
    assert noted[:3] == ["drive with 'vr' to recover", "device 'vr': engaged", "device 'vr': let go"]


def test_the_mode_of_the_page_says_what_it_is(world: World) -> None:
    with world.page() as page:
        page.take()
        engaged(world, page)
        world.hand(page, 0.3, held=False)
        page.send("usedevice", device="vr", intent="correct")
        world.hand(page, 0.3, held=False)
        world.hand(page, 0.4)
        assert world.edge.seat.phase.value == "correcting"
        page.send("usedevice", device="vr", intent="rewind")
        page.told("not to rewind")


def test_silence_while_it_is_held_stops_the_robot_and_what_comes_back_does_not_move_it(world: World) -> None:
    with world.page() as page:
        page.take()
        engaged(world, page)
        page.read(2 * MAX_AGE_S)
        assert world.edge.seat.phase.value == "paused"
        page.told("nothing came from 'vr' for")
        world.hand(page, 0.5, 0.3)
        assert world.edge.seat.phase.value == "paused" and world.view(page)["state"] == "ready"
        world.hand(page, 0.3, 0.3, held=False)
        world.hand(page, 0.4, 0.3)
        assert world.edge.seat.phase.value == "recovering"


def test_pausing_on_the_page_counts_more_than_the_device(world: World) -> None:
    with world.page() as page:
        page.take()
        engaged(world, page)
        page.drive("hold")
        world.hand(page, 0.6)
        assert world.edge.seat.phase.value == "paused"


def test_keys_and_a_device_do_not_drive_together(world: World) -> None:
    with world.page() as page:
        page.take()
        world.chosen(page)
        page.drive("recover", moves={"dx_m": 0.3})
        page.told("'vr' drives franka_0; choose this page's keys first")
        page.send("usedevice", device="", intent="recover")
        page.until(lambda: world.view(page)["robot"] == "")
        page.drive_for(0.5, "recover", moves={"dx_m": 0.1})
        assert world.edge.steps[-1].source is Source.HUMAN_RECOVERY


def test_a_page_that_closes_takes_its_device_with_it(world: World) -> None:
    with world.page() as page, world.page("viewer") as other:
        other.watch()
        page.take()
        engaged(world, page)
        page.socket.socket.close()  # no closing words
        assert eventually(lambda: world.edge.seat.phase.value == "paused", 3.0)
        assert eventually(lambda: not world.edge.seat.read().holder, 5.0)
        world.hand(other, 0.5)
        assert world.edge.seat.phase.value == "paused" and world.view(other)["robot"] == ""


def test_a_page_that_is_not_heard_loses_its_device(world: World) -> None:
    with world.page(acknowledges=False) as page:
        page.send("watch", cameras=[])
        page.send("take")
        page.told("you have control")
        page.send("usedevice", device="vr", intent="recover")
        page.told("this page was not heard for 1 s")


def test_who_takes_control_does_not_get_the_device_with_it(world: World) -> None:
    with world.page() as page, world.page("admin") as admin:
        page.take()
        engaged(world, page)
        admin.watch().send("take", force=True)
        admin.until(lambda: admin.states[-1]["control"]["page"] == admin.page)
        world.hand(admin, 0.5)
        assert world.view(admin)["robot"] == "" and world.edge.seat.phase.value == "paused"


def test_a_page_holds_the_switch_of_a_device_without_one(world: World) -> None:
    def shown(seconds: float, x_m: float, *, hold: bool) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            world.says(pose_in_device=(x_m, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
            if hold:
                page.send("switch", until_us=time.monotonic_ns() // 1000 + 300_000)
            page.read(0.02)

    with world.page() as page:
        page.take()
        world.chosen(page)
        shown(0.4, 0.0, hold=False)
        assert world.view(page)["needs_switch"] and world.view(page)["state"] == "ready"
        shown(0.5, 0.0, hold=True)
        assert world.edge.seat.phase.value == "recovering"
        page.send("switch", until_us=0)
        shown(0.3, 0.5, hold=False)
        assert world.edge.seat.phase.value == "paused"


def test_a_log_drives_the_robot_once_it_is_chosen(world: World) -> None:
    with world.page() as page:
        page.take()
        start_m, steps_before = world.goal_x_m(), len(world.edge.steps)
        world.chosen(page, "log")
        page.until(lambda: world.view(page, "log")["state"] == "engaged")
        page.until(lambda: world.view(page, "log")["state"] == "ready")
        assert eventually(lambda: world.edge.seat.phase.value == "paused", 3.0)
        assert world.goal_x_m() - start_m > 0.05
    assert Source.HUMAN_RECOVERY in {step.source for step in world.edge.steps[steps_before:]}


@pytest.mark.parametrize(
    ("kind", "fields"), [("usedevice", {"device": "vr", "intent": "recover"}), ("switch", {"until_us": 2**50})]
)
def test_only_who_has_control_uses_a_device(world: World, kind: str, fields: dict[str, object]) -> None:
    with world.page("viewer") as viewer, world.page() as operator, world.page("admin") as holder:
        viewer.send(kind, **fields)
        assert viewer.told("viewer")["about"] == kind
        operator.watch().send(kind, **fields)
        operator.told("take control first")
        holder.take()
        operator.send(kind, **fields)
        operator.told("admin has control of franka_0")
        assert world.view(operator)["robot"] == ""


def test_a_device_that_is_not_there_is_told_with_those_that_are(world: World) -> None:
    with world.page() as page:
        page.take()
        page.send("usedevice", device="mouse", intent="recover")
        page.told("there is no device 'mouse' here; there are: vr, log")


# ---- in a browser --------------------------------------------------------------------------------------------------


class Shaking:
    """A bridge of a device without a switch, which says the same again and again, in a thread of its own."""

    def __init__(self, keys: KeyStore, key: str) -> None:
        self._keys, self._key = keys, key
        self._end, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address, self.x_m = "", 0.0

    def __enter__(self) -> Shaking:
        self._thread.start()
        assert self._ready.wait(5.0)
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        with Publisher(SERVICES["teleop.device"], LOOPBACK, self._keys, self._key) as bridge:
            self.address = bridge.address
            self._ready.set()
            while not self._end.wait(0.02):
                pose = (self.x_m, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
                bridge.send(DeviceReading(stamp_ns=time.monotonic_ns(), pose_in_device=pose))


def test_a_person_chooses_a_device_on_the_page_and_holds_its_switch(world: World, tmp_path: Path) -> None:
    config, keys = world.server.config, KeyStore(Path(world.server.config.robots[0].keys_directory))
    keys.make("tracker", Role.DEVICE)
    with ExitStack() as opened:
        page = opened.enter_context(browser())
        bridge = opened.enter_context(Shaking(keys, "tracker"))
        tracker = ZeroMqSettings(
            name="tracker",
            address=bridge.address,
            keys_directory=str(keys.directory),
            server_key="tracker",
            max_age_s=MAX_AGE_S,
        )
        devices = (tracker, ReplaySettings(name="away", path=str(tmp_path / "no.jsonl")))
        served = TeleopServer(replace(config, directory=str(tmp_path), devices=devices))
        server = opened.enter_context(served)
        page.open(server.url)
        page.log_in(server.new_tokens["operator"])
        page.says("device", "away · gone")
        assert not page.find("device").is_enabled()
        page.click("take")
        page.says("holder", "You have control")
        Select(page.find("device")).select_by_value("away")
        page.says("device-words", "away is gone: the device log")
        Select(page.find("device")).select_by_value("tracker")
        page.says("device-words", "tracker is ready: hold V")
        with page.holding("v"):
            page.says("device-words", "The robot follows tracker.")
            start_m, bridge.x_m = world.goal_x_m(), 0.02
            page.until(lambda: world.goal_x_m() > start_m + 0.01)
        page.until(lambda: world.edge.seat.phase.value == "paused")
        bridge.x_m = 0.0
        with page.holding_pointer("switch"):
            page.until(lambda: world.edge.seat.phase.value == "recovering")
        page.until(lambda: world.edge.seat.phase.value == "paused")
        page.press("c")  # driving by hand is to correct from now on, by the device too
        with page.holding("v"):
            page.until(lambda: world.edge.seat.phase.value == "correcting")
            page.press(" ")
            page.until(lambda: world.edge.seat.phase.value == "paused")
        Select(page.find("device")).select_by_value("")
        page.until(lambda: not page.text("device-words"))
        with page.holding("w"):
            page.until(lambda: world.edge.seat.phase.value == "correcting")
        assert not [one for one in page.problems() if "favicon" not in one]
        page.driver.get("about:blank")


# ---- without the server: a device that is pulled out ----------------------------------------------------------------


def test_unplugged_while_it_is_deflected_and_plugged_in_again(world: World, tmp_path: Path) -> None:
    robot = world.server.config.robots[0]
    config = TeleopConfig(robots=(robot,), directory=str(tmp_path), devices=world.server.config.devices)
    held, told = HeldDevice("mouse"), list[Told]()
    held.now = {"deflection": {"x": 0.0}}
    away = replace(robot, name="franka_1", seat_address="tcp://127.0.0.1:9")
    links = {one.name: RobotLink(config, one, lambda: None, lambda words: None) for one in (robot, away)}
    settings = SpaceMouseSettings(name="mouse", max_age_s=MAX_AGE_S)
    with ExitStack() as opened:
        for link in links.values():
            opened.enter_context(link)
        desk = opened.enter_context(DeviceDesk((settings,), links, build=lambda one: held))
        desk.hear(lambda name, what: told.append(what))
        seat = links["franka_0"].seat
        assert eventually(lambda: seat.info is not None, 10.0)
        assert "has not answered yet" in desk.use("franka_1", "mouse", Intent.RECOVER, 7)
        seat.ask(TakeSeat(holder="ann"), 7, lambda reply: None)
        assert eventually(lambda: world.edge.seat.read().holder == "ann", 5.0)
        assert desk.use("franka_0", "mouse", Intent.RECOVER, 7) == ""
        assert desk.use("franka_1", "mouse", Intent.RECOVER, 7) == "'mouse' drives franka_0; give it up there first"
        time.sleep(0.2)
        held.now = {"deflection": {"x": 0.6}}
        assert eventually(lambda: world.edge.seat.phase.value == "recovering", 3.0)
        held.plugged = False
        assert eventually(lambda: world.edge.seat.phase.value == "paused", 1.0)
        assert desk.views()[0].state == "gone" and "unplugged" in told[-1].problem
        held.plugged = True  # still deflected
        assert eventually(lambda: desk.views()[0].state == "ready", 10.0)
        time.sleep(0.3)
        assert world.edge.seat.phase.value == "paused"
        held.now = {"deflection": {"x": 0.0}}
        time.sleep(0.2)
        held.now = {"deflection": {"x": -0.6}}
        assert eventually(lambda: world.edge.seat.phase.value == "recovering", 3.0)
        held.hangs = True  # it neither answers nor fails
        assert eventually(lambda: world.edge.seat.phase.value == "paused", 3.0)
        held.hangs = False
        desk.free("franka_0")
        assert not desk.device_of("franka_0") and desk.views()[0].robot == ""
        seat.ask(LeaveSeat(session=""), 7, lambda reply: None)
        assert eventually(lambda: not world.edge.seat.read().holder, 5.0)
