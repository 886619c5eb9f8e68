"""The robot of each variant: who says on its side that a goal is reached."""

from __future__ import annotations

from pathlib import Path

from benchmarks.learning.robot import LocalRobot
from benchmarks.reset_free.variants import Variant
from robot_stack.core.direction import Direction
from robot_stack.core.protocols import RewardModel
from robot_stack.edge.judged_robot import JudgedRobot
from robot_stack.learner.rewards.classifier import RewardClassifier
from robot_stack.learner.rewards.directed import DirectedReward
from robot_stack.learner.rewards.medal import NoGoal
from robot_stack.learner.rewards.predicate import InjectedErrors, TaskPredicate


def judged(robot: LocalRobot, variant: Variant, classifiers: dict[Direction, Path], seed: int) -> JudgedRobot:
    """The robot as the variant's control loop sees it; what the task itself says is counted beside it."""
    model: RewardModel = TaskPredicate()
    if variant.learned:
        model = DirectedReward({one: RewardClassifier.load(folder) for one, folder in classifiers.items()})
    elif variant.false_positive_rate > 0.0:
        model = InjectedErrors(model, variant.false_positive_rate, 0.0, seed)
    elif variant.medal:
        model = DirectedReward({Direction.FORWARD: model, Direction.BACKWARD: NoGoal()})
    return JudgedRobot(robot, model, "reset_free", variant.consecutive)
