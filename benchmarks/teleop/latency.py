"""How long an input takes to the robot, and a picture to the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise

import numpy as np
from tqdm import tqdm

from benchmarks.teleop.figures import Glass, Input, Parts, Spread, spread
from benchmarks.teleop.page import VALID_S, Page, Seen
from benchmarks.teleop.site import Site
from benchmarks.teleop.taps import STILL, Kind, Records, first_seen_ns, moves_of
from robot_stack.core.clock import s_to_ns
from robot_stack.core.messages import Ping
from robot_stack.core.seat import Drive, Intent, LeaveSeat, SeatReply, SeatTaken, TakeSeat
from robot_stack.transport.client import RequestClient

PERIODS_S = (0.025, 0.042)
"""Between two inputs: about thirty a second as a page does, at no fixed place in any other process's period."""
SETTLE_S = 0.2
BURST = 6
PAUSE_S = (0.3, 0.5)

Send = Callable[[int], None]


class Inputs:
    """Numbers of this benchmark's inputs, and the pace they are sent at."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._numbers = count()

    def stream(self, send: Send, wanted: int, until_s: float = np.inf, show: str = "") -> tuple[int, int]:
        """Send inputs, `wanted` of them or until that time; the time (ns) in which they were sent and followed."""
        since_ns, due_s = time.monotonic_ns(), time.monotonic()
        for _ in tqdm(range(wanted), desc=show, unit="input", disable=not show):
            if time.monotonic() >= until_s:
                break
            send(next(self._numbers))
            due_s = max(due_s, time.monotonic() - 0.1) + self._rng.uniform(*PERIODS_S)
            time.sleep(max(0.0, due_s - time.monotonic()))
        return since_ns, time.monotonic_ns() + s_to_ns(SETTLE_S)

    def pause(self) -> None:
        time.sleep(self._rng.uniform(*PAUSE_S))


def input_figures(site: Site, sent_ns: dict[int, int], during: tuple[int, int]) -> Input:
    """Of the inputs that were sent in that time."""
    edge, robot = site.edge_records(), site.robot_records()
    sent = {number: when for number, when in sent_ns.items() if during[0] <= when < during[1]}
    at_seat = first_seen_ns(edge, Kind.AT_SEAT, *during)
    in_loop = first_seen_ns(edge, Kind.IN_LOOP, *during)
    at_robot = first_seen_ns(robot, Kind.AT_ROBOT, *during)
    followed = _followed(sorted(sent), at_robot)
    waits_ms = [(followed[number] - sent[number]) / 1e6 for number in followed]
    whole = [number for number in sent if number in at_seat and number in in_loop and number in at_robot]
    parts = Parts(
        to_seat_ms=spread([(at_seat[number] - sent[number]) / 1e6 for number in whole]),
        to_loop_ms=spread([(in_loop[number] - at_seat[number]) / 1e6 for number in whole]),
        to_robot_ms=spread([(at_robot[number] - in_loop[number]) / 1e6 for number in whole]),
    )
    return Input(input_to_command_ms=spread(waits_ms, len(sent) - len(followed)), parts=parts)


def _followed(numbers: list[int], at_robot: dict[int, int]) -> dict[int, int]:
    """When the robot server first had a command made of each input or of a newer one: a newer one takes its place."""
    found: dict[int, int] = {}
    newer_ns = 0
    for number in reversed(numbers):
        newer_ns = at_robot.get(number, newer_ns)
        if newer_ns:
            found[number] = newer_ns
    return found


def glass_figures(pictures: list[Seen]) -> Glass:
    changes_ms = [(this.here_ns - before.taken_ns) / 1e6 for before, this in pairwise(pictures)]
    span_s = (pictures[-1].here_ns - pictures[0].here_ns) / 1e9
    return Glass(
        change_ms=spread(changes_ms),
        age_ms=spread([(one.here_ns - one.taken_ns) / 1e6 for one in pictures]),
        rate_hz=round((len(pictures) - 1) / span_s, 2),
    )


def begins_and_ends(site: Site, page: Page, inputs: Inputs, rounds: int) -> tuple[Spread, Spread]:
    """The first input after a pause, and letting go: each until the robot server has the command that follows."""
    began, let_go = [], []
    for _ in tqdm(range(rounds), desc="starts", unit="start"):
        inputs.pause()
        since_ns, _ = inputs.stream(page.drive, BURST)
        began.append(since_ns)
        let_go.append(page.hold())
    time.sleep(SETTLE_S)
    robot = site.robot_records()
    starts_ms = [_until_ms(robot, since_ns, still=False) for since_ns in began]
    ends_ms = [_until_ms(robot, since_ns, still=True) for since_ns in let_go]
    return spread(starts_ms), spread(ends_ms)


def _until_ms(robot: Records, since_ns: int, *, still: bool) -> float:
    """From then to the first command that stands still, or that does not."""
    after = robot[(robot["kind"] == Kind.AT_ROBOT) & (robot["when_ns"] >= since_ns)]
    right = after[(after["number"] == STILL) == still]
    return float(right["when_ns"][0] - since_ns) / 1e6 if len(right) else float("inf")


class Direct:
    """A person without a page: inputs straight to the edge's seat."""

    def __init__(self, client: RequestClient[SeatReply]) -> None:
        self._client = client
        self._seq = 0
        self.sent_ns: dict[int, int] = {}
        taken = client.request(TakeSeat(holder="benchmark"), timeout_s=5.0)
        if not isinstance(taken, SeatTaken):
            raise SystemExit(f"the edge answered {taken}")
        self._session = taken.session
        self._ask(Intent.HOLD, {})

    def drive(self, number: int) -> None:
        self.sent_ns[number] = time.monotonic_ns()
        self._ask(Intent.CORRECT, moves_of(number))

    def leave(self) -> None:
        self._ask(Intent.HOLD, {})
        self._client.request(LeaveSeat(session=self._session), timeout_s=5.0)

    def _ask(self, intent: Intent, moves: dict[str, float]) -> None:
        self._seq += 1
        deadline_ns = time.monotonic_ns() + s_to_ns(VALID_S)
        drive = Drive(session=self._session, seq=self._seq, deadline_ns=deadline_ns, intent=intent, moves=moves)
        self._client.request(drive, timeout_s=5.0)


@contextmanager
def direct_person(site: Site) -> Iterator[Direct]:
    """Has the seat until the end."""
    with site.seat_client() as client:
        person = Direct(client)
        time.sleep(SETTLE_S)
        yield person
        person.leave()


def pings(client: RequestClient[SeatReply], wanted: int) -> Spread:
    """A request that asks for nothing, there and back."""
    found_ms = []
    for _ in range(wanted):
        sent_ns = time.monotonic_ns()
        client.request(Ping(), timeout_s=5.0)
        found_ms.append((time.monotonic_ns() - sent_ns) / 1e6)
        time.sleep(0.003)
    return spread(found_ms)
