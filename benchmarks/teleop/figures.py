"""What is reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray


class Spread(Struct, frozen=True, kw_only=True):
    """In milliseconds. `missing`: what should have been measured and was not."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float
    missing: int = 0


class Parts(Struct, frozen=True, kw_only=True):
    """Where an input's time goes: to the edge's seat, there until the control loop makes a command of it, and from
    there until the robot server has taken that command at one of its ticks."""

    to_seat_ms: Spread
    to_loop_ms: Spread
    to_robot_ms: Spread


class Input(Struct, frozen=True, kw_only=True):
    """From sending an input to the robot server's taking of the first command made of it, or of a newer one."""

    input_to_command_ms: Spread
    parts: Parts


class Glass(Struct, frozen=True, kw_only=True):
    """`age_ms`: from a picture's capture to its pixels at the page. `change_ms`: to those pixels from a change just
    after the picture before, the longest wait for a change to be seen. Camera exposure and screen come on top."""

    change_ms: Spread
    age_ms: Spread
    rate_hz: float


class Loop(Struct, frozen=True, kw_only=True):
    """One condition. p99s are medians over blocks of the block's p99; `change`: of the block's p99 to that of the quiet
    block of the same round, medians too. `server`: the robot server's ticks. `all_*`: over all blocks together."""

    loop_p50_ms: float
    loop_p99_ms: float
    loop_p99_change_ms: float
    server_p99_ms: float
    server_p99_change_ms: float
    all_loop_p99_ms: float
    all_input_p99_ms: float
    steps: int


class Report(Struct, frozen=True, kw_only=True):
    """The three figures that were aimed at first; `reached`: all of them. `loop_p99_change_ms`: of the worst condition.

    `starts_ms`: input that begins a movement from a pause; `lets_go_ms`: from letting go to the first still command.
    `ping_ms`: a bare request to the seat and back. `direct`: inputs sent to the edge without a teleop server;
    `web_ratio`: p50 through the teleop server, against that.
    """

    command: str
    benchmark: str
    seed: int
    quick: bool
    load_average: float
    input_to_command_p99_ms: float
    glass_to_glass_p95_ms: float
    loop_p99_change_ms: float
    reached: bool
    input: Input
    direct: Input
    web_ratio: float
    ping_ms: Spread
    starts_ms: Spread
    lets_go_ms: Spread
    glass: Glass
    loop: dict[str, Loop]


def spread(values_ms: Sequence[float] | NDArray[np.float64], missing: int = 0) -> Spread:
    """At least one value."""
    values = np.asarray(values_ms, np.float64)
    if not len(values):
        raise SystemExit("nothing was measured; the processes' logs say why")
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
    return Spread(
        count=len(values),
        p50=round(float(p50), 3),
        p95=round(float(p95), 3),
        p99=round(float(p99), 3),
        max=round(float(values.max()), 3),
        missing=missing,
    )
