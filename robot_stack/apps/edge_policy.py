"""What proposes the edge's actions: the base policy, here or in a policy server, and how its chunks are joined."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from policies.generative.guidance import GuidedPolicy
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.connections import policy_client
from robot_stack.apps.keys import EDGE_KEY
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import ActionChunk
from robot_stack.core.protocols import GuidedChunkPolicy, Policy
from robot_stack.edge.chunking import ChunkCounts, ChunkingConfig
from robot_stack.edge.gauges import Gauges, measured
from robot_stack.edge.inference_thread import DelayedInference, InferenceThread
from robot_stack.edge.remote_policy import RemotePolicy
from robot_stack.edge.scheduler import AsyncChunkScheduler, ChunkScheduler, Proposer
from robot_stack.edge.warmup import WarmUp, example_instruction, example_observation, warm_up
from robot_stack.transport.keys import KeyStore

logger = logging.getLogger(__name__)

POLL_S = 0.02
SWITCH_INTERVAL_S = 0.0002


@dataclass(frozen=True, slots=True)
class EdgePolicy:
    """`policy` predicts; `told` says more about it: what is cached (`CachesBlocks`), words that it knows
    (`ReadsInstructions`)."""

    policy: Policy
    told: object


@dataclass(frozen=True, slots=True)
class Chunks:
    """A scheduler whose policy is warm, and what becomes of its chunks."""

    scheduler: Proposer
    counts: ChunkCounts


@contextmanager
def edge_policy(config: StackConfig, keys: KeyStore) -> Iterator[EdgePolicy]:
    """The run's base policy in this process, or the one that the policy server serves; errors as of either."""
    if config.edge.inference == "server":
        with RemotePolicy(lambda: policy_client(config.network, keys, EDGE_KEY), config.robot.name) as remote:
            remote.connect(config.edge.patience_s)
            yield EdgePolicy(remote, remote)
    else:
        base = load_base_policy(config)
        yield EdgePolicy(GuidedPolicy(base) if config.edge.chunking == "rtc" else base, base)


@contextmanager
def warm_chunks(
    config: StackConfig,
    loaded: EdgePolicy,
    gauges: Gauges,
    *,
    control_rate_hz: float,
    lock_step: bool,
    keep_running: Callable[[], bool],
) -> Iterator[Chunks]:
    """The configured scheduler, once the policy has run, on the thread that will call it, until its timing settled.

    In lock-step a chunk takes `edge.simulated_latency_s` of simulated time, so that runs can be repeated.

    Raises:
        PolicyError: the policy must not drive a robot; see `warm_up`.
        RobotStackError: told to end before the policy was warm.
    """
    edge, policy, timed = config.edge, loaded.policy, measured(loaded.policy, gauges)
    example = example_observation(policy.spec, config.policy.instruction or example_instruction(loaded.told))
    if edge.chunking == "sync":
        _warmed(config, warm_up(policy, example), gauges, control_rate_hz)
        yield Chunks(ChunkScheduler(timed, config.policy.execute_steps), ChunkCounts())
        return
    chunking = ChunkingConfig(mode=edge.chunking, execute_steps=config.policy.execute_steps, when_empty=edge.when_empty)
    guided = policy if edge.chunking == "rtc" and isinstance(policy, GuidedChunkPolicy) else None
    with ExitStack() as opened:
        inference: DelayedInference | InferenceThread
        if lock_step:
            inference = DelayedInference(edge.simulated_latency_s, control_rate_hz)
            warm = warm_up(policy, example, guided=guided)
        else:
            share_the_interpreter()
            inference = opened.enter_context(InferenceThread(control_rate_hz, edge.patience_s))
            warm = _in_thread(inference, lambda: warm_up(policy, example, guided=guided), keep_running)
        _warmed(config, warm, gauges, control_rate_hz)
        scheduler = AsyncChunkScheduler(timed, inference, chunking)
        yield Chunks(scheduler, scheduler.counts)


def share_the_interpreter() -> None:
    """Make the inference thread let go of the interpreter's lock soon when the control loop wakes up.

    Python's own 5 ms can pass at each of a step's several waits. What remains is the time between two operations of the
    policy; a policy server process (`edge.inference=server`) takes nothing from the loop at all.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def _in_thread(inference: InferenceThread, warm: Callable[[], WarmUp], keep_running: Callable[[], bool]) -> WarmUp:
    """Warm up in the thread that predicts: some back-ends keep what they compiled for one thread alone."""
    done: list[WarmUp] = []

    def job() -> ActionChunk:
        done.append(warm())
        return done[0].chunk

    inference.start(job, 0)
    while not inference.arrived(0):
        if not keep_running():
            raise RobotStackError("told to end while the policy was warming up")
        time.sleep(POLL_S)
    inference.wait()
    return done[0]


def _warmed(config: StackConfig, warm: WarmUp, gauges: Gauges, control_rate_hz: float) -> None:
    gauges.warmed(warm)
    logger.info(
        "the policy is warm after %d predictions: the first took %.3f s, the last %.3f s",
        warm.calls,
        warm.first_s,
        warm.median_s,
    )
    if not warm.settled:
        logger.warning(
            "the time of a prediction does not settle (%.3f s at worst): is this computer busy?", warm.slowest_s
        )
    if config.edge.chunking == "sync" and warm.median_s * control_rate_hz > 1.0:
        logger.warning(
            "a prediction takes %.3f s, longer than a control period (%.3f s), and the robot waits for it: choose "
            "edge.chunking=rtc or switch, or a faster back-end (policy.runtime)",
            warm.median_s,
            1.0 / control_rate_hz,
        )
