"""Before an edge is ready its policy has run, at its lasting speed, and has given actions that may be sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from msgspec.structs import replace

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, Array, Features, Observation
from robot_stack.core.protocols import GuidedChunkPolicy, Policy
from robot_stack.core.specs import Feature, PolicySpec

SETTLED_CALLS = 3
SETTLED_RATIO = 1.3
MIN_CALLS = 5
MAX_CALLS = 200
_ROUNDING = 1e-4
"""Share of an axis's range by which an action may lie outside its bounds through rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """What the warm-up measured: seconds of the first prediction (of a compiled policy: with the compilation), of the
    slowest and the median of the last `SETTLED_CALLS`, and how many there were.

    `settled`: the last ones were alike. `chunk`: the last one.
    """

    chunk: ActionChunk
    first_s: float
    slowest_s: float
    median_s: float
    calls: int
    settled: bool


@runtime_checkable
class ReadsInstructions(Protocol):
    """A policy that is told in words what to do."""

    @property
    def example_instruction(self) -> str:
        """Words that it knows; '' if it reads none."""


def example_observation(spec: PolicySpec, instruction: str = "") -> Observation:
    """An observation as a policy reads it, history included, with made-up values: the middle of what is bounded,
    else 0."""
    features = {name: _middle(feature) for name, feature in spec.observation.items()}
    past: tuple[Features, ...] = (features,) * (spec.history - 1)
    ages_ns = dict.fromkeys(features, 0)
    return Observation(id=0, stamp_ns=0, features=features, age_ns=ages_ns, past=past, instruction=instruction)


def example_instruction(policy: object) -> str:
    """Words that this policy knows; '' if it reads none."""
    return policy.example_instruction if isinstance(policy, ReadsInstructions) else ""


def warm_up(
    policy: Policy,
    observation: Observation | None = None,
    patience_s: float = 60.0,
    now_s: Callable[[], float] = time.perf_counter,
    guided: GuidedChunkPolicy | None = None,
) -> WarmUp:
    """Predict until `SETTLED_CALLS` predictions in a row take about the same time, or `patience_s` have passed.

    Args:
        observation: to try it on; by default a made-up one.
        guided: the same policy where its chunks go on from planned actions; every one but the first then does so here.

    Raises:
        PolicyError: a chunk has another shape than the policy's spec says, values that are not finite or lie outside
            the action's bounds, or another index than the observation. Whatever the policy raises passes through.
    """
    observation = observation or example_observation(policy.spec, example_instruction(policy))
    until_s = now_s() + patience_s
    took_s: list[float] = []
    chunk: ActionChunk | None = None
    settled = False
    while chunk is None or (not settled and _goes_on(len(took_s), now_s() < until_s)):
        asked = replace(observation, id=len(took_s), index=len(took_s))
        began_s = now_s()
        if guided is None or chunk is None:
            chunk = policy.predict(asked)
        else:
            chunk = guided.predict_guided(asked, chunk.actions, 1, 1)
        took_s.append(now_s() - began_s)
        check_chunk(policy.spec, chunk.actions, chunk.index, asked.index)
        last = took_s[-SETTLED_CALLS:]
        settled = len(took_s) >= MIN_CALLS and max(last) <= SETTLED_RATIO * min(last)
    last = took_s[-SETTLED_CALLS:]
    return WarmUp(
        chunk=chunk,
        first_s=took_s[0],
        slowest_s=max(last),
        median_s=float(np.median(last)),
        calls=len(took_s),
        settled=settled,
    )


def _goes_on(calls: int, in_time: bool) -> bool:
    return calls < (MAX_CALLS if in_time else SETTLED_CALLS)


def check_chunk(spec: PolicySpec, actions: Array, index: int, asked_index: int) -> None:
    """PolicyError unless a chunk is what its policy's spec promises."""
    name, shape = spec.name, (spec.horizon, *spec.action.shape)
    if actions.shape != shape or actions.dtype != np.float32:
        raise PolicyError(
            f"policy '{name}' gave a chunk of {actions.dtype}{list(actions.shape)}, its spec says "
            f"float32{list(shape)}; its weights and its policy.json do not belong together"
        )
    if index != asked_index:
        raise PolicyError(f"policy '{name}' gave a chunk for step {index}, asked for was step {asked_index}")
    problem = why_not_allowed(spec.action, actions)
    if problem:
        raise PolicyError(
            f"policy '{name}' gives {problem}; it must not drive a robot. Train it again or use older weights"
        )


def why_not_allowed(action: Feature, actions: Array) -> str:
    """What is wrong with actions (..., A), '' if they may be sent: not finite, or outside the action's bounds."""
    if not np.isfinite(actions).all():
        return "actions that are not finite"
    if not action.lower:
        return ""
    lower, upper = action.lower_array(), action.upper_array()
    margin = _ROUNDING * (upper - lower)
    outside = ((actions < lower - margin) | (actions > upper + margin)).reshape(-1, len(lower)).any(axis=0)
    if not outside.any():
        return ""
    axis = int(np.argmax(outside))
    worst = actions.reshape(-1, len(lower))[:, axis]
    return (
        f"{action.names[axis] if action.names else f'action element {axis}'} from {worst.min():.4g} to "
        f"{worst.max():.4g}; allowed: {lower[axis]:.4g} to {upper[axis]:.4g}"
    )


def _middle(feature: Feature) -> Array:
    if not feature.lower:
        return np.zeros(feature.shape, dtype=feature.dtype)
    return ((feature.lower_array() + feature.upper_array()) / 2).astype(feature.dtype)
