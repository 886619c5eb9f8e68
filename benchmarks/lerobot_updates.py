"""Updates of our RLPD against LeRobot's SAC learner: `python -m benchmarks.lerobot_updates [--quick] [--seed N]`.

Both learn from vectors alone, on one CPU thread, with the same number of critics, hidden widths, subset of the target's
critics, observation and action sizes and batch of 256, half of it from each of two full replays; an update draws its
batch, learns from it, clips the gradient and moves the target's average, and after every `updates` of them actor and
temperature learn once. LeRobot runs in its own environment, in a process beside this one (`--lerobot-python`; without
it those figures are named as not measured); blocks take turns, both are warm, and every figure is the median over the
rounds. `cpu_ms` is the time on the processor for one critic update with its share of the actor's; others on the machine
disturb it less than `wall_ms`. `speedup` is LeRobot's cpu_ms over ours.

`compiled`: LeRobot's `use_torch_compile`, its default, which takes a C++ compiler and a while; measured without
`--quick`. What is not alike: LeRobot has an encoder of the state before its networks (18 wide here), its
activations are SiLU and not ReLU, its LayerNorm has a gain and a shift, and it has its own sampling.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.lerobot_learner import EPISODE, STORED, Block, Passed, Ready, Sizes
from policies.common.normalization import Standardizer
from policies.gaussian.config import GaussianConfig
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Sampler
from robot_stack.core.errors import ConfigError
from robot_stack.core.specs import vector
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf
from robot_stack.learner.algorithms.sac import Sac
from robot_stack.learner.algorithms.settings.sac import SacConfig

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "lerobot_learner.py"
MISSING = "not measured: run make lerobot-env"
WARM_ROUNDS = 3
QUICK_SIZES = (
    Sizes(critics=10, hidden=(128, 128), updates=4),
    Sizes(critics=2, hidden=(128, 128), updates=2),
)
FULL_SIZES = (
    *QUICK_SIZES,
    Sizes(critics=10, hidden=(256, 256), updates=4),
    Sizes(critics=2, hidden=(256, 256), updates=2),
)


class Ours:
    """RLPD of the same sizes, on two full replays."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self._updates = sizes.updates
        bound = (1.0,) * sizes.action_dim
        config = SacConfig(
            critics=sizes.critics,
            subset=sizes.subset,
            critic_hidden=sizes.hidden,
            actor_every=sizes.updates,
            backup_entropy=False,
        )
        standardizer = Standardizer(mean=(0.0,) * sizes.observation_dim, std=(1.0,) * sizes.observation_dim)
        names = tuple(f"a{index}" for index in range(sizes.action_dim))
        action = vector(names, tuple(-value for value in bound), bound)
        self._algorithm = Sac(config, GaussianConfig(hidden=sizes.hidden), action, standardizer, seed)
        parts = HalfAndHalf(0.5)(filled(sizes, seed), filled(sizes, seed + 1))
        self._batches = Batches(Sampler(parts, seed), sizes.batch, n_step=1, discount=0.99)
        for _ in range(WARM_ROUNDS):
            self._round()

    def _round(self) -> None:
        for _ in range(self._updates):
            self._algorithm.update(self._batches)

    def timed(self, rounds: int) -> list[Passed]:
        passed = []
        for _ in range(rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            self._round()
            passed.append(Passed(time.perf_counter() - wall, time.process_time() - cpu))
        return passed


def filled(sizes: Sizes, seed: int) -> Replay:
    """A replay of episodes that end with a reward of 1."""
    rng = np.random.default_rng(seed)
    replay = Replay(ReplayConfig(STORED, sizes.observation_dim, sizes.action_dim))
    for index in range(STORED):
        episode, step = divmod(index, EPISODE)
        ends = step == EPISODE - 1
        action = rng.uniform(-1.0, 1.0, sizes.action_dim).astype(np.float32)
        replay.add(
            ReplayStep(
                stream=episode,
                index=step,
                stratum=Stratum.ONLINE,
                observation=rng.standard_normal(sizes.observation_dim).astype(np.float32),
                action_base=action,
                action=action,
                reward=float(ends),
                terminated=ends,
                truncated=False,
            )
        )
    return replay


class LeRobot:
    """LeRobot's learner at the other end of a pipe."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.ready = msgspec.json.decode(self._line(), type=Ready)

    def timed(self, block: Block) -> list[Passed]:
        """The rounds of a warm learner."""
        if self._process.stdin:
            with suppress(BrokenPipeError):  # the missing answer says it
                self._process.stdin.write(msgspec.json.encode(block) + b"\n")
                self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=list[Passed])

    def _line(self) -> bytes:
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise ConfigError(
                "the LeRobot process ended by itself; its last lines above say why. Is its environment whole? make "
                "lerobot-env makes it"
            )
        return line


@contextmanager
def lerobot(python: Path) -> Iterator[LeRobot | None]:
    """LeRobot's process; None where its environment is not there."""
    if not python.exists():
        yield None
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-P", str(SCRIPT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield LeRobot(process)
        finally:
            if process.stdin:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.kill()


def figures(passed: list[Passed], updates: int) -> dict[str, float]:
    cpu_s = float(np.median([one.cpu_s for one in passed])) / updates
    return {
        "updates_per_cpu_s": round(1.0 / cpu_s, 1),
        "cpu_ms": round(1e3 * cpu_s, 3),
        "wall_ms": round(1e3 * float(np.median([one.wall_s for one in passed])) / updates, 3),
        "rounds": len(passed),
    }


def measure(
    process: LeRobot | None, sizes: Sizes, compiled: tuple[bool, ...], turns: int, seed: int
) -> dict[str, dict[str, float]]:
    """For ours, and for LeRobot's without and with its compilation, the medians; `speedup` of each of LeRobot's."""
    ours, rounds = Ours(sizes, seed), 2
    theirs = {"lerobot_compiled" if one else "lerobot": one for one in compiled} if process else {}
    passed: dict[str, list[Passed]] = {name: [] for name in ("ours", *theirs)}
    for name, one in theirs.items():
        if process:
            process.timed(Block(sizes=sizes, compile=one, rounds=1))
            tqdm.write(f"{name} is warm", file=sys.stderr)
    for _ in tqdm(range(turns), desc=sizes.name, file=sys.stderr):
        passed["ours"] += ours.timed(rounds)
        for name, one in theirs.items():
            if process:
                passed[name] += process.timed(Block(sizes=sizes, compile=one, rounds=rounds))
    found = {name: figures(values, sizes.updates) for name, values in passed.items()}
    for name in theirs:
        found[name]["speedup"] = round(found[name]["cpu_ms"] / found["ours"]["cpu_ms"], 2)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lerobot_updates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="two sizes, without compilation; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lerobot-python", type=Path, default=ROOT / ".venv-lerobot" / "bin" / "python")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    report: dict[str, object] = {"benchmark": "lerobot_updates", "seed": options.seed, "quick": options.quick}
    report |= {"torch": str(torch.__version__), "load_average": os.getloadavg()[0]}
    with lerobot(options.lerobot_python) as process:
        report["lerobot"] = msgspec.to_builtins(process.ready) if process else MISSING
        for sizes in QUICK_SIZES if options.quick else FULL_SIZES:
            compiled = (False,) if options.quick else (False, True)
            found = measure(process, sizes, compiled, 12 if options.quick else 30, options.seed)
            for name, values in found.items():
                print(f"{sizes.name:24s} {name:17s}", *(f"{key} {value:8.4g}" for key, value in values.items()))
            report[sizes.name] = found
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
