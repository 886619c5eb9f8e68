"""What the study asks of a world: demonstrations, episodes that a policy and an operator share, and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from benchmarks.corrections import gate
from hardware.sim.operators import Mode
from policies.flow.config import ExpertConfig
from policies.generative.config import FlowPath, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.core.messages import HUMAN_SOURCES, Source, Step
from robot_stack.core.specs import PolicySpec
from robot_stack.learner.imitation_config import ImitationConfig

FIRST_DEMONSTRATION, FIRST_PRACTICE, FIRST_TEST = 1_000_000_000, 2_000_000_000, 500_000
SEEDS_APART = 100_000
"""Seeds of episodes: three ranges that never meet, each with a part for every seed of the study."""

TEACHERS = HUMAN_SOURCES | {Source.EXPERT}


class Plan(Struct, frozen=True, kw_only=True):
    """Sizes of the study. `budget`: operator steps of one round. `base_steps`, `updates`: gradient steps.
    `test_episodes`, `last_episodes`: of the tests after every round but the last, and after that."""

    rounds: int
    budget: int
    demonstrations: int
    base_steps: int
    updates: int
    test_episodes: int
    last_episodes: int
    lr: float = 5e-4
    batch_size: int = 64


class World(Protocol):
    """One task. Episodes are told by their seeds; equal seeds give equal episodes."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> PolicySpec:
        """What policies read and write."""

    @property
    def max_steps(self) -> int:
        """Of an episode."""

    def base_training(self, plan: Plan, seed: int) -> ImitationConfig:
        """How the base policy is trained."""

    def demonstrations(self, seeds: Sequence[int]) -> Iterator[list[Step]]:
        """An expert's episodes, the failures included."""

    def practice(self, policy: GenerativePolicy, mode: Mode | None, seeds: Sequence[int]) -> Iterator[list[Step]]:
        """Episodes that the policy and an operator share; with no mode the policy is alone."""

    def test(self, policy: GenerativePolicy, seeds: Sequence[int]) -> list[int]:
        """Steps to success of each episode, the policy alone; 0 where it failed."""


class Gate:
    """The point and the wall with a gate, smooth or rough (`gate`); a `World`."""

    max_steps = gate.MAX_STEPS

    def __init__(self, *, rough: bool) -> None:
        self.name = "rough_gate" if rough else "gate"
        self.spec = gate.policy_spec()
        self._rough = rough

    def base_training(self, plan: Plan, seed: int) -> ImitationConfig:
        return ImitationConfig(
            net=ExpertConfig(embed_dim=32, layers=1, heads=2),
            process=FlowPath(),
            solver=SolverConfig(kind="euler", steps=5),
            steps=plan.base_steps,
            batch_size=plan.batch_size,
            lr=1e-3,
            device="cpu",
            seed=seed,
        )

    def demonstrations(self, seeds: Sequence[int]) -> Iterator[list[Step]]:
        for seed in seeds:
            yield list(gate.steps_of(gate.run(None, [seed], gate.Demonstrator, rough=self._rough)[0]))

    def practice(self, policy: GenerativePolicy, mode: Mode | None, seeds: Sequence[int]) -> Iterator[list[Step]]:
        if mode == "full_demonstrations":
            yield from self.demonstrations(seeds)
            return
        helper = {"rac": gate.Recoverer, "hg_dagger": gate.Corrector, None: None}[mode]
        for at in range(0, len(seeds), _TOGETHER):
            for episode in gate.run(policy, seeds[at : at + _TOGETHER], helper, rough=self._rough):
                yield list(gate.steps_of(episode))

    def test(self, policy: GenerativePolicy, seeds: Sequence[int]) -> list[int]:
        episodes = gate.run(policy, seeds, None, rough=self._rough)
        return [len(episode.sources) if episode.success else 0 for episode in episodes]


_TOGETHER = 20
