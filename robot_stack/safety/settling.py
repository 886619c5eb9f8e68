"""Coming to rest where time passes only when somebody lets it pass."""

from __future__ import annotations

from collections.abc import Callable

from robot_stack.safety.guard import RobotGuard

SETTLE_S = 3.0


def settle(guard: RobotGuard, tick: Callable[[], None], tick_s: float) -> None:
    """Stop the robot and tick until it rests, for `SETTLE_S` of its time at most."""
    left = round(SETTLE_S / tick_s)
    if guard.moving:
        guard.stop("an episode begins where the robot is")
    while guard.moving and left > 0:
        tick()
        left -= 1
