"""Settings of guided sampling, apart from its code: reading a configuration loads no torch."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class GuidanceConfig(Struct, frozen=True, kw_only=True):
    """How a chunk is pulled towards actions that are already committed (real-time chunking).

    Attributes:
        ramp: how the weight falls behind the frozen prefix, straight or faster (`exponential`, the paper's).
        max_gain: the pull is cut off here; few solver steps need it low (beta of the paper).
        jacobian: `full` goes back through the network at every call, as the paper does, which costs about two more
            calls; `identity` takes the network's output for a constant, as LeRobot does, which costs nothing.
    """

    ramp: Literal["exponential", "linear"] = "exponential"
    max_gain: float = 5.0
    jacobian: Literal["full", "identity"] = "full"

    def __post_init__(self) -> None:
        if not self.max_gain >= 0.0:
            raise ConfigError(f"guidance.max_gain is {self.max_gain}; allowed: 0 or more")
