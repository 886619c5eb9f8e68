"""Slow inference: `python -m benchmarks.chunking [--policy DIR] [--quick] [--seed N] [--episodes N] [--workers N]`.

A trained policy of a simulated Franka's task runs with 0, 100, 200 and 300 ms from observation to chunk, in lock-step,
the same seeds everywhere, behind the safety filter. Ways of joining chunks: taking the new one as it comes (`switch`,
the baseline), averaging all predictions of a step (`ensemble`), real-time chunking (`rtc`; `rtc_identity`: without
going back through the network), and starting from the old chunk (`warm`).

For each: success with Wilson's 95 % interval, the paired difference to `switch` at the same latency, and jumps: changes
between consecutive commands as a share of the axis's range, without the gripper, which is meant to jump. Of every
episode the largest one, and the largest one where a new chunk begins; of all steps the mean there and elsewhere.

The full run writes `benchmarks/results/chunking.json`; the last line is the same JSON object. Quick: a tiny policy
trained here on a few demonstrations; it shows that everything runs, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import Struct
from tqdm import tqdm

from benchmarks.inference.demonstrations import collect
from benchmarks.inference.lane import Lane
from benchmarks.inference.tasks import QUICK_TASK, BenchmarkTask
from policies.diffusion.config import TransformerConfig
from policies.generative.config import FlowPath, SolverConfig
from policies.generative.guidance import GuidedPolicy
from policies.generative.guidance_config import GuidanceConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.warm_start import WarmStartPolicy
from robot_stack.config.robots import ROBOT_PRESETS, Setting
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Policy, SimulatedRobot
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.chunking import ChunkingConfig
from robot_stack.edge.inference_thread import DelayedInference
from robot_stack.edge.scheduler import AsyncChunkScheduler
from robot_stack.evaluation.statistics import Comparison, wilson_interval
from robot_stack.learner.imitation import train
from robot_stack.learner.imitation_config import ImitationConfig

RESULT = Path(__file__).parent / "results" / "chunking.json"
PRESET = "franka"
LATENCIES_S = (0.0, 0.1, 0.2, 0.3)
WAYS = ("switch", "ensemble", "rtc", "rtc_identity", "warm")
QUICK_WAYS = ("switch", "ensemble", "rtc")
QUICK_EPISODES = 2
PORTION = 10  # episodes of one job
EXECUTE_STEPS = 8


class Job(Struct, frozen=True, kw_only=True):
    """Episodes of these seeds, with one way of joining chunks and one latency."""

    policy: str
    way: str
    latency_s: float
    seeds: tuple[int, ...]


class Episode(Struct, frozen=True, kw_only=True):
    """One episode; jumps as shares of the axis's range. `join_jumps`: sum over the steps at which a chunk began."""

    seed: int
    success: bool
    steps: int
    chunks: int
    late_actions: int
    empty_steps: int
    largest_jump: float
    largest_join_jump: float
    join_jumps: float
    joins: int
    other_jumps: float
    others: int


class Row(Struct, frozen=True, kw_only=True):
    """All episodes of one way and latency. Jumps are medians (largest) and means over episodes and steps."""

    way: str
    latency_ms: int
    episodes: int
    success: float
    interval: tuple[float, float]
    difference_to_switch: float
    difference_interval: tuple[float, float]
    p_value: float
    largest_jump_p50: float
    largest_jump_p95: float
    largest_join_jump_p50: float
    join_jump_mean: float
    other_jump_mean: float
    chunks_per_episode: float
    late_actions: int
    empty_steps: int


class ChunkingResult(Struct, frozen=True, kw_only=True):
    benchmark: str
    quick: bool
    policy: str
    task: str
    solver: str
    seed: int
    execute_steps: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Jumps:
    """Changes between consecutive commands."""

    joins: FloatArray
    others: FloatArray

    @classmethod
    def of(cls, actions: FloatArray, begins: Sequence[bool], spec: PolicySpec) -> Jumps:
        """From actions (T, A) and whether a chunk began with each."""
        moving = np.array([name != "gripper" for name in spec.action.names])
        ranges = spec.action.upper_array() - spec.action.lower_array()
        changes = (np.abs(np.diff(actions, axis=0)) / ranges)[:, moving].max(axis=1)
        begun = np.array(begins[1:], np.bool_)
        return cls(changes[begun], changes[~begun])


def robot_of(task: str) -> SimulatedRobot:
    return ROBOT_PRESETS[PRESET].simulated(Setting(task))


def way_of(way: str, policy: GenerativePolicy) -> tuple[Policy, ChunkingConfig]:
    """The policy and the settings of the scheduler that a way of joining chunks means."""
    steps = min(EXECUTE_STEPS, policy.spec.horizon)
    config = ChunkingConfig(mode="rtc", execute_steps=steps, when_empty="zero")
    if way == "rtc":
        return GuidedPolicy(policy), config
    if way == "rtc_identity":
        return GuidedPolicy(policy, GuidanceConfig(jacobian="identity")), config
    if way == "warm":
        return WarmStartPolicy(policy, calls=max(1, len(policy.sampler.calls) // 2)), config
    if way == "ensemble":
        return policy, msgspec.structs.replace(config, mode="ensemble", execute_steps=1)
    return policy, msgspec.structs.replace(config, mode="switch")


def run_episode(lane: Lane, policy: GenerativePolicy, job: Job, seed: int) -> Episode:
    """One episode from start to end."""
    rate_hz = lane.guard.spec.control_rate_hz
    proposing, config = way_of(job.way, policy)
    scheduler = AsyncChunkScheduler(proposing, DelayedInference(job.latency_s, rate_hz), config)
    lane.reset(seed)
    scheduler.begin(seed)
    actions: list[FloatArray] = []
    begins: list[bool] = []
    while not lane.ended:
        begins.append(scheduler.at_boundary(lane.index))
        actions.append(scheduler.propose(lane.observation(), lane.state))
        lane.step(actions[-1])
    jumps, counts = Jumps.of(np.stack(actions), begins, policy.spec), scheduler.counts
    return Episode(
        seed=seed,
        success=lane.success,
        steps=lane.index,
        chunks=counts.chunks,
        late_actions=counts.late_actions,
        empty_steps=counts.empty_steps,
        largest_jump=float(max(jumps.joins.max(initial=0.0), jumps.others.max(initial=0.0))),
        largest_join_jump=float(jumps.joins.max(initial=0.0)),
        join_jumps=float(jumps.joins.sum()),
        joins=len(jumps.joins),
        other_jumps=float(jumps.others.sum()),
        others=len(jumps.others),
    )


def run_job(job: Job) -> list[Episode]:
    """In a worker process: a robot of its own."""
    torch.set_num_threads(1)
    policy = GenerativePolicy.load(Path(job.policy))
    lane = Lane(robot_of(policy.spec.task))
    try:
        lane.remember(policy.spec.history)
        return [run_episode(lane, policy, job, seed) for seed in job.seeds]
    finally:
        lane.close()


def jobs_of(policy: Path, ways: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Portions of seeds; every way and latency gets a portion before any gets the next."""
    portions = [tuple(seeds[begin : begin + PORTION]) for begin in range(0, len(seeds), PORTION)]
    return [
        Job(policy=str(policy), way=way, latency_s=latency_s, seeds=portion)
        for portion in portions
        for latency_s in LATENCIES_S
        for way in ways
    ]


def row_of(way: str, latency_s: float, episodes: Sequence[Episode], switched: Sequence[Episode]) -> Row:
    """Both in the order of the seeds."""
    won = [episode.success for episode in episodes]
    compared = Comparison.of([episode.success for episode in switched], won)
    interval, difference = wilson_interval(sum(won), len(won)), compared.difference_interval()
    largest = [episode.largest_jump for episode in episodes]
    joins, others = sum(episode.joins for episode in episodes), sum(episode.others for episode in episodes)
    return Row(
        way=way,
        latency_ms=round(1e3 * latency_s),
        episodes=len(episodes),
        success=round(sum(won) / len(won), 4),
        interval=(round(interval.lower, 4), round(interval.upper, 4)),
        difference_to_switch=round(compared.difference, 4),
        difference_interval=(round(difference.lower, 4), round(difference.upper, 4)),
        p_value=round(compared.p_value, 4),
        largest_jump_p50=round(float(np.median(largest)), 4),
        largest_jump_p95=round(float(np.quantile(largest, 0.95)), 4),
        largest_join_jump_p50=round(float(np.median([episode.largest_join_jump for episode in episodes])), 4),
        join_jump_mean=round(sum(episode.join_jumps for episode in episodes) / max(joins, 1), 4),
        other_jump_mean=round(sum(episode.other_jumps for episode in episodes) / max(others, 1), 4),
        chunks_per_episode=round(sum(episode.chunks for episode in episodes) / len(episodes), 2),
        late_actions=sum(episode.late_actions for episode in episodes),
        empty_steps=sum(episode.empty_steps for episode in episodes),
    )


def measure(policy: Path, ways: Sequence[str], seeds: Sequence[int], workers: int) -> list[Row]:
    """All ways and latencies on the same seeds."""
    jobs = jobs_of(policy, ways, seeds)
    found: dict[tuple[str, float], list[Episode]] = {}
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=sum(len(job.seeds) for job in jobs), desc="chunking", unit="episode", file=sys.stderr) as bar,
    ):
        for job, episodes in zip(jobs, pool.map(run_job, jobs), strict=True):
            found.setdefault((job.way, job.latency_s), []).extend(episodes)
            bar.update(len(episodes))
    return [
        row_of(way, latency_s, found[way, latency_s], found["switch", latency_s])
        for latency_s in LATENCIES_S
        for way in ways
    ]


def train_tiny(directory: Path, seed: int) -> Path:
    """A policy that has hardly learned anything."""
    task: BenchmarkTask = QUICK_TASK
    robot = task.make_robot()
    spec = task.policy_spec(robot.spec, "flow")
    robot.close()
    data = collect(task.make_robot, task.make_expert, spec.observation, task.demonstrations, task.noise, seed)
    config = ImitationConfig(
        net=TransformerConfig(embed_dim=32, layers=1, heads=2),
        process=FlowPath(),
        solver=SolverConfig(kind="euler", steps=5),
        steps=100,
        batch_size=64,
        warmup_steps=10,
        device="cpu",
        seed=seed,
    )
    train(data, spec, config).save(directory / "policy")
    return directory / "policy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPISODES} episodes each")
    parser.add_argument("--seed", type=int, default=0, help="first seed of the episodes; of the tiny policy")
    parser.add_argument("--policy", type=Path, help="folder of a trained policy; without it a tiny one is trained")
    parser.add_argument("--episodes", type=int, default=200, help="for each way and latency")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="`switch` is always among them")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    episodes = QUICK_EPISODES if options.quick else options.episodes
    ways = tuple(options.ways or (QUICK_WAYS if options.quick else WAYS))
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.policy or train_tiny(Path(scratch), options.seed)
        policy = GenerativePolicy.load(directory)
        seeds = range(options.seed, options.seed + episodes)
        rows = measure(directory, ("switch", *(way for way in ways if way != "switch")), seeds, options.workers)
    for row in rows:
        print(*(f"{key}={value}" for key, value in msgspec.structs.asdict(row).items()))
    solver = policy.config.solver
    result = ChunkingResult(
        benchmark="chunking",
        quick=options.quick,
        policy=policy.spec.name,
        task=policy.spec.task,
        solver=f"{solver.kind}-{solver.steps}",
        seed=options.seed,
        execute_steps=min(EXECUTE_STEPS, policy.spec.horizon),
        rows=rows,
    )
    encoded = msgspec.json.encode(result)
    if not options.quick and options.policy is not None:
        RESULT.parent.mkdir(exist_ok=True)
        write_atomically(RESULT, msgspec.json.format(encoded, indent=1) + b"\n")
    print(encoded.decode())


if __name__ == "__main__":
    main()
