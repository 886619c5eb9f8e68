"""A chunk of LeRobot's diffusion policy against ours: `python -m benchmarks.lerobot_inference [--quick] [--seed N]`.

U-Nets of the same channels, horizon, history and features, batch 1, one thread, on the CPU. LeRobot runs in its own
environment, in a process beside this one (`--lerobot-python`; without it those figures are named as not measured);
blocks of chunks take turns, and every figure is the median over all chunks. `cpu_ms` is the time on the processor,
which others on the machine disturb less than `wall_ms`.

Rows: ddim 10 and ddpm 100 (LeRobot's default), each for LeRobot, ours in PyTorch and ours in ONNX Runtime. For ours a
whole `predict` is timed, from features to bounded actions; for LeRobot its sampling alone, on prepared tensors.
`speedup_*` compares the same solver with the same number of steps; `default_over_default` is LeRobot's default (ddpm
100) over ours (ddim 10): fewer steps, so no comparison at equal work. Success is not compared here: the networks are
untrained. Building the graph of 100 unrolled calls takes many minutes: `--max-graph-steps 100` asks for it.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
import torch
from msgspec import Struct
from tqdm import tqdm

from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import UNetConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime import backend_maker
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Observation
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, PolicySpec, vector

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "lerobot_policy.py"
MISSING = "not measured: run make lerobot-env"
STATE_DIM, ENVIRONMENT_DIM, ACTION_DIM, HORIZON, HISTORY = 9, 9, 7, 16, 2
TIME_DIM = 128  # LeRobot's default
DEFAULTS = {"lerobot": "ddpm-100", "ours": "ddim-10"}


class Passed(Struct, frozen=True):
    """Time that one chunk took."""

    wall_s: float
    cpu_s: float


class Ready(Struct, frozen=True):
    """The first line of the script."""

    lerobot: str
    torch: str
    parameters: int


class LeRobotProcess:
    """LeRobot's policy in its own interpreter; a context manager that ends the process at its end."""

    def __init__(self, python: Path, channels: tuple[int, ...], seed: int) -> None:
        sizes = {
            "state": STATE_DIM,
            "environment": ENVIRONMENT_DIM,
            "action": ACTION_DIM,
            "horizon": HORIZON,
            "history": HISTORY,
            "seed": seed,
        }
        self._command = [str(python), "-P", str(SCRIPT), "--channels", *map(str, channels)]
        for name, value in sizes.items():
            self._command += [f"--{name}", str(value)]

    def __enter__(self) -> LeRobotProcess:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.ready = msgspec.json.decode(self._line(), type=Ready)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        try:
            self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def chunks(self, solver: SolverConfig, count: int) -> list[Passed]:
        if self._process.stdin:
            self._process.stdin.write(f"{solver.kind} {solver.steps} {count}\n")
            self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=list[Passed])

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise ConfigError(f"the LeRobot process ended by itself: {' '.join(self._command)}; {MISSING}")
        return line


def make_policy(channels: tuple[int, ...], seed: int) -> GenerativePolicy:
    """Ours, untrained, with the same channels and features."""
    spec = PolicySpec(
        name="unet",
        task="none",
        horizon=HORIZON,
        history=HISTORY,
        action=vector(tuple(f"a{i}" for i in range(ACTION_DIM)), (-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM),
        observation={
            STATE: vector(tuple(f"s{i}" for i in range(STATE_DIM))),
            ENVIRONMENT_STATE: vector(tuple(f"e{i}" for i in range(ENVIRONMENT_DIM))),
        },
    )
    width = STATE_DIM + ENVIRONMENT_DIM
    config = GenerativeConfig(
        net=UNetConfig(channels=channels, time_dim=TIME_DIM),
        process=DiffusionChain(train_steps=100),
        solver=SolverConfig(kind="ddim", steps=10),
        observation=MinMaxNormalizer(centre=(0.0,) * width, half_range=(1.0,) * width),
        action=MinMaxNormalizer(centre=(0.0,) * ACTION_DIM, half_range=(1.0,) * ACTION_DIM),
    )
    torch.manual_seed(seed)
    return GenerativePolicy(spec, config, build_net(config.net, sizes_of(spec, config)))


def timed(policy: GenerativePolicy, count: int) -> list[Passed]:
    features = {STATE: np.zeros(STATE_DIM, np.float32), ENVIRONMENT_STATE: np.zeros(ENVIRONMENT_DIM, np.float32)}
    passed = []
    for index in range(count):
        observation = Observation(id=index, stamp_ns=0, features=features, age_ns={}, index=index, past=(features,))
        wall, cpu = time.perf_counter(), time.process_time()
        policy.predict(observation)
        passed.append(Passed(time.perf_counter() - wall, time.process_time() - cpu))
    return passed


def median_ms(passed: list[Passed]) -> dict[str, float]:
    return {
        "wall_ms": round(1e3 * float(np.median([one.wall_s for one in passed])), 3),
        "cpu_ms": round(1e3 * float(np.median([one.cpu_s for one in passed])), 3),
        "chunks": len(passed),
    }


def measure(
    process: LeRobotProcess | None,
    base: GenerativePolicy,
    solvers: list[SolverConfig],
    rounds: int,
    cache: Path,
    max_graph_steps: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """For every solver, for every way to run it, the medians."""
    onnx = backend_maker(RuntimeConfig(backend="onnx", threads=1), cache)
    results = {}
    bar = tqdm(total=rounds * len(solvers), file=sys.stderr)
    for solver in solvers:
        eager = base.with_solver(solver)
        ours = {"ours_eager": eager}
        if solver.steps <= max_graph_steps:
            ours["ours_onnx"] = eager.with_backend(onnx)
        for policy in ours.values():
            timed(policy, 2)
        rows: dict[str, list[Passed]] = {name: [] for name in (*(["lerobot"] if process else []), *ours)}
        count = max(1, 20 // solver.steps)
        for _ in range(rounds):
            if process:
                rows["lerobot"] += process.chunks(solver, count)
            for name, policy in ours.items():
                rows[name] += timed(policy, count)
            bar.update()
        results[f"{solver.kind}-{solver.steps}"] = {name: median_ms(passed) for name, passed in rows.items()}
    bar.close()
    return results


def speedups(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """By processor time. Empty where LeRobot was not measured."""
    found = {}
    for solver, rows in results.items():
        if "lerobot" in rows:
            for name in sorted(rows.keys() - {"lerobot"}):
                found[f"speedup_{name}_{solver}"] = round(rows["lerobot"]["cpu_ms"] / rows[name]["cpu_ms"], 2)
    theirs, own = results.get(DEFAULTS["lerobot"], {}), results.get(DEFAULTS["ours"], {})
    if "lerobot" in theirs and "ours_onnx" in own:
        found["default_over_default"] = round(theirs["lerobot"]["cpu_ms"] / own["ours_onnx"]["cpu_ms"], 2)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lerobot_inference", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller network, ddim 10 alone; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-graph-steps", type=int, default=20, help="solver steps up to which ONNX is measured")
    parser.add_argument("--lerobot-python", type=Path, default=ROOT / ".venv-lerobot" / "bin" / "python")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    channels = (32, 64) if options.quick else (64, 128, 256)
    solvers = [SolverConfig(kind="ddim", steps=10)]
    if not options.quick:
        solvers.append(SolverConfig(kind="ddpm", steps=100))
    base = make_policy(channels, options.seed)
    rounds = 3 if options.quick else 10
    report: dict[str, object] = {"benchmark": "lerobot_inference", "seed": options.seed, "quick": options.quick}
    report |= {"channels": channels, "parameters": sum(value.numel() for value in base.sampler.parameters())}
    with tempfile.TemporaryDirectory() as cache:
        if options.lerobot_python.exists():
            with LeRobotProcess(options.lerobot_python, channels, options.seed) as process:
                report["lerobot"] = msgspec.to_builtins(process.ready)
                results = measure(process, base, solvers, rounds, Path(cache), options.max_graph_steps)
        else:
            report["lerobot"] = MISSING
            results = measure(None, base, solvers, rounds, Path(cache), options.max_graph_steps)
    for solver, rows in results.items():
        for name, figures in rows.items():
            print(f"{solver:10s} {name:12s}", *(f"{key} {value:10.4g}" for key, value in figures.items()))
    print(json.dumps(report | {"solvers": results} | speedups(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
