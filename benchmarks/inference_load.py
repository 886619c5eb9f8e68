"""The edge's control period beside a slow policy: `python -m benchmarks.inference_load [--quick] [--seed N]`.

A real robot server process (the simulated Franka, real time, 10 actions per second) and the edge's control loop with
its asynchronous chunk scheduler. Chunks take 0 ms, the baseline, or 300 ms of every 400 ms, in several ways, one after
another in every round of one run:

    sleep    the inference thread waits, as for an accelerator
    torch    the inference thread samples from a real diffusion policy on one core
    python   the inference thread computes in the interpreter and never lets go of its lock by itself: the worst case
    server   the diffusion policy runs in a policy server process, asked over loopback with CURVE

A period is the time from one executed step to the next within an episode; jitter is its distance from 100 ms. The last
line is one JSON object; `jitter_p99_change_ms` is the p99 of the jitter with the load less the baseline's (target: 1 ms
at most). On a machine that does other things too, look at `undisturbed`: the periods in which, and before which, the
loop's thread had a CPU within 0.2 ms whenever it was ready to run. A wait for the interpreter's lock is no such wait.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from policies.common.normalization import MinMaxNormalizer, min_max_of_bounds
from policies.diffusion.config import TransformerConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.build import build_robot
from robot_stack.apps.connections import POLICY_REQUEST, network_overrides, policy_client, remote_robot
from robot_stack.apps.edge_policy import share_the_interpreter
from robot_stack.apps.keys import EDGE_KEY, POLICY_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.local_robot import local_robot_server
from robot_stack.apps.policy_server import PolicyServer, give_way
from robot_stack.apps.process import Lifetime
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import NetworkConfig, StackConfig
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.policy_messages import PolicyRequest
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import STATE, PolicySpec
from robot_stack.edge.chunking import ChunkingConfig
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, LoopStep, NoCorrection
from robot_stack.edge.inference_thread import InferenceThread
from robot_stack.edge.remote_policy import RemotePolicy
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.edge.scheduler import AsyncChunkScheduler
from robot_stack.transport.server import RequestServer

INFERENCE_S = 0.3
HORIZON = 16
EXECUTE_STEPS = 4
TARGET_MS = 1.0
UNDISTURBED_MS = 0.2
BASELINE = "none"
LOADS = (BASELINE, "sleep", "torch", "python", "server")


def still(spec: PolicySpec) -> FloatArray:
    """A chunk that holds the robot."""
    return np.zeros((spec.horizon, *spec.action.shape), np.float32)


class Still:
    """Chunks that hold the robot, after `work` has been done: the robot's motion is no part of what is measured."""

    version = 0

    def __init__(self, spec: PolicySpec, work: Callable[[Observation], None]) -> None:
        self.spec = spec
        self._work = work

    def predict(self, observation: Observation) -> ActionChunk:
        self._work(observation)
        return ActionChunk(
            observation_id=observation.id, index=observation.index, weights_version=0, actions=still(self.spec)
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        return np.stack([self.predict(observation).actions for observation in observations])


def in_torch(policy: GenerativePolicy) -> Callable[[Observation], None]:
    """Samples chunks until the time is over."""

    def work(observation: Observation) -> None:
        until_s = time.monotonic() + INFERENCE_S
        while time.monotonic() < until_s:
            policy.predict(observation)

    return work


def in_python(_: Observation) -> None:
    until_s, value = time.monotonic() + INFERENCE_S, 0
    while time.monotonic() < until_s:
        value = (value * 31 + 7) % 1_000_003


def diffusion_policy(config: StackConfig, seed: int) -> GenerativePolicy:
    """An untrained policy of the stack's own kind for this robot."""
    robot = build_robot(config).spec
    spec = PolicySpec(
        name="load",
        task=robot.task,
        horizon=HORIZON,
        action=robot.action,
        observation={STATE: robot.observation[STATE]},
    )
    size = robot.observation[STATE].shape[0]
    generative = GenerativeConfig(
        net=TransformerConfig(embed_dim=64, layers=2, heads=4),
        process=DiffusionChain(train_steps=20),
        solver=SolverConfig(kind="ddim", steps=10),
        observation=MinMaxNormalizer(centre=(0.0,) * size, half_range=(1.0,) * size),
        action=min_max_of_bounds(robot.action.lower_array(), robot.action.upper_array()),
    )
    torch.manual_seed(seed)
    return GenerativePolicy(spec, generative, build_net(generative.net, sizes_of(spec, generative)))


def cpu_wait_s() -> float:
    """How long this thread was ready to run and had no CPU, since it began."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


@dataclass
class Watch:
    """Periods in ms within episodes, and the wait for a CPU in each and the one before; a `StepObserver`."""

    periods_ms: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    last_s: float = 0.0
    waited_s: tuple[float, float] = (0.0, 0.0)

    def on_step(self, step: LoopStep) -> None:
        now_s, waited_s = time.monotonic(), cpu_wait_s()
        if step.observation.index > 1:
            self.periods_ms.append((now_s - self.last_s) * 1e3)
            self.waits_ms.append((waited_s - self.waited_s[0]) * 1e3)
        self.last_s, self.waited_s = now_s, (self.waited_s[1], waited_s)


@dataclass
class Found:
    """What one load did, over all rounds."""

    watch: Watch = field(default_factory=Watch)
    late_actions: int = 0
    empty_steps: int = 0


def drive(robot: RemoteRobot, policy: Policy, found: Found, episodes: int, first: int) -> None:
    """Some episodes with this policy beside the loop."""
    with InferenceThread(robot.spec.control_rate_hz, patience_s=10.0) as inference:
        scheduler = AsyncChunkScheduler(
            policy, inference, ChunkingConfig(mode="switch", execute_steps=EXECUTE_STEPS, when_empty="zero")
        )
        loop = ControlLoop(robot, scheduler, NoCorrection(), [found.watch], 0.2, reads=policy.spec)
        for number in range(first, first + episodes):
            loop.run_episode(EpisodeId(number, number))
        found.late_actions += scheduler.counts.late_actions
        found.empty_steps += scheduler.counts.empty_steps


@contextmanager
def policy_server(overrides: Sequence[str], seed: int) -> Iterator[None]:
    """The policy server of the load `server`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inference_load", "--serve", "--seed", str(seed), *overrides]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def serve(overrides: Sequence[str], seed: int) -> None:
    torch.set_num_threads(1)
    config = compose_config(overrides)
    policy = diffusion_policy(config, seed)
    requests: RequestServer[PolicyRequest] = RequestServer(
        POLICY_REQUEST, config.network.policy_address, ensure_keys(RunLayout.of(config)), POLICY_KEY, PolicyRequest
    )
    give_way()
    with Lifetime() as life, requests:
        PolicyServer(Still(policy.spec, in_torch(policy)), requests, 0.002, 1).run(life.running)


def measure(directory: Path, seed: int, rounds: int, episodes: int) -> dict[str, Found]:
    """Every load in every round, in another order each time."""
    overrides = ["robot=franka", "robot.lock_step=false", "run=load", f"runs_directory={directory}"]
    config = compose_config(overrides)
    keys, local = ensure_keys(RunLayout.of(config)), diffusion_policy(config, seed)
    found = {load: Found() for load in LOADS}
    rng = np.random.default_rng(seed)
    with ExitStack() as opened:
        network: NetworkConfig = opened.enter_context(local_robot_server(config, overrides))
        opened.enter_context(policy_server([*overrides, *network_overrides(network)], seed))
        robot = opened.enter_context(remote_robot(network, keys))
        robot.connect(40.0)
        remote = opened.enter_context(RemotePolicy(lambda: policy_client(network, keys, EDGE_KEY), "load"))
        remote.connect(180.0)
        robot.arm(20.0)
        policies: dict[str, Policy] = {
            BASELINE: Still(local.spec, lambda _: None),
            "sleep": Still(local.spec, lambda _: time.sleep(INFERENCE_S)),
            "torch": Still(local.spec, in_torch(local)),
            "python": Still(local.spec, in_python),
            "server": remote,
        }
        for number in tqdm(range(rounds), unit="round", file=sys.stderr):
            for load in rng.permutation(LOADS):
                drive(robot, policies[load], found[load], episodes, number * episodes)
    return found


def figures(found: Found, wanted_ms: float) -> dict[str, float]:
    periods_ms, waits_ms = np.asarray(found.watch.periods_ms), np.asarray(found.watch.waits_ms)
    jitter_ms = np.abs(periods_ms - wanted_ms)
    undisturbed_ms = jitter_ms[waits_ms < UNDISTURBED_MS]
    return {
        "period_p50_ms": round(float(np.median(periods_ms)), 4),
        "jitter_p50_ms": round(float(np.median(jitter_ms)), 4),
        "jitter_p99_ms": round(float(np.quantile(jitter_ms, 0.99)), 4),
        "jitter_max_ms": round(float(jitter_ms.max()), 4),
        "steps": len(periods_ms),
        "cpu_wait_p99_ms": round(float(np.quantile(waits_ms, 0.99)), 4),
        "undisturbed_steps": len(undisturbed_ms),
        "undisturbed_p99_ms": round(float(np.quantile(undisturbed_ms, 0.99)), 4) if len(undisturbed_ms) else -1.0,
        "late_actions": found.late_actions,
        "empty_steps": found.empty_steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of one episode each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2, help="of two minutes each (default: 2)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    logging.basicConfig(level=logging.WARNING)
    if options.serve:
        serve(overrides, options.seed)
        return
    torch.set_num_threads(1)
    share_the_interpreter()
    rounds, episodes = (1, 1) if options.quick else (options.rounds, 4)
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), options.seed, rounds, episodes)
    result = {load: figures(one, 1e3 / 10.0) for load, one in found.items()}
    base_ms = result[BASELINE]["jitter_p99_ms"]
    change = {load: round(result[load]["jitter_p99_ms"] - base_ms, 4) for load in LOADS[1:]}
    print(
        json.dumps(
            {
                "benchmark": "inference_load",
                "seed": options.seed,
                "inference_ms": INFERENCE_S * 1e3,
                "target_change_ms": TARGET_MS,
                "jitter_p99_change_ms": change,
                **result,
            }
        )
    )


if __name__ == "__main__":
    main()
