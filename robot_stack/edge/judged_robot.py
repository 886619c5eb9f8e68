"""A robot whose verdicts come from a reward model: without resets, what is taken for a success ends the direction."""

from __future__ import annotations

import numpy as np
from msgspec import Struct, structs

from robot_stack.core.direction import Direction
from robot_stack.core.messages import FloatArray, RobotState, Source, Step, TaskStatus, Verdict
from robot_stack.core.protocols import Outcome, RewardModel
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.control_loop import KeepsScene
from robot_stack.edge.remote_robot import Begun, Stepped


class VerdictCounts(Struct, kw_only=True):
    """Steps by what the model said and what the task itself said, where it says anything."""

    true_positives: int = 0
    false_positives: int = 0
    true_negatives: int = 0
    false_negatives: int = 0

    def add(self, said: bool, truth: bool) -> None:
        name = f"{'true' if said == truth else 'false'}_{'positives' if said else 'negatives'}"
        setattr(self, name, getattr(self, name) + 1)


class JudgedRobot:
    """Replaces the task's verdict after every step with the model's; a `KeepsScene`.

    A success is what `consecutive` positive verdicts in a row say, or one that is sure: it pays the model's reward and
    ends the episode. What the task itself says is only counted; that the scene is out of the workspace stays.

    Args:
        run: names the steps that the model is asked about.
    """

    def __init__(self, robot: KeepsScene, model: RewardModel, run: str, consecutive: int = 1) -> None:
        self._robot = robot
        self._model = model
        self._run = run
        self._consecutive = consecutive
        self._state: RobotState | None = None
        self._episode, self._index, self._streak = -1, 0, 0
        self._direction = Direction.FORWARD
        self.forward, self.backward = VerdictCounts(), VerdictCounts()

    @property
    def spec(self) -> RobotSpec:
        return self._robot.spec

    def reset(self, seed: int) -> Begun:
        return self._begun(self._robot.reset(seed), Direction.FORWARD)

    def begin_here(self, seed: int, direction: Direction) -> Begun:
        return self._begun(self._robot.begin_here(seed, direction), direction)

    def _begun(self, begun: Begun, direction: Direction) -> Begun:
        self._direction = direction
        self._state = begun.state
        self._episode, self._index, self._streak = self._episode + 1, 0, 0
        return begun

    def step(self, action: FloatArray) -> Stepped:
        stepped = self._robot.step(action)
        task = self._judged(stepped, action)
        state = structs.replace(stepped.state, task=task)
        self._state, self._index = stepped.state, self._index + 1
        result = stepped.result if stepped.result.state is None else structs.replace(stepped.result, state=state)
        return Stepped(result, state, stepped.age_ns, stepped.late)

    def _judged(self, stepped: Stepped, action: FloatArray) -> TaskStatus:
        truth = stepped.state.task
        outcome = Outcome(step=self._asked_about(stepped, action), after=stepped.state.features)
        judgement = self._model.judge([outcome])[0]
        self._streak = self._streak + 1 if judgement.success else 0
        executed = stepped.result.verdict is not Verdict.REFUSED
        success = judgement.success and executed and (judgement.sure or self._streak >= self._consecutive)
        if truth is not None:
            counts = self.forward if self._direction is Direction.FORWARD else self.backward
            counts.add(success, truth.success)
        return TaskStatus(
            reward=judgement.reward if success == judgement.success else 0.0,
            success=success,
            terminated=success,
            truncated=truth is not None and truth.truncated and not success,
        )

    def _asked_about(self, stepped: Stepped, action: FloatArray) -> Step:
        """The step as models see recorded ones; the task's own verdict is in it, for models that repeat that."""
        before, truth = self._state, stepped.state.task
        seen = stepped.state if before is None else before
        return Step(
            run=self._run,
            robot=self.spec.name,
            task=self.spec.task,
            session="judged",
            seq=self._index,
            episode=self._episode,
            episode_seed=seen.episode_seed,
            segment=0,
            index=self._index,
            stamp_ns=seen.stamp_ns,
            observation=seen.features,
            action_base=action,
            action_asked=action,
            action_sent=np.asarray(stepped.result.sent),
            verdict=stepped.result.verdict,
            refusal=stepped.result.refusal,
            source=Source.POLICY,
            weights_version=0,
            reward=0.0 if truth is None else truth.reward,
            success=truth is not None and truth.success,
            terminated=False,
            truncated=False,
            instruction=stepped.state.instruction,
        )
