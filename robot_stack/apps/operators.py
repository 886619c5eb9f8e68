"""Who may take over the robot of a run: nobody, or a scripted operator beside a simulated robot."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hardware.sim.operators import Mode, OperatorConfig, ScriptedOperator, make_operator
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.messages import Features, FloatArray, Observation, RobotState
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.control_loop import EpisodeId
from robot_stack.edge.operator import Intervention, InterventionCounts, Interventions, Nobody, Rule
from robot_stack.edge.seat import Seat

logger = logging.getLogger(__name__)

LOG_EVERY_EPISODES = 20

_RULES: dict[Mode, Rule] = {"rac": "rac", "hg_dagger": "hg_dagger", "full_demonstrations": "hg_dagger"}


class SceneOperator:
    """A scripted operator in the place of a person; an `Operator`. It sees the simulator's truth, as experts do."""

    def __init__(self, scripted: ScriptedOperator) -> None:
        self._scripted = scripted

    @property
    def steps(self) -> int:
        """Control steps that it drove so far."""
        return self._scripted.steps

    def begin(self, episode: EpisodeId) -> None:
        self._scripted.begin(episode.seed)

    def stands_still(
        self, observation: Observation, state: RobotState, propose: Callable[[], FloatArray]
    ) -> FloatArray | None:
        return None

    def intervene(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
        taken_over = self._scripted.act(state.features, _truth(state))
        return None if taken_over is None else Intervention(taken_over.action, taken_over.source)

    def lets_go(self, observation: Observation, state: RobotState) -> bool:
        success = state.task is not None and state.task.success
        return self._scripted.lets_go(state.features, _truth(state), success=success)


def scripted_interventions(spec: RobotSpec, config: OperatorConfig) -> Interventions:
    """A scripted operator beside a robot with that spec, under the rule of its mode.

    ConfigError for a real robot, and for tasks without one.
    """
    if not spec.simulated:
        raise ConfigError(
            f"{spec.name} is a real robot, and scripted operators see only simulated scenes; say edge.operator=none"
        )
    return Interventions(SceneOperator(make_operator(spec.task, spec, config)), _RULES[config.mode])


def build_interventions(config: StackConfig, spec: RobotSpec, seat: Seat | None = None) -> Interventions:
    """Whoever `edge.operator` names, beside that robot: `seat`, if there is one. Errors as of
    `scripted_interventions`."""
    if seat is not None:
        return Interventions(seat, config.edge.rule)
    modes: dict[str, Mode] = {"scripted_rac": "rac", "scripted_hg_dagger": "hg_dagger"}
    mode = modes.get(config.edge.operator)
    if mode is None:
        return Interventions(Nobody())
    return scripted_interventions(spec, OperatorConfig(mode=mode))


def log_counts(counts: InterventionCounts) -> None:
    """Called after every episode: one line every `LOG_EVERY_EPISODES`, if anybody took over."""
    if counts.interventions and counts.episodes % LOG_EVERY_EPISODES == 0:
        logger.info(
            "%d interventions in %d episodes: %d recoveries (%d steps), %d corrections (%d steps); the policy had %d "
            "steps",
            counts.interventions,
            counts.episodes,
            counts.recoveries,
            counts.recovery_steps,
            counts.corrections,
            counts.correction_steps,
            counts.policy_steps,
        )


def _truth(state: RobotState) -> Features:
    if state.ground_truth is None:
        raise RobotError("scripted operators need a simulated robot: this one gives no ground truth")
    return state.ground_truth
