"""The page in a real browser, before a real robot, edge and server: what a person does in an hour, in a minute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from msgspec.structs import replace
from selenium.webdriver.common.keys import Keys

from robot_stack.core.messages import Lifecycle, Source
from robot_stack.teleop.server import TeleopServer
from tests.browser_kit import PHONE, TABLET, Browser, browser
from tests.teleop_kit import Edge, PlainPage, teleop_world
from tests.transport_kit import eventually

RECOVERY, CORRECTION = Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TeleopServer, Edge]]:
    directory = tmp_path_factory.mktemp("teleop")
    with teleop_world(directory, config=lambda config: replace(config, logins_per_minute=200.0)) as made:
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(world: tuple[TeleopServer, Edge], chromium: Browser) -> Iterator[Browser]:
    """The page at its log-in; afterwards nobody has the seat, and the console had nothing to say."""
    server, edge = world
    chromium.open(server.url)
    chromium.problems()
    yield chromium
    chromium.driver.get("about:blank")
    assert not chromium.problems()
    assert eventually(lambda: not edge.seat.read().holder, 10.0)


def log_in(page: Browser, server: TeleopServer, user: str = "operator") -> None:
    page.log_in(server.new_tokens[user])
    page.until(lambda: page.run("return teleop.page.state !== null && teleop.cameras.drawn > 0"))


def take(page: Browser) -> None:
    page.click("take")
    page.says("holder", "You have control")


def tool_m(edge: Edge) -> tuple[float, float, float]:
    state = edge.seat.read().features["observation.state"]
    return float(state[0]), float(state[1]), float(state[2])


def phase(page: Browser) -> str:
    return str(page.run("return document.getElementById('banner').dataset.phase"))


def segments(edge: Edge, episode: int) -> list[Source]:
    return [source for source, _ in groupby(step.source for step in list(edge.steps) if step.episode == episode)]


def finish(page: Browser, edge: Edge) -> None:
    """As often as it takes: on a busy machine a command may come too late, and is refused."""
    episode = edge.seat.read().episode

    def over() -> bool:
        if edge.seat.read().episode == episode:
            page.click("finish")
        return edge.seat.read().episode != episode

    page.until(over)


def test_take_over_with_keys_rewind_correct_label_and_hand_on(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    server, edge = world
    page.log_in("operator.wrong")
    page.says("login-problem", "not known here")
    log_in(page, server)
    drawn = int(str(page.run("return teleop.cameras.drawn")))
    page.until(lambda: int(str(page.run("return teleop.cameras.drawn"))) > drawn + 3)
    page.until(lambda: phase(page) == "autonomous")
    take(page)
    page.press(" ")
    page.until(lambda: phase(page) == "paused")
    page.says("phase-note", "nothing is recorded")
    episode = edge.seat.read().episode
    assert episode is not None

    before = tool_m(edge)
    with page.holding("w"):
        page.until(lambda: tool_m(edge)[0] > before[0] + 0.015)
        assert phase(page) == "recovering"
    page.until(lambda: phase(page) == "paused")  # the dead man's switch
    page.press("c")
    page.press("x")
    with page.holding("b"):
        page.until(lambda: tool_m(edge)[0] < before[0] + 0.008)
    page.until(lambda: phase(page) == "paused")
    page.press("c")
    with page.holding("r"):
        page.until(lambda: tool_m(edge)[2] > before[2] + 0.01)
        assert phase(page) == "correcting"
    page.until(lambda: phase(page) == "paused")
    page.press("x")
    with page.holding("w"):
        page.says("refusal", "no recovery after a correction")
    page.press("1")
    page.says("log", f"kept: label of episode {episode.episode}: success")
    finish(page, edge)
    assert edge.seat.read().last_episode == episode
    assert segments(edge, episode.episode)[-2:] == [RECOVERY, CORRECTION]
    assert [step.truncated for step in edge.steps if step.episode == episode.episode][-1]
    assert (edge.labels[-1].who, edge.labels[-1].success, edge.labels[-1].episode) == ("operator", True, episode)
    page.until(lambda: phase(page) == "autonomous")  # the next episode is the policy's


def test_what_is_lost_lets_go(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    server, edge = world
    log_in(page, server)
    take(page)
    with page.holding("w"):
        page.until(lambda: phase(page) == "recovering")
        page.run("window.dispatchEvent(new Event('blur'))")
        page.until(lambda: phase(page) == "paused")
    with page.holding("s"):
        page.until(lambda: phase(page) == "recovering")
        page.run("teleop.link.socket.close()")
        assert eventually(lambda: edge.seat.phase.value == "paused", 5.0)
        page.until(lambda: page.run("return teleop.link.live && teleop.page.state !== null"))
        page.says("holder", "Nobody has control")  # it comes back, and nothing that was held with it
    take(page)
    finish(page, edge)


def test_on_a_phone_with_touch_pads(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    server, edge = world
    page.open(server.url, PHONE)
    log_in(page, server)
    assert page.run("return document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the phone"
    take(page)
    before = tool_m(edge)
    with page.holding_pointer("pad-a", 0, -50):
        page.until(lambda: tool_m(edge)[0] > before[0] + 0.01)
    page.until(lambda: phase(page) == "paused")
    with page.holding_pointer("rewind"):
        page.until(lambda: tool_m(edge)[0] < before[0] + 0.006)
    page.until(lambda: phase(page) == "paused")
    page.click("mode-correct")
    with page.holding_pointer("pad-b", 0, -50):
        page.until(lambda: tool_m(edge)[2] > before[2] + 0.008)
    stop = "const box = document.getElementById('stop').getBoundingClientRect();"
    assert page.run(f"{stop} return box.top >= 0 && box.right <= innerWidth && box.width >= 100 && box.height >= 80")
    page.click("reset")
    page.until(lambda: edge.seat.waits_for_scene)
    finish(page, edge)
    page.says("phase-note", "scene is ready")
    page.click("ready")
    page.until(lambda: not edge.seat.waits_for_scene)


@pytest.mark.parametrize("size", [PHONE, TABLET])
def test_it_fits_small_screens(world: tuple[TeleopServer, Edge], page: Browser, size: tuple[int, int]) -> None:
    page.open(world[0].url, size)
    log_in(page, world[0], "viewer")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")


def test_two_people_want_control(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    server, _ = world
    with PlainPage(server.url, server.new_tokens["admin"]) as other:
        other.take()
        log_in(page, server)
        page.says("holder", "admin has control")
        page.click("take")
        page.says("toasts", "admin was asked for control")
        other.told("operator asks for control")
        askers = other.until(lambda: other.states[-1]["control"]["askers"])
        other.send("grant", page=askers[0]["page"])
        other.until(lambda: other.states[-1]["control"]["user"] == "operator")
        page.says("holder", "You have control")
        other.send("ask")
        page.says("askers", "admin asks for control")
        page.run("document.querySelector('#askers button').click()")
        page.says("holder", "admin has control")
        page.says("toasts", "admin has control of franka_0 now")


def test_a_tab_shows_nothing_of_another_robot(world: tuple[TeleopServer, Edge], page: Browser, tmp_path: Path) -> None:
    config, edge = world[0].config, world[1]
    nowhere = dict.fromkeys(
        ("seat_address", "seat_state_address", "robot_address", "state_address"), "tcp://127.0.0.1:9"
    )
    away = replace(config.robots[0], name="franka_1", **nowhere)
    with TeleopServer(replace(config, directory=str(tmp_path), robots=(*config.robots, away))) as server:
        page.open(server.url)
        log_in(page, server)
        take(page)
        page.run("document.querySelectorAll('#tabs button')[1].click()")
        assert page.text("stop-robot") == "franka_1" and page.text("holder") != "You have control"
        assert page.run("return [...document.querySelectorAll('.camera canvas')].every((one) => !one.dataset.number)")
        page.says("phase", "Edge is away")
        page.says("phase-note", "Start it with: robot-stack edge")
        page.says("stop-problem", "would not reach")
        assert eventually(lambda: not edge.seat.read().holder, 5.0)  # who leaves a tab leaves its robot
        page.run("document.querySelectorAll('#tabs button')[0].click()")
        page.until(lambda: page.run("return document.querySelector('.camera canvas').dataset.number > 0"))
        page.says("holder", "Nobody has control")
        page.driver.get("about:blank")


def test_wrong_messages_and_devices_are_told(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    log_in(page, world[0])
    for message, words in (
        ({"type": "watch", "robot": "r2_d2"}, "there is no robot 'r2_d2' here"),
        ({"type": "watch", "robot": "franka_0", "cameras": ["rear"]}, "has no camera 'rear'"),
        ({"type": "warp"}, "malformed"),
    ):
        page.run("teleop.link.socket.send(arguments[0])", json.dumps(message))
        page.says("refusal", words)
        page.says("log", words)


def laid_out(page: Browser, names: list[str]) -> list[list[str]]:
    """Keys of each element as the page would lay them out: arm, element, keys."""
    script = """
        const [names, done] = arguments;
        import('/inputs.js').then((module) => {
            const plan = module.layOut(names);
            const axes = plan.groups.flatMap((group) =>
                group.axes.map((one) => [group.title, one.name, (one.keys || []).join('')]));
            done([...axes, ...plan.toggles.map((one) => ['', one.name, one.key])]);
        });
    """
    found: list[list[str]] = page.driver.execute_async_script(script, names)
    return found


def test_every_robots_elements_get_keys_of_their_own_and_none_that_would_jump(
    world: tuple[TeleopServer, Edge], page: Browser
) -> None:
    arms = [f"{side}_d{axis}_m" for side in ("left", "right") for axis in "xyz"]
    g1 = laid_out(page, [*arms, "left_gripper", "right_gripper"])
    assert [keys for arm, _, keys in g1 if arm == "left"] == [keys for arm, _, keys in g1 if arm == "right"]
    assert [keys for arm, _, keys in g1 if not arm] == ["g", "h"]
    joints = ("base_translate", "base_rotate", "lift", "arm", "wrist_yaw", "wrist_pitch", "wrist_roll")
    stretch = laid_out(
        page, [*(f"{joint}_delta_{'m' if i in (0, 2, 3) else 'rad'}" for i, joint in enumerate(joints)), "gripper"]
    )
    used = "".join(keys for _, _, keys in stretch)
    assert len(stretch) == 8 and len(used) == len(set(used)) == 15 and not set(used) & set("bxc01234 ")
    assert laid_out(page, ["x_m", "quat_w", "fr3_joint1_rad", "gripper"]) == [["", "gripper", "g"]]


def test_a_gamepad_drives_while_its_clutch_is_held(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    server, edge = world
    log_in(page, server)
    take(page)
    before = tool_m(edge)
    pad = (
        "{connected: true, axes: [0, -1, 0, 0], buttons: Array.from({length: 8}, (_, i) => ({pressed: i === CLUTCH}))}"
    )
    page.run("navigator.getGamepads = () => [" + pad.replace("CLUTCH", "-1") + "]")
    page.says("holder", "You have control")
    assert page.run("return teleop.inputs.now()") is None
    page.run("navigator.getGamepads = () => [" + pad.replace("CLUTCH", "5") + "]")
    page.until(lambda: tool_m(edge)[0] > before[0] + 0.01)
    page.run("navigator.getGamepads = () => []")
    page.until(lambda: phase(page) == "paused")
    finish(page, edge)


def test_a_viewer_sees_and_cannot_command(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    server, edge = world
    log_in(page, server, "viewer")
    assert not page.find("take").is_enabled() and not page.find("stop").is_enabled()
    page.run("teleop.link.send({type: 'take', robot: 'franka_0'})")
    page.says("refusal", "logged in as a viewer")
    assert not edge.seat.read().holder


def test_the_stop_button_stops_whoever_drives(world: tuple[TeleopServer, Edge], page: Browser) -> None:
    server, edge = world
    with PlainPage(server.url, server.new_tokens["admin"]) as driver:
        driver.take()
        log_in(page, server)
        page.click("stop")
        page.until(lambda: edge.robot.guard.lifecycle is Lifecycle.FAULT)
        page.says("safety", "Fault")
        page.says("safety-note", "clear-fault")
        driver.told("operator stopped franka_0")
        edge.robot.clear()
        page.says("safety", "Robot active")
        page.press(Keys.ESCAPE)
        page.until(lambda: edge.robot.guard.lifecycle is Lifecycle.FAULT)
        edge.robot.clear()
        page.says("safety", "Robot active")


def test_a_login_that_ends_leads_back_to_the_login_in_words(
    world: tuple[TeleopServer, Edge], page: Browser, tmp_path: Path
) -> None:
    short = replace(world[0].config, directory=str(tmp_path), session_s=3.0)
    with TeleopServer(short) as server:
        page.open(server.url)
        page.log_in(server.new_tokens["operator"])
        page.until(lambda: page.find("login").is_displayed())
        page.says("login-problem", "your log-in has ended; log in again")


def test_a_server_that_goes_away_is_told(world: tuple[TeleopServer, Edge], page: Browser, tmp_path: Path) -> None:
    with TeleopServer(replace(world[0].config, directory=str(tmp_path))) as server:
        page.open(server.url)
        log_in(page, server)
    page.says("phase", "No connection")
    page.says("phase-note", "the robot stands still")
    page.driver.get("about:blank")
    page.problems()  # the browser itself complains of what it cannot reach
