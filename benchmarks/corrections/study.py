"""Rounds of one way to spend an operator's time: the policy and the operator collect, the learner trains, it is tested.

Everything goes the way of a real run: steps lie in a step store, the trainer reads them from there, the curator of the
rule decides what is learned from, the algorithm fine-tunes, its published weights act in the next round. Every round
trains anew from the base policy on all the data there are, with the same number of updates for every way, so that the
data alone differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from msgspec import Struct

from benchmarks.corrections.worlds import (
    FIRST_DEMONSTRATION,
    FIRST_PRACTICE,
    FIRST_TEST,
    SEEDS_APART,
    TEACHERS,
    Plan,
    World,
)
from hardware.sim.operators import Mode
from policies.common.features import flatten, vector_length
from policies.common.normalization import fit_standardizer
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.learner import relabelled
from robot_stack.apps.train import demonstration_arrays
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.replay import Replay, ReplayConfig
from robot_stack.buffer.store import StepStore
from robot_stack.core.messages import HUMAN_SOURCES, Source, Step
from robot_stack.edge.outbox import pack_step
from robot_stack.learner.algorithms.base import Ingredients, build_chunk_policy, build_recipe
from robot_stack.learner.algorithms.settings.imitation import FineTuningConfig, ImitationSettings, RuleName
from robot_stack.learner.curation import Place
from robot_stack.learner.imitation import train
from robot_stack.learner.trainer import Trainer, TrainerSettings

MOST_EPISODES = 300
"""Of one round: a policy that hardly fails gives an operator nothing to do."""
AT_ONCE = 20
MORE_DEMONSTRATIONS = SEEDS_APART // 2
"""Seeds of the further demonstrations begin here, behind those of the base policy."""

Report = Callable[[str], None]


class Way(Struct, frozen=True):
    """How the operator spends the time, and the rule by which the learner takes it in. `mode` None: not at all."""

    name: str
    rule: RuleName
    mode: Mode | None


WAYS = (
    Way("more_training", "bc", None),
    Way("rac", "rac", "rac"),
    Way("hg_dagger", "hg_dagger", "hg_dagger"),
    Way("demonstrations", "bc", "full_demonstrations"),
)
"""`more_training` is the control: as many updates on the base policy's demonstrations and nothing else, one round."""


class Point(Struct, frozen=True, kw_only=True):
    """After one round.

    Attributes:
        episodes, operator_steps, interventions: of practice, so far.
        alone, alone_won: episodes of practice so far without an intervention, and those of them that succeeded.
        recovery_steps, correction_steps: of the operator, so far.
        recoveries: recovery segments learned from.
        outcomes: steps to success of every test episode, 0 where it failed.
        shares: of a batch, by kind of data.
    """

    world: str
    way: str
    seed: int
    round: int
    outcomes: tuple[int, ...]
    episodes: int = 0
    operator_steps: int = 0
    interventions: int = 0
    alone: int = 0
    alone_won: int = 0
    recovery_steps: int = 0
    correction_steps: int = 0
    recoveries: int = 0
    shares: dict[str, float] = {}

    @property
    def successes(self) -> int:
        return sum(steps > 0 for steps in self.outcomes)

    def successes_within(self, steps: int) -> int:
        """Test episodes that succeeded within so many steps."""
        return sum(0 < needed <= steps for needed in self.outcomes)


def train_base(world: World, plan: Plan, seed: int) -> tuple[GenerativePolicy, list[list[Step]]]:
    """A small policy, and the demonstrations that it was trained on."""
    shown = _successful(world.demonstrations(_seeds(FIRST_DEMONSTRATION, seed, MORE_DEMONSTRATIONS)), plan)
    policy = train(demonstration_arrays(shown, world.spec), world.spec, world.base_training(plan, seed))
    return policy, shown


def _successful(episodes: Iterator[list[Step]], plan: Plan) -> list[list[Step]]:
    found: list[list[Step]] = []
    while len(found) < plan.demonstrations:
        episode = next(episodes)
        if episode[-1].success:
            found.append(episode)
    return found


def test(world: World, policy: GenerativePolicy, seed: int, episodes: int) -> tuple[int, ...]:
    """Outcomes on seeds that are used for nothing else."""
    return tuple(world.test(policy, _seeds(FIRST_TEST, seed, episodes)))


def _seeds(first: int, seed: int, number: int) -> range:
    return range(first + seed * SEEDS_APART, first + seed * SEEDS_APART + number)


class Tally:
    """What happened in practice so far."""

    def __init__(self) -> None:
        self.episodes = self.operator_steps = self.interventions = self.alone = self.alone_won = 0
        self.recovery_steps = self.correction_steps = 0

    def add(self, episode: Sequence[Step]) -> None:
        driven = [step.source in TEACHERS for step in episode]
        self.episodes += 1
        self.operator_steps += sum(driven)
        self.interventions += sum(
            step.source in HUMAN_SOURCES and not before for step, before in zip(episode, [False, *driven], strict=False)
        )
        self.alone += not any(driven)
        self.alone_won += not any(driven) and episode[-1].success
        self.recovery_steps += sum(step.source is Source.HUMAN_RECOVERY for step in episode)
        self.correction_steps += sum(step.source is Source.HUMAN_CORRECTION for step in episode)


class Rounds:
    """One way, one seed."""

    def __init__(
        self, world: World, plan: Plan, way: Way, seed: int, base: GenerativePolicy, shown: list[list[Step]]
    ) -> None:
        self._world, self._plan, self._way, self._seed = world, plan, way, seed
        self._base, self._shown = base, shown
        self._policy = base
        self._tally = Tally()
        first = FIRST_DEMONSTRATION + MORE_DEMONSTRATIONS if way.mode == "full_demonstrations" else FIRST_PRACTICE
        self._next_seed = first + seed * SEEDS_APART

    def run(self, store: StepStore, report: Report) -> list[Point]:
        """All rounds, in a store that is empty."""
        points = []
        rounds = self._plan.rounds if self._way.mode else 1
        for number in range(1, rounds + 1):
            self._collect(store, number)
            metrics = self._train(store, number)
            episodes = self._plan.last_episodes if number == rounds else self._plan.test_episodes
            points.append(self._point(number, metrics, test(self._world, self._policy, self._seed, episodes)))
            report(f"{self._way.name} seed {self._seed} round {number}: {points[-1].successes}/{episodes}")
        return points

    def _point(self, number: int, metrics: dict[str, float], outcomes: tuple[int, ...]) -> Point:
        tally = self._tally
        return Point(
            world=self._world.name,
            way=self._way.name,
            seed=self._seed,
            round=number,
            outcomes=outcomes,
            episodes=tally.episodes,
            operator_steps=tally.operator_steps,
            interventions=tally.interventions,
            alone=tally.alone,
            alone_won=tally.alone_won,
            recovery_steps=tally.recovery_steps,
            correction_steps=tally.correction_steps,
            recoveries=int(metrics["segments_recovery"]),
            shares={name[6:]: share for name, share in metrics.items() if name.startswith("share_")},
        )

    def _collect(self, store: StepStore, number: int) -> None:
        """Episodes until the operator has worked as many steps as all rounds up to this one allow."""
        mode, wanted = self._way.mode, number * self._plan.budget
        last = self._tally.episodes + (MOST_EPISODES if mode else 1)
        for first in count(self._next_seed, AT_ONCE):
            for episode in self._world.practice(self._policy, mode, range(first, first + AT_ONCE)):
                store.append([pack_step(step, ImageCodec.RAW) for step in episode])
                self._tally.add(episode)
                self._next_seed = episode[0].episode_seed + 1
                if self._tally.operator_steps >= (wanted if mode else 0) or self._tally.episodes >= last:
                    return

    def _train(self, store: StepStore, version: int) -> dict[str, float]:
        settings = settings_of(self._plan, self._way.rule)
        trainer = make_trainer(settings, self._plan.updates, self._base, self._shown, store, self._seed)
        while trainer.advance():
            pass
        trainer.conclude()
        policy = build_chunk_policy(settings, self._base, version, trainer.published)
        self._policy = policy  # type: ignore[assignment]
        return trainer.metrics


def settings_of(plan: Plan, rule: RuleName) -> ImitationSettings:
    return ImitationSettings(rule=rule, batch_size=plan.batch_size, update=FineTuningConfig(lr=plan.lr))


def make_trainer(
    settings: ImitationSettings,
    updates: int,
    base: GenerativePolicy,
    shown: list[list[Step]],
    store: StepStore,
    seed: int,
) -> Trainer:
    """The learner's trainer, which makes so many updates once it has read what is in the store."""
    observation = base.spec.observation
    vectors = np.stack([flatten(step.observation, observation) for episode in shown for step in episode])
    ingredients = Ingredients(
        action=base.spec.action,
        observation=observation,
        standardizer=fit_standardizer(vectors),
        base=base,
        seed=seed,
    )
    recipe = build_recipe(settings, ingredients)
    steps, sizes = len(store), (vector_length(observation), base.spec.action.shape[0])
    replays = {place: Replay(ReplayConfig(len(vectors) + steps, *sizes, lookahead=recipe.lookahead)) for place in Place}
    for episode in shown:
        for step in relabelled(episode, base, base.spec.horizon, base.spec, intended=True):
            replays[Place.DEMONSTRATIONS].add(step)
    numbers = TrainerSettings(
        target_steps=steps,
        start_after_steps=steps,
        warmup_updates=updates,
        updates_per_step=settings.updates_per_step,
        publish_every_steps=max(1, steps),
        batch_size=settings.batch_size,
        n_step=settings.n_step,
        discount=settings.discount,
    )
    return Trainer(numbers, recipe, store, replays, observation, seed)


def run_way(
    world: World,
    plan: Plan,
    way: Way,
    seed: int,
    base: GenerativePolicy,
    shown: list[list[Step]],
    folder: Path,
    report: Report,
) -> list[Point]:
    """All rounds of a way, in a step store in an empty folder."""
    with StepStore(folder, durability="process") as store:
        return Rounds(world, plan, way, seed, base, shown).run(store, report)
