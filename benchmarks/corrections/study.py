"""Rounds of one way to spend an operator's time: the policy and the operator collect, the learner trains, it is tested.

Everything goes the way of a real run: steps lie in a step store, the trainer reads them from there, the curator of the
rule decides what is learned from, the algorithm fine-tunes, its published weights act in the next round. Every round
trains anew from the base policy, with the same number of updates for every way, so that the data alone differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct

from benchmarks.corrections import gate
from policies.common.normalization import fit_standardizer
from policies.flow.config import ExpertConfig
from policies.generative.config import FlowPath, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.buffer.replay import Replay, ReplayConfig, Stratum
from robot_stack.buffer.store import StepStore
from robot_stack.core.codec import pack
from robot_stack.core.specs import STATE
from robot_stack.learner.algorithms.base import Ingredients, build_chunk_policy, build_recipe
from robot_stack.learner.algorithms.settings.imitation import FineTuningConfig, ImitationSettings, RuleName
from robot_stack.learner.curation import Place
from robot_stack.learner.imitation import train
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.imitation_data import DemonstrationArrays
from robot_stack.learner.trainer import Trainer, TrainerSettings, replay_step

FIRST_DEMONSTRATION, FIRST_PRACTICE, FIRST_TEST = 1_000_000, 2_000_000, 3_000_000
SEEDS_APART = 100_000
MOST_EPISODES = 300
"""Of one round: a policy that hardly fails gives an operator nothing to do."""
TOGETHER = 25

Report = Callable[[str], None]


class Way(Struct, frozen=True):
    """How the operator spends the time, and the rule by which the learner takes it in. `helper` None: not at all."""

    name: str
    rule: RuleName
    helper: Callable[[], gate.Helper] | None


WAYS = (
    Way("more_training", "bc", None),
    Way("rac", "rac", gate.Recoverer),
    Way("hg_dagger", "hg_dagger", gate.Corrector),
    Way("demonstrations", "bc", gate.Demonstrator),
)
"""`more_training` is the control: as many updates on the base policy's demonstrations and nothing else, one round."""


class Plan(Struct, frozen=True, kw_only=True):
    """Sizes of the study. `budget`: operator steps of one round. `base_steps`, `updates`: gradient steps."""

    rounds: int
    budget: int
    demonstrations: int
    base_steps: int
    updates: int
    test_episodes: int
    lr: float = 5e-4
    batch_size: int = 64


class Point(Struct, frozen=True, kw_only=True):
    """After one round. `recoveries`: recovery segments learned from; `shares`: of a batch, by kind of data."""

    way: str
    seed: int
    round: int
    episodes: int
    operator_steps: int
    interventions: int
    recoveries: int
    successes: int
    n: int
    shares: dict[str, float]


def train_base(plan: Plan, seed: int) -> tuple[GenerativePolicy, list[gate.Episode]]:
    """A small flow policy, and the demonstrations that it was trained on."""
    first = FIRST_DEMONSTRATION + seed * SEEDS_APART
    shown = gate.run(None, range(first, first + plan.demonstrations), gate.Demonstrator)
    data = DemonstrationArrays(
        vector=np.concatenate([np.stack(episode.observations) for episode in shown]),
        action=np.concatenate([np.stack(episode.actions) for episode in shown]).astype(np.float32),
        episode_ends=np.cumsum([len(episode.sources) for episode in shown]),
    )
    config = ImitationConfig(
        net=ExpertConfig(embed_dim=32, layers=2, heads=2),
        process=FlowPath(),
        solver=SolverConfig(kind="euler", steps=5),
        steps=plan.base_steps,
        batch_size=plan.batch_size,
        lr=1e-3,
        device="cpu",
        seed=seed,
    )
    return train(data, gate.policy_spec(), config), shown


def successes(policy: GenerativePolicy, plan: Plan, seed: int) -> int:
    """Test episodes that succeed; their seeds are used for nothing else."""
    first = FIRST_TEST + seed * SEEDS_APART
    return sum(one.success for one in gate.run(policy, range(first, first + plan.test_episodes), None))


class Rounds:
    """One way, one seed."""

    def __init__(self, plan: Plan, way: Way, seed: int, base: GenerativePolicy, shown: list[gate.Episode]) -> None:
        self._plan, self._way, self._seed = plan, way, seed
        self._base, self._shown = base, shown
        self._policy = base
        self._episodes = self._steps = self._operator_steps = self._interventions = 0
        self._next_seed = FIRST_PRACTICE + seed * SEEDS_APART

    def run(self, store: StepStore, report: Report) -> list[Point]:
        """All rounds, in a store that is empty."""
        points = []
        for number in range(1, (self._plan.rounds if self._way.helper else 1) + 1):
            self._collect(store, number)
            metrics = self._train(store, number)
            point = Point(
                way=self._way.name,
                seed=self._seed,
                round=number,
                episodes=self._episodes,
                operator_steps=self._operator_steps,
                interventions=self._interventions,
                recoveries=int(metrics["segments_recovery"]),
                successes=successes(self._policy, self._plan, self._seed),
                n=self._plan.test_episodes,
                shares={name[6:]: share for name, share in metrics.items() if name.startswith("share_")},
            )
            points.append(point)
            report(f"{point.way} seed {point.seed} round {number}: {point.successes}/{point.n}")
        return points

    def _collect(self, store: StepStore, number: int) -> None:
        """Episodes until the operator has worked as many steps as all rounds up to this one allow."""
        helper, wanted = self._way.helper, number * self._plan.budget
        last = self._episodes + (MOST_EPISODES if helper else 1)
        policy = None if helper is gate.Demonstrator else self._policy
        while self._operator_steps < wanted and self._episodes < last:
            seeds = range(self._next_seed, self._next_seed + TOGETHER)
            for episode in gate.run(policy, seeds, helper):
                if self._operator_steps >= wanted or self._episodes >= last:
                    break
                steps = gate.steps_of(episode, self._episodes, self._steps, self._policy.version)
                self._steps += len(episode.sources)
                store.append([pack(step) for step in steps])
                self._episodes += 1
                self._operator_steps += episode.operator_steps
                self._interventions += episode.interventions
                self._next_seed = episode.seed + 1

    def _train(self, store: StepStore, version: int) -> dict[str, float]:
        settings = settings_of(self._plan, self._way.rule)
        trainer = make_trainer(settings, self._plan.updates, self._base, self._shown, store, self._seed)
        while trainer.advance():
            pass
        trainer.conclude()
        self._policy = build_chunk_policy(settings, self._base, version, trainer.published)  # type: ignore[assignment]
        return trainer.metrics


def settings_of(plan: Plan, rule: RuleName) -> ImitationSettings:
    return ImitationSettings(rule=rule, batch_size=plan.batch_size, update=FineTuningConfig(lr=plan.lr))


def make_trainer(
    settings: ImitationSettings,
    updates: int,
    base: GenerativePolicy,
    shown: list[gate.Episode],
    store: StepStore,
    seed: int,
) -> Trainer:
    """The learner's trainer, which makes so many updates once it has read what is in the store."""
    observation = base.spec.observation
    recorded = [step for number, one in enumerate(shown) for step in gate.steps_of(one, number, 0, 0)]
    vectors = np.stack([step.observation[STATE] for step in recorded])
    ingredients = Ingredients(
        action=base.spec.action,
        observation=observation,
        standardizer=fit_standardizer(vectors),
        base=base,
        seed=seed,
    )
    recipe = build_recipe(settings, ingredients)
    steps = len(store)
    replays = {place: _replay(len(recorded) + steps, vectors.shape[1], recipe.lookahead) for place in Place}
    for index, step in enumerate(recorded):
        replays[Place.DEMONSTRATIONS].add(replay_step(step, index, observation, Stratum.DEMONSTRATION))
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


def _replay(capacity: int, width: int, lookahead: int) -> Replay:
    return Replay(ReplayConfig(capacity, width, 2, lookahead=lookahead))


def run_way(
    plan: Plan,
    way: Way,
    seed: int,
    base: GenerativePolicy,
    shown: list[gate.Episode],
    folder: Path,
    report: Report,
) -> list[Point]:
    """All rounds of a way, in a step store in an empty folder."""
    with StepStore(folder, durability="process") as store:
        return Rounds(plan, way, seed, base, shown).run(store, report)
