"""A chunk of LeRobot's diffusion policy against ours: `python -m benchmarks.lerobot_inference [--quick] [--seed N]`.

    python -m benchmarks.lerobot_inference --success [--work DIR] [--episodes N]

U-Nets of the same channels, horizon, history and features, batch 1, one thread, on the CPU. LeRobot runs in its own
environment, in a process beside this one (`--lerobot-python`; without it those figures are named as not measured);
blocks of chunks take turns, both policies are warm, and every figure is the median over all chunks. `cpu_ms` is the
time on the processor, which others on the machine disturb less than `wall_ms`. Both see features that are all zero once
they are normalised; both draw new noise for every chunk.

Rows: ddim 10 and ddpm 100 (LeRobot's default), each for LeRobot, ours in PyTorch and ours in ONNX Runtime. For ours a
whole `predict` is timed, from features to bounded actions; for LeRobot its sampling alone (`generate_actions`), on
prepared tensors and, as is its default, without torch.compile. `speedup_*` compares the same solver with the same
number of steps; `default_over_default` is LeRobot's default (ddpm 100) over ours (ddim 10): fewer steps, so no
comparison at equal work. Building the graph of 100 unrolled calls takes many minutes: `--max-graph-steps 100` asks for
it.

These networks are untrained. `--success` adds, under `success`, smaller ones that were trained alike on the same
demonstrations of the simulated Franka: success of each solver on the same held-out episodes, each paired with LeRobot's
default, and the times and speedups of those very networks, so of policies of which it is known how well they do. What
is equal there and what is not: `benchmarks/lerobot_success.py`. Stopped, the same command goes on where it was
(`--work`).
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.inference.configurations import FAMILIES, QUICK_FAMILIES
from benchmarks.inference.tasks import QUICK_TASK, task_of
from benchmarks.lerobot_policy import Passed, Setup, solver_name
from benchmarks.lerobot_process import MISSING, ROOT, LeRobotProcess
from benchmarks.lerobot_success import FAMILY, Contest, Plan
from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import UNetConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime import backend_maker
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.core.messages import Observation
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, PolicySpec, vector

STATE_DIM, ENVIRONMENT_DIM, ACTION_DIM, HORIZON, HISTORY = 9, 9, 7, 16, 2
TIME_DIM = 128  # LeRobot's default
CHAIN = DiffusionChain(train_steps=100)
DDPM, DDIM = SolverConfig(kind="ddpm", steps=100), SolverConfig(kind="ddim", steps=10)
WARM_CHUNKS = 2
TASK = "pick_cube"

Rows = dict[str, dict[str, float]]
"""For every way to run a policy its medians."""


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
        process=CHAIN,
        solver=SolverConfig(kind="ddim", steps=10),
        observation=MinMaxNormalizer(centre=(0.0,) * width, half_range=(1.0,) * width),
        action=MinMaxNormalizer(centre=(0.0,) * ACTION_DIM, half_range=(1.0,) * ACTION_DIM),
    )
    torch.manual_seed(seed)
    return GenerativePolicy(spec, config, build_net(config.net, sizes_of(spec, config)))


def timed(policy: GenerativePolicy, count: int) -> list[Passed]:
    """Chunks for features that are zero once they are normalised, as LeRobot's are."""
    names, lengths = zip(*((name, one.shape[0]) for name, one in policy.spec.observation.items()), strict=True)
    centre = np.asarray(policy.config.observation.centre, np.float32)
    features = dict(zip(names, np.split(centre, np.cumsum(lengths)[:-1]), strict=True))
    past = (features,) * (policy.spec.history - 1)
    passed = []
    for index in range(count):
        observation = Observation(id=index, stamp_ns=0, features=features, age_ns={}, index=index, past=past)
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
    solvers: Sequence[SolverConfig],
    rounds: int,
    cache: Path,
    max_graph_steps: int,
) -> dict[str, Rows]:
    """For every solver, for every way to run it, the medians."""
    onnx = backend_maker(RuntimeConfig(backend="onnx", threads=1), cache)
    results = {}
    bar = tqdm(desc="chunks", total=rounds * len(solvers), file=sys.stderr)
    for solver in solvers:
        eager = base.with_solver(solver)
        ours = {"ours_eager": eager}
        if solver.steps <= max_graph_steps:
            ours["ours_onnx"] = eager.with_backend(onnx)
        for policy in ours.values():
            timed(policy, WARM_CHUNKS)
        rows: dict[str, list[Passed]] = {name: [] for name in (*(["lerobot"] if process else []), *ours)}
        count = max(1, 20 // solver.steps)
        for _ in range(rounds):
            if process:
                rows["lerobot"] += process.timed(solver, count)
            for name, policy in ours.items():
                rows[name] += timed(policy, count)
            bar.update()
        results[solver_name(solver)] = {name: median_ms(passed) for name, passed in rows.items()}
    bar.close()
    return results


def speedups(results: dict[str, Rows], theirs: SolverConfig, own: SolverConfig) -> dict[str, float]:
    """By processor time; `theirs` and `own` are the solvers that LeRobot and we take by default. Empty where LeRobot
    was not measured."""
    found = {}
    for solver, rows in results.items():
        if "lerobot" in rows:
            for name in sorted(rows.keys() - {"lerobot"}):
                found[f"speedup_{name}_{solver}"] = round(rows["lerobot"]["cpu_ms"] / rows[name]["cpu_ms"], 2)
    slow, fast = results.get(solver_name(theirs), {}), results.get(solver_name(own), {})
    if "lerobot" in slow and "ours_onnx" in fast:
        found["default_over_default"] = round(slow["lerobot"]["cpu_ms"] / fast["ours_onnx"]["cpu_ms"], 2)
    return found


def lerobot(python: Path, setup: Setup) -> AbstractContextManager[LeRobotProcess | None]:
    """LeRobot's process; None where its environment is not there."""
    return LeRobotProcess(python, setup) if python.exists() else nullcontext()


def plan_of(options: argparse.Namespace, work: Path) -> Plan:
    """What `--success` compares: the U-Net of `benchmarks.inference`; with `--quick` a tiny one, hardly trained."""
    family = (QUICK_FAMILIES if options.quick else FAMILIES)[FAMILY]
    return Plan(
        work=work,
        task=QUICK_TASK if options.quick else task_of(TASK),
        family=family,
        solvers=(family.solvers[0], SolverConfig(kind="ddim", steps=4) if options.quick else DDIM),
        episodes=4 if options.quick else options.episodes,
        seed=options.seed,
    )


def compared(options: argparse.Namespace, cache: Path, rounds: int) -> dict[str, object]:
    """Success of the trained policies, and the times of the same ones."""
    plan = plan_of(options, cache / "work" if options.quick else options.work)
    contest = Contest(plan)
    with lerobot(options.lerobot_python, contest.setup) as process:
        if process:
            contest.train(process)
        report = contest.report(process)
        results = measure(process, contest.ours, plan.solvers, rounds, plan.work / "graphs", options.max_graph_steps)
    for name, rate in report.policies.items():
        difference = "" if rate.difference is None else f"difference {100 * rate.difference:+.1f}"
        print(f"{name:22s} success {100 * rate.rate:5.1f} % of {rate.n} {difference}")
    show(results)
    found: dict[str, object] = msgspec.to_builtins(report)
    return found | {"solvers": results} | speedups(results, *plan.solvers)


def show(results: dict[str, Rows]) -> None:
    for solver, rows in results.items():
        for name, figures in rows.items():
            print(f"{solver:10s} {name:12s}", *(f"{key} {value:10.4g}" for key, value in figures.items()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lerobot_inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a smaller network, ddim 10 alone; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--success", action="store_true", help="train both, and compare how often they succeed")
    parser.add_argument("--work", type=Path, default=Path("runs/inference"), help="what is kept from run to run")
    parser.add_argument("--episodes", type=int, default=200, help="of every policy, on the same seeds")
    parser.add_argument("--max-graph-steps", type=int, default=20, help="solver steps up to which ONNX is measured")
    parser.add_argument("--lerobot-python", type=Path, default=ROOT / ".venv-lerobot" / "bin" / "python")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    channels = (32, 64) if options.quick else (64, 128, 256)
    solvers = (DDIM,) if options.quick else (DDIM, DDPM)
    rounds = 3 if options.quick else 10
    base = make_policy(channels, options.seed)
    parameters = sum(value.numel() for value in base.sampler.parameters())
    report: dict[str, object] = {"benchmark": "lerobot_inference", "seed": options.seed, "quick": options.quick}
    report |= {"torch": str(torch.__version__), "load_average": os.getloadavg()[0]}
    report |= {"channels": channels, "parameters": parameters}
    setup = Setup(spec=base.spec, net=UNetConfig(channels=channels, time_dim=TIME_DIM), chain=CHAIN, seed=options.seed)
    with tempfile.TemporaryDirectory() as cache:
        with lerobot(options.lerobot_python, setup) as process:
            report["lerobot"] = msgspec.to_builtins(process.ready) if process else MISSING
            results = measure(process, base, solvers, rounds, Path(cache), options.max_graph_steps)
        show(results)
        report |= {"solvers": results, **speedups(results, DDPM, DDIM)}
        if options.success:
            report["success"] = compared(options, Path(cache), rounds)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
