"""Settings of practice: whether the scene is set up for every episode, or never if it can be helped."""

from __future__ import annotations

from typing import Literal

from robot_stack.core.checked import Checked
from robot_stack.core.errors import ConfigError


class PracticeConfig(Checked, frozen=True, kw_only=True):
    """mode: `episodic` sets up the scene for every episode; `reset_free` does the task and undoes it in turn, and calls
    a person only when needed. The rest is for `reset_free`. failures_to_call: attempts in a row that reached no goal,
    in either direction, after which a person is called. backward_max_steps: of a backward episode; 0: as many as of a
    forward one. backward_limit_reaches: a backward episode that comes to its
    step limit has reached its goal; for rewards that never say success (MEDAL). judge: who says during an episode that
    the goal is reached: the `task` itself, or the model of `reward=...`.

    Stuck: no novel position for stuck_steps. A position is novel if any of its coordinates is more than novel_m or
    novel_rad away from that of every earlier position of the episode; the coordinates are those of `observation.state`
    whose names begin with one of stuck_prefixes and end with _m or _rad. Then perturb_steps actions get Gaussian noise
    of perturb_sigma times half the action's range."""

    mode: Literal["episodic", "reset_free"] = "episodic"
    failures_to_call: int = 8
    backward_max_steps: int = 0
    backward_limit_reaches: bool = False
    judge: Literal["task", "reward"] = "task"
    stuck_steps: int = 10
    stuck_prefixes: tuple[str, ...] = ("tool_",)
    novel_m: float = 0.0015
    novel_rad: float = 0.05
    perturb_steps: int = 6
    perturb_sigma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.perturb_steps, self.perturb_sigma, self.backward_max_steps) < 0:
            raise ConfigError(
                f"practice.perturb_steps is {self.perturb_steps}, practice.perturb_sigma {self.perturb_sigma}, "
                f"practice.backward_max_steps {self.backward_max_steps}; allowed: 0 or more"
            )

    def positive(self) -> tuple[str, ...]:
        return ("failures_to_call", "stuck_steps", "novel_m", "novel_rad")
