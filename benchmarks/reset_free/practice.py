"""One run without resets: edge and learner in one process and one thread, taking turns after every episode.

The parts are the stack's own, as in `benchmarks.learning.practice`. A simulated scene does not outlive its process, so
a run that was interrupted begins anew; finished ones stay.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, structs
from tqdm import tqdm

from benchmarks.inference.rollouts import Simulation
from benchmarks.learning.acting import acting_now, live
from benchmarks.learning.practice import CURVE_SEED, LAST_SEED, measured
from benchmarks.learning.robot import LocalRobot
from benchmarks.reset_free.curve import Point, append
from benchmarks.reset_free.robots import judged
from benchmarks.reset_free.variants import Variant
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.actors import Improved
from robot_stack.apps.build import build_simulated
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.learner import build_trainer
from robot_stack.apps.seeds import practice_seed
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import StackConfig
from robot_stack.core.direction import Direction
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Step
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.control_loop import ControlLoop, NoCorrection
from robot_stack.edge.judged_robot import VerdictCounts
from robot_stack.edge.outbox import pack_step
from robot_stack.edge.perturbation import Perturbing
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.reset_free import Call, Episodic, PracticeRecord, ResetFree
from robot_stack.edge.scheduler import ChunkScheduler
from robot_stack.edge.weights import WeightInbox
from robot_stack.learner.rewards.medal import unpaid_backward
from robot_stack.learner.rewards.settings import MedalSettings

logger = logging.getLogger(__name__)

OnPoint = Callable[[Point], None]


class Measuring(Struct, frozen=True, kw_only=True):
    """Evaluations: every so many environment steps, episodes of each and of the last one, robots side by side."""

    every: int
    episodes: int
    last_episodes: int
    lanes: int


class ResetFreePractice:
    """The run of `config`, from its beginning to `learner.target_steps`."""

    def __init__(
        self,
        config: StackConfig,
        variant: Variant,
        base: GenerativePolicy,
        demonstrations: list[list[Step]],
        robot: LocalRobot,
        classifiers: dict[Direction, Path],
        store: StepStore,
    ) -> None:
        layout = RunLayout.of(config)
        layout.edge.mkdir(parents=True)
        self._config, self._base, self._store = config, base, store
        if isinstance(config.reward, MedalSettings):
            demonstrations = unpaid_backward(demonstrations, config.reward)
        self._trainer = build_trainer(config, base, demonstrations, store)
        self._inbox = WeightInbox()
        self._pending: list[Step] = []
        self._resets = self._number = 0
        self._cpu_s = 0.0
        self._robot = judged(robot, variant, classifiers, config.seed)
        self._episodes = ResetFree(config.practice, layout.edge, self._person) if variant.reset_free else Episodic()
        policy, corrector = live(config, base, self._inbox)
        self._perturbing = Perturbing(corrector, config.practice, robot.spec, config.seed)
        recorder = Recorder(RecordingId(config.run, robot.spec.name, robot.spec.task), self._pending.append)
        self._loop = ControlLoop(
            self._robot,
            ChunkScheduler(policy, config.policy.execute_steps),
            self._perturbing if variant.reset_free else corrector,
            [recorder, self._episodes],
            config.edge.max_state_age_s,
            reads=policy.spec,
        )

    def _person(self, call: Call) -> None:
        """The scripted person answers at once; the reset of the scene that follows is what they do."""

    def run(self, simulation: Simulation, measuring: Measuring, on_point: OnPoint) -> None:
        target, due = self._config.learner.target_steps, measuring.every
        with tqdm(total=target, desc=self._config.run, unit="step", file=sys.stderr) as bar:
            while self._store.next_index < target:
                began_s = time.process_time()
                self._episode()
                self._learn()
                self._cpu_s += time.process_time() - began_s
                bar.update(self._store.next_index - bar.n)
                if due <= self._store.next_index < target:
                    on_point(self._point(simulation, measuring, last=False))
                    due += measuring.every
        self._trainer.conclude()
        on_point(self._point(simulation, measuring, last=True))

    def _episode(self) -> None:
        number = self._number
        self._number += 1
        episode = self._episodes.next(number, practice_seed(self._config.seed, number))
        self._resets += episode.here is None
        try:
            self._episodes.ended(self._loop.run_episode(episode))
        except RobotError as error:
            logger.warning("episode %d abandoned: %s", number, error)
            self._episodes.failed(error)
        self._store.append([pack_step(step, ImageCodec.RAW) for step in self._pending])
        self._pending.clear()

    def _learn(self) -> None:
        while self._trainer.advance():
            pass
        if self._trainer.version > 0:
            self._inbox.put(self._trainer.version, self._trainer.published)

    def _point(self, simulation: Simulation, measuring: Measuring, *, last: bool) -> Point:
        trainer, config = self._trainer, self._config
        acting = acting_now(config, self._base, trainer.version, trainer.published)
        first, count = (LAST_SEED, measuring.last_episodes) if last else (CURVE_SEED, measuring.episodes)
        record = self._episodes.record if isinstance(self._episodes, ResetFree) else PracticeRecord()
        return Point(
            env_steps=self._store.next_index,
            episodes=self._number,
            updates=trainer.updates,
            first_seed=first,
            success=measured(simulation, acting, first, count, config.policy.execute_steps, measuring.lanes),
            resets=self._resets,
            calls=record.calls,
            perturbations=self._perturbing.perturbations,
            practice=record,
            forward=_copied(self._robot.forward),
            backward=_copied(self._robot.backward),
            cpu_s=self._cpu_s,
            last=last,
        )


def practise(
    config: StackConfig,
    variant: Variant,
    base: GenerativePolicy,
    robot_spec: RobotSpec,
    demonstrations: list[list[Step]],
    classifiers: dict[Direction, Path],
    measuring: Measuring,
    on_point: OnPoint,
) -> None:
    """Run it in an empty folder and keep every point there."""
    layout = RunLayout.of(config)
    shutil.rmtree(layout.root, ignore_errors=True)
    layout.remember_robot(robot_spec)
    curve = curve_path(config)

    def keep(point: Point) -> None:
        append(curve, point)
        on_point(point)

    with (
        Simulation(lambda: build_simulated(config)) as simulation,
        LocalRobot(build_simulated(config)) as robot,
        StepStore(layout.steps, config.learner.durability, config.learner.store) as store,
    ):
        run = ResetFreePractice(config, variant, base, demonstrations, robot, classifiers, store)
        run.run(simulation, measuring, keep)


def measure_base(config: StackConfig, base: GenerativePolicy, measuring: Measuring, on_point: OnPoint) -> None:
    """The base policy alone, on the seeds of the last evaluations."""
    with Simulation(lambda: build_simulated(config)) as simulation:
        acting = Improved(0, base, NoCorrection())
        count, every = measuring.last_episodes, config.policy.execute_steps
        point = Point(
            env_steps=0,
            episodes=0,
            updates=0,
            first_seed=LAST_SEED,
            success=measured(simulation, acting, LAST_SEED, count, every, measuring.lanes),
            resets=0,
            calls=0,
            perturbations=0,
            practice=PracticeRecord(),
            forward=VerdictCounts(),
            backward=VerdictCounts(),
            cpu_s=0.0,
            last=True,
        )
    append(curve_path(config), point)
    on_point(point)


def curve_path(config: StackConfig) -> Path:
    return RunLayout.of(config).root / "curve.jsonl"


def _copied(counts: VerdictCounts) -> VerdictCounts:
    return structs.replace(counts)
