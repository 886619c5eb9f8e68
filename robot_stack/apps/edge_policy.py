"""What proposes the edge's actions: a policy, here or in a policy server, and how its chunks are joined."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from msgspec.structs import replace

from policies.generative.guidance import GuidedPolicy
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime import backend_maker
from robot_stack.apps.actors import BuildChunks, allowed_change, chunk_builder
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.build import runs_in_lock_step
from robot_stack.apps.connections import policy_client
from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError, PolicyError, RobotStackError
from robot_stack.core.messages import ActionChunk, Array
from robot_stack.core.protocols import GuidedChunkPolicy, Policy
from robot_stack.edge.alarms import AlarmBoard
from robot_stack.edge.chunking import ChunkCounts, ChunkingConfig
from robot_stack.edge.gauges import CachesBlocks, Gauges, measured
from robot_stack.edge.inference_thread import DelayedInference, InferenceThread
from robot_stack.edge.live_policy import LiveGuidedPolicy, LivePolicy, PolicyCanary
from robot_stack.edge.remote_policy import RemotePolicy
from robot_stack.edge.scheduler import AsyncChunkScheduler, ChunkScheduler, Proposer
from robot_stack.edge.warmup import WarmUp, example_instruction, example_observation, warm_up
from robot_stack.edge.weights import WeightInbox
from robot_stack.learner.algorithms.settings import ChunkPolicySettings
from robot_stack.transport.keys import KeyStore

logger = logging.getLogger(__name__)

POLL_S = 0.02
SWITCH_INTERVAL_S = 0.0002
CANARY_BUDGET_S = 0.4
"""Of an episode's first chunk on the wall clock; well below what the control lease outlives without a command."""


@dataclass(frozen=True, slots=True)
class EdgePolicy:
    """`policy` predicts; `told` says more about it: what is cached (`CachesBlocks`), words that it knows
    (`ReadsInstructions`). `live`: the same policy where it exchanges itself for newer weights, else None."""

    policy: Policy
    told: object
    live: LivePolicy | None = None


@dataclass(frozen=True, slots=True)
class Chunks:
    """A scheduler whose policy is warm, and what becomes of its chunks."""

    scheduler: Proposer
    counts: ChunkCounts


class NewestTold:
    """What a policy that exchanges itself says of the one that acts now; its words stay those of `base`."""

    def __init__(self, live: LivePolicy, base: GenerativePolicy) -> None:
        self._live = live
        self.example_instruction = base.example_instruction

    @property
    def block_share(self) -> float:
        acting = self._live.acting
        acting = acting.policy if isinstance(acting, GuidedPolicy) else acting
        return acting.block_share if isinstance(acting, CachesBlocks) else 1.0


@contextmanager
def edge_policy(config: StackConfig, keys: KeyStore, inbox: WeightInbox, board: AlarmBoard) -> Iterator[EdgePolicy]:
    """The run's policy in this process, or the one that the policy server serves; errors as of either.

    Where the learner trains what predicts chunks, the policy exchanges itself for the newest of `inbox`, and `board`
    shows what it refused; ConfigError with a policy server then.
    """
    if config.edge.inference == "server":
        if isinstance(config.algorithm, ChunkPolicySettings):
            raise ConfigError(
                f"algorithm '{config.algorithm.module}' trains what predicts chunks, and the edge can exchange that "
                "only in its own process: a policy server goes on with the base policy. Choose edge.inference=local"
            )
        with RemotePolicy(lambda: policy_client(config.network, keys, config.edge.name), config.robot.name) as remote:
            remote.connect(config.edge.patience_s)
            yield EdgePolicy(remote, remote)
    else:
        yield _local_policy(config, load_base_policy(config), inbox, board)


def _local_policy(config: StackConfig, base: GenerativePolicy, inbox: WeightInbox, board: AlarmBoard) -> EdgePolicy:
    guided = GuidedPolicy(base) if config.edge.chunking == "rtc" else None
    build = _builder(config, base)
    if build is None:
        return EdgePolicy(guided or base, base)
    still = runs_in_lock_step(config)
    canary = PolicyCanary(
        allowed_change(config.algorithm, config.edge.canary_max_change), None if still else CANARY_BUDGET_S
    )
    live: LivePolicy
    if guided is not None:
        live = LiveGuidedPolicy(guided, inbox, _guided(build), canary, board, at_rest_only=not still)
    else:
        live = LivePolicy(base, inbox, build, canary, board, at_rest_only=not still)
    return EdgePolicy(live, NewestTold(live, base), live)


def _builder(config: StackConfig, base: GenerativePolicy) -> BuildChunks | None:
    """As of `chunk_builder`. What it builds runs in PyTorch on the configured device: a graph is compiled for one set
    of weights, and that takes seconds to minutes."""
    build = chunk_builder(config.algorithm, base.with_backend(None))
    if build is None:
        return None
    make_backend = backend_maker(replace(config.policy.runtime, backend="eager"), RunLayout.of(config).acceleration)

    def build_here(version: int, tensors: Mapping[str, Array]) -> Policy:
        policy = build(version, tensors)
        if make_backend is not None and isinstance(policy, GenerativePolicy):
            return policy.with_backend(make_backend)
        return policy

    return build_here


def _guided(build: BuildChunks) -> Callable[[int, Mapping[str, Array]], GuidedChunkPolicy]:
    def build_guided(version: int, tensors: Mapping[str, Array]) -> GuidedChunkPolicy:
        policy = build(version, tensors)
        if isinstance(policy, GenerativePolicy):
            return GuidedPolicy(policy)
        if isinstance(policy, GuidedChunkPolicy):
            return policy
        raise PolicyError(
            f"'{policy.spec.name}' cannot go on from planned actions, which edge.chunking=rtc needs; choose switch, "
            "ensemble or sync"
        )

    return build_guided


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
