"""What other pages do to the control loop: quiet blocks and blocks with them, in turn, while somebody drives."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.teleop.figures import Loop
from benchmarks.teleop.guests import KINDS
from benchmarks.teleop.latency import SETTLE_S, Inputs, input_figures
from benchmarks.teleop.page import Page
from benchmarks.teleop.site import Site
from benchmarks.teleop.taps import Kind, times_ns

QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Block:
    """Periods in ms within one block, of the edge's control loop and of the robot server's ticks."""

    loop_ms: NDArray[np.float64]
    server_ms: NDArray[np.float64]
    during: tuple[int, int]


def blocks(site: Site, page: Page, inputs: Inputs, rounds: int, block_s: float) -> dict[str, list[Block]]:
    """Every condition in every round, in another order each time."""
    found: dict[str, list[Block]] = {kind: [] for kind in (QUIET, *KINDS)}
    rng = np.random.default_rng(rounds)
    with tqdm(total=rounds * len(found), desc="loop", unit="block", file=sys.stderr) as bar:
        for _ in range(rounds):
            for kind in rng.permutation(list(found)):
                found[kind].append(_block(site, page, inputs, "" if kind == QUIET else str(kind), block_s))
                bar.update()
    return found


def _block(site: Site, page: Page, inputs: Inputs, kind: str, block_s: float) -> Block:
    with site.guests(kind):
        inputs.stream(page.drive, sys.maxsize, time.monotonic() + 2 * SETTLE_S)
        since_ns, until_ns = inputs.stream(page.drive, sys.maxsize, time.monotonic() + block_s)
    edge, robot = site.edge_records(), site.robot_records()
    return Block(
        np.diff(times_ns(edge, Kind.STEP, since_ns, until_ns)) / 1e6,
        np.diff(times_ns(robot, Kind.TICK, since_ns, until_ns)) / 1e6,
        (since_ns, until_ns),
    )


def loop_figures(site: Site, page: Page, found: dict[str, list[Block]]) -> dict[str, Loop]:
    quiet = found[QUIET]
    loop_before = np.array([_p99(block.loop_ms) for block in quiet])
    server_before = np.array([_p99(block.server_ms) for block in quiet])
    figures = {}
    for kind, mine in found.items():
        loop = np.array([_p99(block.loop_ms) for block in mine])
        server = np.array([_p99(block.server_ms) for block in mine])
        together = np.concatenate([block.loop_ms for block in mine])
        waits = [input_figures(site, page.sent_ns, block.during).input_to_command_ms.p99 for block in mine]
        figures[kind] = Loop(
            loop_p50_ms=_rounded(np.median(together)),
            loop_p99_ms=_rounded(np.median(loop)),
            loop_p99_change_ms=_rounded(np.median(loop - loop_before)),
            server_p99_ms=_rounded(np.median(server)),
            server_p99_change_ms=_rounded(np.median(server - server_before)),
            all_loop_p99_ms=_rounded(_p99(together)),
            all_input_p99_ms=_rounded(np.median(waits)),
            steps=len(together),
        )
    return figures


def _p99(values: NDArray[np.float64]) -> float:
    return float(np.quantile(values, 0.99))


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 3)
