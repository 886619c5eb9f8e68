"""A learner's run in small: a made-up robot, few demonstrations, a tiny base policy, and an edge that feeds steps.

The learner is a real process (`robot-stack learner`), fed over the wire through a spool and an uplink as an edge has
them. Only the robot is missing: its steps are drawn at random, the same for the same seed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from msgspec import structs

from policies.common.normalization import MinMaxNormalizer
from policies.common.sizes import Sizes
from policies.diffusion.config import TransformerConfig
from policies.generative.build import build_net
from policies.generative.config import FlowPath, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.apps import cli
from robot_stack.apps.build import base_spec
from robot_stack.apps.connections import learner_client, network_overrides
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import NetworkConfig, StackConfig
from robot_stack.core.codec import pack
from robot_stack.core.messages import Features, LearnerProgress, Refusal, Source, Step, Verdict
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, RobotSpec, vector
from robot_stack.edge.alarms import AlarmBoard
from robot_stack.edge.spool import Spool
from robot_stack.edge.uplink import Uplink
from robot_stack.edge.weights import WeightInbox

EPISODE_STEPS = 12
TASK = "pick_cube"
SPEC = RobotSpec(
    name="robot_0",
    model="made_up",
    task=TASK,
    simulated=True,
    control_rate_hz=10.0,
    tick_rate_hz=100.0,
    command_timeout_s=0.15,
    max_episode_steps=EPISODE_STEPS,
    action=vector(("x_m", "y_m"), lower=(-1.0, -1.0), upper=(1.0, 1.0)),
    observation={STATE: vector(("p_m", "q_m", "r_m")), ENVIRONMENT_STATE: vector(("goal_x_m", "goal_y_m"))},
)


@dataclass(frozen=True, slots=True)
class LearnerRun:
    """A prepared run; `overrides` configure every process of it."""

    directory: Path
    network: NetworkConfig
    settings: tuple[str, ...]

    @property
    def overrides(self) -> list[str]:
        return [
            "run=fed",
            f"task={TASK}",
            f"runs_directory={self.directory}",
            *network_overrides(self.network),
            *self.settings,
        ]

    def config(self) -> StackConfig:
        return _composed(tuple(self.overrides))

    def prepare(self, demonstrations: int = 3) -> None:
        """Everything that a learner needs: keys, the robot's spec, demonstrations, a base policy."""
        config = self.config()
        layout = RunLayout.of(config)
        ensure_keys(layout)
        layout.remember_robot(SPEC)
        with StepStore(layout.demonstrations, "process", StoreSettings(background=False)) as store:
            for number in range(demonstrations):
                store.append([pack(step) for step in demonstration(number)])
        tiny_policy(config).save(layout.policy)


@cache
def _composed(overrides: tuple[str, ...]) -> StackConfig:
    return compose_config(overrides)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["robot_stack.apps.learner", "robot_stack.learner.algorithms", "tests.learner_kit"])


class ForkedLearner:
    """`robot-stack learner` as a process of its own, forked from one that has loaded everything already: loading takes
    longer than all that a small learner does. Started again when it dies, as by the supervisor.

    Use as a context manager, from one thread.
    """

    def __init__(self, run: LearnerRun, log: Path) -> None:
        self._arguments, self._log = ["learner", *run.overrides], log
        self.restarts = 0

    def __enter__(self) -> ForkedLearner:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._started()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join(20.0)
        self._process.kill()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def watch(self) -> None:
        """Start it again if it was killed; AssertionError if it ended in another way."""
        if self._process.is_alive():
            return
        assert self._process.exitcode == -signal.SIGKILL, self._log.read_text()[-3000:]
        self.restarts += 1
        self._process = self._started()

    def _started(self) -> ForkServerProcess:
        process = _FORKS.Process(target=_forked, args=(self._arguments, str(self._log)), daemon=True)
        process.start()
        return process


def _forked(arguments: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(cli.main(arguments))


def tiny_policy(config: StackConfig) -> GenerativePolicy:
    """A flow with random weights, for the made-up robot."""
    torch.manual_seed(0)
    spec = base_spec(config, SPEC)
    made = GenerativeConfig(
        net=TransformerConfig(embed_dim=8, layers=1, heads=1),
        process=FlowPath(),
        solver=SolverConfig(kind="euler", steps=2),
        observation=MinMaxNormalizer(centre=(0.0,) * 5, half_range=(1.0,) * 5),
        action=MinMaxNormalizer(centre=(0.0,) * 2, half_range=(1.0,) * 2),
    )
    return GenerativePolicy(spec, made, build_net(made.net, Sizes.of(spec)))


def demonstration(number: int) -> list[Step]:
    """An expert's episode that succeeds."""
    steps = [_step("fed", "robot_0", "demonstrations", number, index, Source.EXPERT, 0) for index in range(6)]
    steps[-1] = structs.replace(
        steps[-1], terminated=True, success=True, reward=1.0, final_observation=_features((99, number, 6))
    )
    return [structs.replace(step, seq=number * 6 + step.index) for step in steps]


def practice_episode(robot: str, session: str, number: int, version: int) -> list[Step]:
    """An episode of practice: the policy, in every second one a person's recovery and correction, and an end.

    One in three ends with success, one in three with the time, and one just stops, as when the edge was killed.
    """
    length = EPISODE_STEPS
    sources = [Source.POLICY] * length
    if number % 2:
        sources[5:8], sources[8:] = [Source.HUMAN_RECOVERY] * 3, [Source.HUMAN_CORRECTION] * (length - 8)
    steps = [_step("fed", robot, session, number, index, sources[index], version) for index in range(length)]
    steps[3] = structs.replace(steps[3], verdict=Verdict.REFUSED, refusal=Refusal.STALE)
    final = _features((5, number, length))
    if number % 3 == 0:
        steps[-1] = structs.replace(steps[-1], terminated=True, success=True, reward=1.0, final_observation=final)
    elif number % 3 == 1:
        base = steps[-1].action_base
        steps[-1] = structs.replace(steps[-1], truncated=True, final_observation=final, final_action_base=base)
    return steps


def _step(run: str, robot: str, session: str, episode: int, index: int, source: Source, version: int) -> Step:
    rng = np.random.default_rng((7, episode, index))
    base, noise = rng.uniform(-0.8, 0.8, 2), rng.uniform(-0.2, 0.2, 2)
    action = (base + noise).astype(np.float32)
    segments = {Source.HUMAN_RECOVERY: 1, Source.HUMAN_CORRECTION: 2}
    return Step(
        run=run,
        robot=robot,
        task=TASK,
        session=session,
        seq=index,
        episode=episode,
        episode_seed=episode,
        segment=segments.get(source, 0),
        index=index,
        stamp_ns=index,
        observation=_features((5, episode, index)),
        action_base=base.astype(np.float32),
        action_asked=action,
        action_sent=action,
        verdict=Verdict.ACCEPTED,
        refusal=None,
        source=source,
        weights_version=version,
        reward=0.0,
        success=False,
        terminated=False,
        truncated=False,
    )


def _features(seed: tuple[int, ...]) -> Features:
    rng = np.random.default_rng(seed)
    return {
        STATE: rng.uniform(-1, 1, 3).astype(np.float32),
        ENVIRONMENT_STATE: rng.uniform(-1, 1, 2).astype(np.float32),
    }


@dataclass(slots=True)
class FedEdge:
    """Spool and uplink of an edge whose robot's steps are made up; `fed` counts what was given to the spool."""

    run: LearnerRun
    directory: Path
    name: str = "edge"
    robot: str = "robot_0"
    fed: int = 0
    inbox: WeightInbox = field(default_factory=WeightInbox)
    board: AlarmBoard = field(default_factory=AlarmBoard)

    def feed(self, target_steps: int, lead_steps: int, keep_going: Callable[[], bool]) -> Iterator[LearnerProgress]:
        """Whole episodes until so many steps are kept, never further ahead of the learner than `lead_steps`; then until
        all of them are acknowledged and trained through. Yields the learner's news, again and again."""
        keys = ensure_keys(RunLayout.of(self.run.config()))
        with (
            Spool(self.directory, 1 << 26) as spool,
            Uplink(
                lambda: learner_client(self.run.network, keys, self.name), spool, self.inbox, self.board, self.name
            ) as uplink,
        ):
            ready = uplink.trained_through(lead_steps)
            while keep_going():
                if not uplink.wait_until(ready if self.fed < target_steps else _finished, keep_going):
                    break
                progress = uplink.progress
                assert progress is not None
                yield progress
                if self.fed >= target_steps:
                    return
                for step in practice_episode(
                    self.robot, "practice", self.fed // EPISODE_STEPS, progress.weights_version
                ):
                    spool.put(pack(structs.replace(step, seq=self.fed)))
                    self.fed += 1


def _finished(progress: LearnerProgress) -> bool:
    return progress.finished
