"""The fault scorecard: `python -m benchmarks.faults [--rows R] [--kills N] [--jumps N] [--seed S] [--quick]`.

Real processes and real links; what each row means and how it is measured: `docs/faults.md`. A row that cannot be
measured here says why. The last line is one JSON object; with `data` the counts of the kills stand at its top.

    data    kill -9 of ingest and edge at random instants (N, default 1000)
    links   partitions, 30 % loss and 300 ms, between edge and learner and between edge and robot
    files   power cut at every fsync, flipped bits, short writes
    robot   kill -9 of robot server and edge in motion (N of each, default 20), clocks that are off, replayed commands
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct
from tqdm import tqdm

DATA_KILLS, QUICK_DATA_KILLS, ROBOT_KILLS = 1000, 8, 20
GROUPS = ("data", "links", "files", "robot")

Rows = dict[str, object]


class Options(Struct, frozen=True):
    """The command line."""

    rows: tuple[str, ...]
    kills: int | None
    jumps: int
    seed: int
    quick: bool


def data_rows(root: Path, options: Options) -> Rows:
    from benchmarks.faults.data import kill_row

    kills = options.kills or (QUICK_DATA_KILLS if options.quick else DATA_KILLS)
    return _fields(kill_row(root / "kills", kills, options.seed))


def links_rows(root: Path, options: Options) -> Rows:
    from benchmarks.faults.control import reconnects, slow_link
    from benchmarks.faults.links import loss_learner, partition_learner

    seed, quick = options.seed, options.quick
    partition = partition_learner(
        root / "partition", seed, fair_s=1.0 if quick else 10.0, partition_s=2.0 if quick else 60.0
    )
    rows: Rows = {"partition_learner": _fields(partition)}
    if not quick:  # half an hour of steps
        backlog = partition_learner(root / "backlog", seed, fair_s=0.0, partition_s=5.0, ahead_steps=90_000)
        rows["partition_learner_30_min"] = _fields(backlog)
    loss = loss_learner(root / "loss", seed, turns=1 if quick else 2, weather_s=3.0 if quick else 45.0)
    rows["loss_learner"] = _fields(loss)
    rows["loss_command"] = _fields(slow_link(root / "slow", seed, duration_s=3.0 if quick else 180.0))
    rows["partition_operator"] = _fields(reconnects(root / "reconnects", seed, 15 if quick else 1000))
    return rows


def files_rows(root: Path, options: Options) -> Rows:
    from benchmarks.faults.files import bit_flips, power_cuts, short_writes

    seed, quick = options.seed, options.quick
    logging.getLogger("robot_stack").setLevel(logging.CRITICAL)  # thousands of damaged stores would be logged
    power = power_cuts(root / "power", seed, batches=8 if quick else 60, stride=29 if quick else 1)
    flips = bit_flips(root / "flips", seed, flips=60 if quick else 3000, batches=24)
    short = short_writes(root / "short", seed, limits=6 if quick else 100, batches=24)
    return {"power_cuts": _fields(power), "bit_flips": _fields(flips), "short_writes": _fields(short)}


def robot_rows(root: Path, options: Options) -> Rows:
    from benchmarks.faults.robot import robot_rows

    return robot_rows(root, options.kills or ROBOT_KILLS, options.jumps, options.seed, quick=options.quick)


def _fields(row: Struct) -> Rows:
    fields: Rows = msgspec.to_builtins(row)
    return fields


def parse_options() -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", choices=(*GROUPS, "all"), help="default: data; with --quick: all")
    parser.add_argument("--kills", type=int, help="of the data plane's processes, or of each of the robot's")
    parser.add_argument("--jumps", type=int, default=200, help="edges with another clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="short versions, under 45 s on two idle cores")
    given = parser.parse_args()
    rows = given.rows or ("all" if given.quick else "data")
    return Options(GROUPS if rows == "all" else (rows,), given.kills, given.jumps, given.seed, given.quick)


def main() -> None:
    options = parse_options()
    tqdm.monitor_interval = 0  # its thread would be there when processes are forked
    groups = {"data": data_rows, "links": links_rows, "files": files_rows, "robot": robot_rows}
    result: Rows = {"benchmark": "faults", "seed": options.seed, "quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        for name in options.rows:
            root = Path(directory) / name
            root.mkdir()
            result |= groups[name](root, options)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
