"""RL with human corrections (HIL-SERL, J. Luo et al., arXiv 2410.21845): RLPD with two critics, and a person's steps
among the demonstrations too. A gripper of three choices has a critic of its own (`grasp.py`)."""

from __future__ import annotations

from robot_stack.learner.algorithms.base import HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.sac import Sac
from robot_stack.learner.algorithms.senses import Vision, with_pictures
from robot_stack.learner.algorithms.settings.hil_serl import HilSerlSettings
from robot_stack.learner.curation import InterventionsTwice


def build(settings: HilSerlSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs. While there are no demonstrations, practice fills the batches."""
    vision = Vision.of(settings, ingredients)
    algorithm = Sac(
        settings.update,
        settings.actor,
        ingredients.action,
        ingredients.standardizer,
        ingredients.seed,
        grasp=settings.grasp,
        sharing=ingredients.sharing,
        vision=vision,
    )
    return Recipe(
        algorithm,
        settings.n_step,
        HalfAndHalf(settings.demonstration_share),
        curator=with_pictures(InterventionsTwice(), vision),
        on_empty="redistribute",
    )
