"""Pictures of the page for the documentation: `python -m tests.teleop_screenshots` writes docs/images/teleop-*.png.

A simulated Franka, its edge and a teleop server run behind a real browser; spool and learner are example values.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path

from msgspec.structs import replace
from PIL import Image

from robot_stack.teleop.config import RobotStatus, TeleopConfig
from tests.browser_kit import LAPTOP, PHONE, Browser, browser
from tests.teleop_kit import teleop_world

IMAGES = Path(__file__).parents[1] / "docs" / "images"
STATUS = RobotStatus(
    age_s=0.4,
    steps_kept=18_204,
    steps_waiting=36,
    steps_dropped=0,
    spool_bytes=48_000_000,
    spool_capacity_bytes=2_000_000_000,
    disk_free_bytes=412_000_000_000,
    period_ms=100.0,
    jitter_ms=3.1,
    inference_ms=(21.0, 34.0),
    observation_age_ms=12.0,
    updates=9_120,
    weights_version=14,
    curves={
        "success, last 50": tuple(0.45 + 0.45 * (1 - math.exp(-i / 14)) + 0.03 * math.sin(i * 1.7) for i in range(60)),
        "share of steps by people": tuple(0.3 * math.exp(-i / 22) + 0.01 * math.sin(i) for i in range(60)),
    },
)


def two_robots(config: TeleopConfig) -> TeleopConfig:
    """A second tab, whose robot is away."""
    nowhere = "tcp://127.0.0.1:9"
    away = replace(
        config.robots[0],
        name="franka_1",
        seat_address=nowhere,
        seat_state_address=nowhere,
        robot_address=nowhere,
        state_address=nowhere,
    )
    return replace(config, robots=(*config.robots, away))


def keep(page: Browser, name: str) -> None:
    """In 256 colours: a third of the bytes."""
    path = IMAGES / f"{name}.png"
    page.screenshot(path)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def take_pictures(page: Browser, url: str, token: str) -> None:
    page.open(url, LAPTOP)
    page.log_in(token)
    page.until(lambda: page.run("return teleop.cameras.drawn > 5"))
    page.click("take")
    page.says("holder", "You have control")
    page.press(" ")
    with page.holding("a"), page.holding("w"):
        time.sleep(1.5)
        keep(page, "teleop-recovering")
    page.press("c")
    with page.holding("r"):
        time.sleep(0.7)
    page.press("x")
    with page.holding("w"):
        page.says("refusal", "no recovery")
        keep(page, "teleop-refused")
    page.click("finish")
    page.run("[...document.querySelectorAll('#tabs button')].at(-1).click()")
    page.says("phase-note", "seat.")
    keep(page, "teleop-away")
    page.open(url, PHONE)
    page.log_in(token)
    page.until(lambda: page.run("return teleop.cameras.drawn > 5"))
    page.click("take")
    page.says("holder", "You have control")
    page.run("document.getElementById('driving').scrollIntoView({block: 'end'})")
    with page.holding_pointer("pad-a", 10, -40):
        time.sleep(1.0)
        keep(page, "teleop-phone")
    page.click("stop")
    page.says("safety", "Fault")
    page.open("about:blank")
    time.sleep(1.0)
    page.open(url, LAPTOP)
    page.log_in(token)
    page.says("safety", "Fault")
    time.sleep(0.5)
    keep(page, "teleop-stopped")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        teleop_world(Path(directory), config=two_robots, status=lambda: STATUS) as (server, _),
        browser() as page,
    ):
        take_pictures(page, server.url, server.new_tokens["operator"])
    sys.stdout.write(f"wrote {len(list(IMAGES.glob('teleop-*.png')))} pictures to {IMAGES}\n")


if __name__ == "__main__":
    main()
