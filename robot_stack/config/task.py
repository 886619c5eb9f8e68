"""The record of a task."""

from __future__ import annotations

from typing import Literal

from robot_stack.core.checked import Checked


class TaskConfig(Checked, frozen=True, kw_only=True):
    """What is to be learned and where its demonstrations come from.

    features: observation features that policies read. demonstrations: episodes to collect. max_attempts: give up
    after so many. keep: which attempts become demonstrations: the successful ones, or those whose return reaches
    `keep_return`. demonstration_noise: standard deviation of the noise
    on the expert's action, as a fraction of the action's range; what is learned is the action without it.
    """

    name: str
    features: tuple[str, ...]
    demonstrations: int = 60
    max_attempts: int = 300
    keep: Literal["success", "return"] = "success"
    keep_return: float = 0.0
    demonstration_noise: float = 0.1

    def positive(self) -> tuple[str, ...]:
        return ("demonstrations", "max_attempts")
