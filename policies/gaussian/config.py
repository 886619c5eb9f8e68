"""What a Gaussian actor is built from: the same on the edge, where it acts, and in the learner that trains it."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.errors import ConfigError

GRIPPER_CHOICES = 3


class GaussianConfig(Struct, frozen=True, kw_only=True):
    """Size of the actor, and what its gripper is decided by.

    Attributes:
        hidden: widths of the hidden layers.
        min_log_std, max_log_std: the logarithm of the standard deviation, before the squashing, stays between them.
        gripper: index of the action element that is one of three values, the lower bound, the middle and the upper
            bound, chosen by a network of its own (HIL-SERL, arXiv 2410.21845); None: all elements are Gaussian. Meant
            for a gripper whose action is a change or a velocity, so that the middle keeps it as it is.
        gripper_random: share of the explored steps at which the gripper's value is drawn at random; published: 0.
    """

    hidden: tuple[int, ...] = (128, 128)
    min_log_std: float = -5.0
    max_log_std: float = 2.0
    gripper: int | None = None
    gripper_random: float = 0.0

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"actor.hidden is {self.hidden}; allowed: one or more widths of 1 or more")
        if not self.min_log_std < self.max_log_std <= 10.0:
            raise ConfigError(
                f"actor.min_log_std is {self.min_log_std} and max_log_std {self.max_log_std}; allowed: the first below "
                "the second, the second at most 10"
            )
        if self.gripper is not None and self.gripper < 0:
            raise ConfigError(f"actor.gripper is {self.gripper}; allowed: an index of 0 or more, or null for none")
        if not 0.0 <= self.gripper_random <= 1.0:
            raise ConfigError(f"actor.gripper_random is {self.gripper_random}; allowed: 0 to 1")

    def continuous(self, action_dim: int) -> tuple[int, ...]:
        """Indices of the action's elements that the Gaussian gives; ConfigError if there are none, or no gripper."""
        indices = tuple(index for index in range(action_dim) if index != self.gripper)
        if not indices or (self.gripper is not None and self.gripper >= action_dim):
            raise ConfigError(
                f"actor.gripper is {self.gripper}, the action has {action_dim} elements; allowed: an index of one of "
                "them, with another element beside it, or null"
            )
        return indices
