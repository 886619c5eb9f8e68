"""New weights are tried on what the robot saw a moment ago before they act."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.protocols import ResidualPolicy
from robot_stack.core.specs import Feature
from robot_stack.edge.warmup import why_not_allowed

KEPT_OBSERVATIONS = 32
_QUANTILE = 0.95
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Seen:
    """One recent control step: what was observed and proposed, and what the weights of then made of it."""

    observation: Observation
    action_base: FloatArray
    action: FloatArray


@dataclass(frozen=True, slots=True)
class Judgement:
    """`problem`: why the candidate must not act, '' if it may.

    `change`: p95 over the observations of the largest change of an action element, as a share of that element's range;
    0 where nothing was seen yet. `actions`: the candidate's, for what was seen.
    """

    problem: str
    change: float = 0.0
    actions: Sequence[FloatArray] = ()


class Canary:
    """Tries candidates on the last `KEPT_OBSERVATIONS` control steps. For one thread, the control loop's.

    A judgement costs so many calls of the candidate, and happens at a chunk boundary that has new weights.

    Args:
        action: with bounds.
        max_change: a candidate that changes the actions by more, as a share of their range, is refused.
        reads: features that candidates read. Others, such as pictures, are not kept in memory; None keeps all.
    """

    def __init__(self, action: Feature, max_change: float, reads: Collection[str] | None = None) -> None:
        if not action.lower or not max_change > 0.0:
            raise PolicyError(
                f"a canary check needs an action with bounds and a largest change above 0 (it is {max_change})"
            )
        self._action = action
        self._range = action.upper_array() - action.lower_array()
        self._max_change = max_change
        self._reads = None if reads is None else tuple(reads)
        self._seen: deque[Seen] = deque(maxlen=KEPT_OBSERVATIONS)

    def saw(self, observation: Observation, action_base: FloatArray, action: FloatArray) -> None:
        """A control step was executed."""
        if self._reads is not None:
            features = {key: observation.features[key] for key in self._reads if key in observation.features}
            observation = replace(observation, features=features, past=())
        self._seen.append(Seen(observation, action_base, action))

    def judge(self, candidate: ResidualPolicy) -> Judgement:
        """Whether the candidate may act. What it raises passes through."""
        actions = [candidate.correct(seen.observation, seen.action_base) for seen in self._seen]
        for seen, action in zip(self._seen, actions, strict=True):
            problem = self.problem(action, seen.action_base)
            if problem:
                return Judgement(problem)
        if not actions:
            return Judgement("")
        before = np.stack([seen.action for seen in self._seen])
        changes = (np.abs(np.stack(actions) - before) / self._range).max(axis=1)
        change = float(np.quantile(changes, _QUANTILE))
        if change > self._max_change + _ROUNDING:
            return Judgement(
                f"they change actions by {100 * change:.0f} % of their range (p95 of {len(actions)} recent "
                f"observations; allowed: {100 * self._max_change:.0f} %)",
                change,
            )
        return Judgement("", change, actions)

    def accepted(self, judgement: Judgement) -> None:
        """The judged candidate acts from now on: the next one is compared with it."""
        self._seen = deque(
            (
                Seen(seen.observation, seen.action_base, action)
                for seen, action in zip(self._seen, judgement.actions, strict=True)
            ),
            maxlen=KEPT_OBSERVATIONS,
        )

    def problem(self, action: FloatArray, action_base: FloatArray) -> str:
        """Why a candidate's action must not be sent, '' if it may."""
        return why_refused(action, action_base, self._action)


def why_refused(action: FloatArray, action_base: FloatArray, bounds: Feature | None = None) -> str:
    """Why this action (A,) of new weights must not be sent, '' if it may; `bounds`: the action's feature."""
    if action.shape != action_base.shape:
        return f"they give an action of shape {action.shape} instead of {action_base.shape}"
    words = why_not_allowed(bounds or Feature(dtype="float32", shape=action_base.shape), action)
    return f"they give {words}" if words else ""
