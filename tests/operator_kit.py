"""A scripted person at the page, who sees what a page shows and does what hands on it do; the processes before it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from robot_stack.apps.supervisor import robot_stack_command
from tests.teleop_kit import PlainPage

STEP_M, STEP_RAD = 0.01, 0.08
ABOVE_M = 0.02
READY_S = 60.0


class Person:
    """Sits before one page and has control of its robot, as soon as there is one."""

    def __init__(self, page: PlainPage) -> None:
        self.page = page
        page.watch()
        page.until(lambda: self.seat, READY_S)
        page.take()

    @property
    def seat(self) -> dict[str, object]:
        self.page.read(0.02)
        shown = self.page.states[-1]["seat"]
        return dict(shown) if shown else {}

    @property
    def phase(self) -> str:
        return str(self.seat.get("phase", ""))

    def sees(self, phase: str, within_s: float = READY_S) -> None:
        self.page.until(lambda: self.phase == phase, within_s)

    def does(self, intent: str, phase: str) -> None:
        """Say something once, again if it came too late, until the robot is in that phase."""

        def done() -> bool:
            if self.phase != phase:
                self.page.drive(intent)
                self.page.read(0.1)
            return self.phase == phase

        self.page.until(done, READY_S)

    def rewinds(self, seconds: float) -> None:
        self.page.drive_for(seconds, "rewind", speed=1.0)
        self.sees("paused")

    def inserts_the_peg(self, within_s: float) -> None:
        """Drive the peg over the socket, then down, as far as the episode lasts."""
        episode, until_s = self.seat["episode"], time.monotonic() + within_s
        while (seat := self.seat)["episode"] == episode and time.monotonic() < until_s:
            self.page.drive("correct", moves=towards_socket(seat))
            self.page.read(0.03)

    def ends(self, episode: object) -> None:
        """Finish what was driven, unless the task's success has ended the episode."""

        def over() -> bool:
            if self.seat["episode"] == episode:
                self.page.drive("finish")
                self.page.read(0.1)
            return self.seat["last_episode"] == episode

        self.page.until(over, READY_S)

    def labels(self, episode: object, *, success: bool) -> None:
        self.page.send("label", episode=episode, success=success)
        self.page.until(lambda: any("kept: label" in str(one.get("text")) for one in self.page.said))


def towards_socket(seat: dict[str, object]) -> dict[str, float]:
    """Moves (-1 to 1) of a person who sees the socket."""
    features = seat["features"]
    assert isinstance(features, dict)
    x_m, y_m, z_m, yaw_rad = features["observation.environment_state"]
    aligned = max(abs(x_m), abs(y_m)) < 0.003 and abs(yaw_rad) < 0.03
    down_m = z_m - 0.03 if aligned else z_m + ABOVE_M
    wanted = {"dx_m": x_m / STEP_M, "dy_m": y_m / STEP_M, "dz_m": down_m / STEP_M, "dyaw_rad": yaw_rad / STEP_RAD}
    return {name: max(-1.0, min(1.0, 0.4 * value)) for name, value in wanted.items()}


def stack(*arguments: str) -> None:
    """Run a robot-stack command to its end."""
    done = subprocess.run(robot_stack_command(*arguments), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def serving(logs: Path, *commands: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Robot-stack processes, each with its output in `logs/COMMAND.log`, ended in reverse order."""
    running: list[subprocess.Popen[bytes]] = []
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for command in commands:
            with (logs / f"{command[0]}.log").open("wb") as log:
                running.append(subprocess.Popen(robot_stack_command(*command), stdout=log, stderr=log))
        yield running
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def token_of(log: Path, user: str, alive: Callable[[], bool]) -> tuple[str, str]:
    """The page's address and a token, as the first start of its server prints them."""
    until_s = time.monotonic() + READY_S
    while "page is at " not in (text := log.read_text() if log.exists() else ""):
        assert alive() and time.monotonic() < until_s, text
        time.sleep(0.1)
    said = {line.split("'")[1]: line.split(": ")[1] for line in text.splitlines() if line.startswith("token of ")}
    return text.split("operator's page is at ")[1].split()[0], said[user].strip()
