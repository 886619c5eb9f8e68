"""Peg insertion on the simulated Franka, through the stack's own control loop, safety filter and operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.corrections.worlds import Plan
from benchmarks.inference.rollouts import Simulation
from benchmarks.learning.robot import LocalRobot
from hardware.franka.sim import SimulatedFranka
from hardware.sim.experts import make_expert
from hardware.sim.operators import Mode, OperatorConfig
from hardware.sim.tasks.peg_insertion import PegInsertion, PegInsertionConfig
from policies.diffusion.config import TransformerConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.collect import ActionNoise, ExpertProposer
from robot_stack.apps.operators import scripted_interventions
from robot_stack.core.messages import Step
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.control_loop import ControlLoop, Corrector, EpisodeId, NoCorrection
from robot_stack.edge.operator import Interventions, Nobody
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.scheduler import ChunkScheduler, Proposer
from robot_stack.learner.imitation_config import ImitationConfig

TASK = "peg_insertion"
HORIZON = 8
FEATURES = ("observation.state", "observation.environment_state", "observation.external_wrench")
EXPERT_NOISE = 0.05
BACK_OFF_M = 0.010
MAX_STATE_AGE_S = 0.2
LANES = 32


class Peg:
    """A `World`. `bias_m`: error of the observed socket, constant in an episode, drawn up to this along each axis."""

    max_steps = 80
    """Eight times what a demonstration takes: there is room to try again."""

    def __init__(self, *, bias_m: float) -> None:
        self.name = "biased_peg" if bias_m > 0.0 else "peg"
        self._task = PegInsertionConfig(max_episode_steps=self.max_steps, observation_bias_range_m=bias_m)
        self._simulation = Simulation(self._franka)
        self._robot = LocalRobot(self._franka())
        robot = self._robot.spec
        self.spec = PolicySpec(
            name=f"diffusion-{TASK}",
            task=TASK,
            horizon=HORIZON,
            action=robot.action,
            observation={name: robot.observation[name] for name in FEATURES},
        )

    def base_training(self, plan: Plan, seed: int) -> ImitationConfig:
        return ImitationConfig(
            net=TransformerConfig(),
            steps=plan.base_steps,
            batch_size=plan.batch_size,
            device="cpu",
            seed=seed,
        )

    def demonstrations(self, seeds: Sequence[int]) -> Iterator[list[Step]]:
        robot = self._robot.spec
        proposer = ExpertProposer(make_expert(TASK, robot))
        return self._episodes(proposer, ActionNoise(robot.action, EXPERT_NOISE), Interventions(Nobody()), seeds)

    def practice(self, policy: GenerativePolicy, mode: Mode | None, seeds: Sequence[int]) -> Iterator[list[Step]]:
        if mode == "full_demonstrations":
            return self.demonstrations(seeds)
        operator = Interventions(Nobody())
        if mode is not None:
            operator = scripted_interventions(self._robot.spec, OperatorConfig(mode=mode, back_off_m=BACK_OFF_M))
        return self._episodes(ChunkScheduler(policy, HORIZON), NoCorrection(), operator, seeds)

    def test(self, policy: GenerativePolicy, seeds: Sequence[int]) -> list[int]:
        outcomes = self._simulation.rollouts(policy, seeds, HORIZON, LANES)
        return [int(steps) if won else 0 for steps, won in zip(outcomes.steps, outcomes.success, strict=True)]

    def _episodes(
        self, proposer: Proposer, corrector: Corrector, operator: Interventions, seeds: Sequence[int]
    ) -> Iterator[list[Step]]:
        steps: list[Step] = []
        recorder = Recorder(RecordingId("corrections", self._robot.spec.name, TASK), steps.append)
        loop = ControlLoop(
            self._robot, proposer, corrector, [recorder], MAX_STATE_AGE_S, reads=self.spec, interventions=operator
        )
        for number, seed in enumerate(seeds):
            loop.run_episode(EpisodeId(number, seed))
            yield list(steps)
            steps.clear()

    def _franka(self) -> SimulatedFranka:
        return SimulatedFranka("franka", PegInsertion(self._task))
