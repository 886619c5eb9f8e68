"""What a robot, a policy and a data set say about themselves, and the check that they fit together.

Feature names follow the LeRobot convention: `observation.state`, `observation.environment_state`,
`observation.images.<camera>`, `action`. All quantities are SI and radians.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.core.errors import SpecMismatchError

ACTION = "action"
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
IMAGES = "observation.images."


class Feature(Struct, frozen=True, kw_only=True):
    """One named array: its dtype, shape, the name of each element and, where it is bounded, its range.

    `names` has one entry per element of a vector, units as suffix (`tip_x_m`); empty for images.
    `lower` and `upper` have the length of `names`, or are empty where there is no bound.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()

    def lower_array(self) -> NDArray[np.float32]:
        return np.asarray(self.lower, dtype=np.float32)

    def upper_array(self) -> NDArray[np.float32]:
        return np.asarray(self.upper, dtype=np.float32)


def vector(names: tuple[str, ...], lower: tuple[float, ...] = (), upper: tuple[float, ...] = ()) -> Feature:
    """A float32 vector feature with one element per name."""
    return Feature(dtype="float32", shape=(len(names),), names=names, lower=lower, upper=upper)


class RobotSpec(Struct, frozen=True, kw_only=True):
    """What a robot server offers: readable before anything is connected or armed.

    Attributes:
        name: unique name of this robot (`franka_0`); steps are recorded under it.
        model: kind of robot (`franka_fr3`, `gymnasium:gym_pusht/PushT-v0`).
        task: the task its observations and outcome belong to.
        simulated: true only where no hardware can move.
        control_rate_hz: rate at which actions are expected.
        tick_rate_hz: rate of the server's own loop; the filter and the stop ramp run at it.
        command_timeout_s: a command older than this is refused; the stop begins when none replaced it for so long.
        max_episode_steps: the episode is truncated after so many actions.
        action: bounded vector feature of the action space.
        observation: features recorded and given to policies.
    """

    name: str
    model: str
    task: str
    simulated: bool
    control_rate_hz: float
    tick_rate_hz: float
    command_timeout_s: float
    max_episode_steps: int
    action: Feature
    observation: dict[str, Feature]

    @property
    def control_period_s(self) -> float:
        return 1.0 / self.control_rate_hz


class PolicySpec(Struct, frozen=True, kw_only=True):
    """What a policy reads and writes; saved beside its weights and checked against the robot at load.

    `history`: so many of the newest observations are read, the present one included.
    """

    name: str
    task: str
    horizon: int
    action: Feature
    observation: dict[str, Feature]
    history: int = 1


def check_policy_fits_robot(policy: PolicySpec, robot: RobotSpec) -> None:
    """Raise SpecMismatchError, listing every difference, unless the policy can drive this robot."""
    problems = []
    if policy.task != robot.task:
        problems.append(f"task: policy was trained on '{policy.task}', robot runs '{robot.task}'")
    if policy.action != robot.action:
        problems.append(f"action: {_difference(policy.action, robot.action)}")
    for key, feature in policy.observation.items():
        offered = robot.observation.get(key)
        if offered is None:
            problems.append(f"{key}: the robot does not offer it (it offers {', '.join(sorted(robot.observation))})")
        elif offered != feature:
            problems.append(f"{key}: {_difference(feature, offered)}")
    if problems:
        raise SpecMismatchError(
            f"policy '{policy.name}' does not fit robot '{robot.name}' ({robot.model}):\n  - "
            + "\n  - ".join(problems)
            + "\nTrain a policy for this robot and task, or start the robot server that the policy was trained for."
        )


def _difference(policy: Feature, robot: Feature) -> str:
    fields = [
        f"{field} is {getattr(policy, field)} in the policy and {getattr(robot, field)} on the robot"
        for field in ("dtype", "shape", "names", "lower", "upper")
        if getattr(policy, field) != getattr(robot, field)
    ]
    return "; ".join(fields)
