"""One run: an edge and a learner in one process and one thread, taking turns after every episode.

This is what a run with `edge.max_lead_steps=0` does with its processes: an episode, its steps into the store, every
update that is owed, and then the next episode with the newest published weights. The parts are the stack's own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from benchmarks.inference.rollouts import Simulation
from benchmarks.learning.acting import acting_now, live
from benchmarks.learning.curve import CurveFile, Point
from benchmarks.learning.evaluation import successes
from benchmarks.learning.robot import LocalRobot
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.actors import Improved
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.learner import build_trainer
from robot_stack.apps.operators import build_interventions
from robot_stack.apps.seeds import practice_seed
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import HUMAN_SOURCES, Step
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, NoCorrection
from robot_stack.edge.outbox import pack_step
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.scheduler import ChunkScheduler
from robot_stack.edge.weights import WeightInbox
from robot_stack.learner.checkpoint import CheckpointStore

logger = logging.getLogger(__name__)

CURVE_SEED = 0
LAST_SEED = 100_000
"""First seeds of the evaluations along the way, and of the last one, which nobody has looked at before."""

OnPoint = Callable[[Point], None]


class Measuring(Struct, frozen=True, kw_only=True):
    """When the policy is evaluated, and on how many episodes: every so many environment steps, and at the end."""

    every: int
    episodes: int
    last_episodes: int
    lanes: int


class Spent:
    """Time of practice and learning; `running` is entered for what counts."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.wall_s = max((point.wall_s for point in points), default=0.0)
        self.cpu_s = max((point.cpu_s for point in points), default=0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.process_time() - cpu_s


class Practice:
    """The run of `config`, from where its folder stands.

    Interrupted at any moment it goes on: the store has every whole episode, the newest checkpoint the learner, and
    what lies between the two is learned from once more, bit for bit as before.
    """

    def __init__(
        self,
        config: StackConfig,
        base: GenerativePolicy,
        demonstrations: list[list[Step]],
        robot: LocalRobot,
        simulation: Simulation,
        store: StepStore,
        measuring: Measuring,
    ) -> None:
        layout = RunLayout.of(config)
        self._config, self._base, self._simulation, self._store = config, base, simulation, store
        self._measuring = measuring
        self._curve = curve_file(config)
        self._checkpoints = CheckpointStore(layout.checkpoints, keep=1, keep_best=0)
        self._checkpoints.open()
        self._saved_updates = -1
        self._spent = Spent(self._curve.points)
        self._trainer = build_trainer(config, base, demonstrations, store)
        self._inbox = WeightInbox()
        self._pending: list[Step] = []
        self._episodes = self._human_steps = 0
        policy, corrector = live(config, base, self._inbox)
        self._loop = ControlLoop(
            robot,
            ChunkScheduler(policy, config.policy.execute_steps),
            corrector,
            [Recorder(RecordingId(config.run, robot.spec.name, robot.spec.task), self._pending.append)],
            config.edge.max_state_age_s,
            reads=policy.spec,
            instruction=config.policy.instruction,
            interventions=build_interventions(config, robot.spec),
        )

    def run(self, on_point: OnPoint) -> None:
        """Practise through `learner.target_steps`, measuring on the way; nothing is done that was done before."""
        target, every = self._config.learner.target_steps, self._measuring.every
        with self._spent.running():
            self._resume()
        while self._store.next_index < target:
            self._measure(self._store.next_index // every * every, on_point)
            with self._spent.running():
                self._episode()
                self._learn()
        with self._spent.running():
            self._trainer.conclude()
        self._measure(target, on_point)

    def _resume(self) -> None:
        checkpoint = self._checkpoints.latest()
        if checkpoint is not None:
            self._trainer.restore(checkpoint.tensors, checkpoint.meta)
            self._saved_updates = checkpoint.step
        for _, step in self._store.iterate(self._store.first_index):
            self._count(step)
        self._learn()

    def _episode(self) -> None:
        number = self._episodes
        try:
            self._loop.run_episode(EpisodeId(number, practice_seed(self._config.seed, number)))
        except RobotError as error:
            logger.warning("episode %d abandoned: %s", number, error)
        self._store.append([pack_step(step, ImageCodec.RAW) for step in self._pending])
        for step in self._pending:
            self._count(step)
        self._pending.clear()
        self._episodes = number + 1

    def _count(self, step: Step) -> None:
        self._episodes = max(self._episodes, step.episode + 1)
        self._human_steps += step.source in HUMAN_SOURCES

    def _learn(self) -> None:
        """All that is owed for the recorded steps, and the weights that were published to the edge."""
        while self._trainer.advance():
            pass
        if self._trainer.version > 0:
            self._inbox.put(self._trainer.version, self._trainer.published)

    def _measure(self, due: int, on_point: OnPoint) -> None:
        """The evaluation after `due` steps, unless it is there, and a checkpoint."""
        every = self._config.policy.execute_steps
        if self._curve.has(due, every):
            return
        trainer, last = self._trainer, due >= self._config.learner.target_steps
        acting = acting_now(self._config, self._base, trainer.version, trainer.published)
        first, episodes = self._seeds(last)
        point = Point(
            due=due,
            env_steps=self._store.next_index,
            episodes=self._episodes,
            updates=trainer.updates,
            version=trainer.version,
            replan_every=every,
            wall_s=self._spent.wall_s,
            cpu_s=self._spent.cpu_s,
            first_seed=first,
            success=measured(self._simulation, acting, first, episodes, every, self._measuring.lanes),
            human_steps=self._human_steps,
        )
        self._save()
        self._curve.append(point)
        on_point(point)

    def _seeds(self, last: bool) -> tuple[int, int]:
        return (LAST_SEED, self._measuring.last_episodes) if last else (CURVE_SEED, self._measuring.episodes)

    def _save(self) -> None:
        if self._trainer.updates > self._saved_updates:
            tensors, meta = self._trainer.state()
            self._checkpoints.save(self._trainer.updates, tensors, meta)
            self._saved_updates = self._trainer.updates


def curve_file(config: StackConfig) -> CurveFile:
    return CurveFile(RunLayout.of(config).root / "curve.jsonl")


def is_finished(config: StackConfig) -> bool:
    """Whether the run was measured at its end."""
    return curve_file(config).has(config.learner.target_steps, config.policy.execute_steps)


def measure_base(
    config: StackConfig, base: GenerativePolicy, simulation: Simulation, measuring: Measuring, on_point: OnPoint
) -> None:
    """The base policy alone on the seeds of the last evaluations, as it is run and at other re-planning intervals."""
    curve = curve_file(config)
    acting = Improved(0, base, NoCorrection())
    for every in dict.fromkeys((config.policy.execute_steps, *config.evaluation.replan_every)):
        if curve.has(0, every):
            continue
        success = measured(simulation, acting, LAST_SEED, measuring.last_episodes, every, measuring.lanes)
        point = Point(
            due=0,
            env_steps=0,
            episodes=0,
            updates=0,
            version=0,
            replan_every=every,
            wall_s=0.0,
            cpu_s=0.0,
            first_seed=LAST_SEED,
            success=success,
        )
        curve.append(point)
        on_point(point)


def measured(
    simulation: Simulation, acting: Improved, first: int, episodes: int, execute_steps: int, lanes: int
) -> str:
    """One character for each seed from `first` on, '1' for success."""
    found = successes(simulation, acting, range(first, first + episodes), execute_steps, lanes)
    return "".join("1" if success else "0" for success in found)
