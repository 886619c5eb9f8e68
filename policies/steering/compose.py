"""Two policies as one: their estimates are mixed at every call of the solver (GPC, arXiv 2510.01068)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from policies.acceleration.schedule import CacheSchedule
from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.generative.backend import Arrays, EagerBackend
from policies.generative.policy import GenerativePolicy, MakeBackend
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, Features, FloatArray, Observation
from robot_stack.core.specs import Feature, PolicySpec

WEIGHTS = tuple(step / 10 for step in range(11))


class ComposedDenoiser(Denoiser):
    """weight * first + (1 - weight) * second, of what both estimate (noise, clean actions or velocity).

    The condition is the first one's, then the second one's. Blocks are numbered the first one's, then the second one's.
    At weight 1 or 0 it is one of the two, bit for bit.
    """

    def __init__(self, first: Denoiser, second: Denoiser, weight: float, condition_parts: int) -> None:
        super().__init__()
        if not 0.0 <= weight <= 1.0:
            raise PolicyError(f"weight of the first policy is {weight}; allowed: 0 to 1")
        self.first, self.second, self.weight = first, second, weight
        self.block_names = (
            *(f"first.{name}" for name in first.block_names),
            *(f"second.{name}" for name in second.block_names),
        )
        self._condition_parts = condition_parts
        self._context_parts = -1
        self._clock_parts = -1

    def context(self, condition: Tensors) -> Tensors:
        mine = self.first.context(condition[: self._condition_parts])
        self._context_parts = len(mine)
        return (*mine, *self.second.context(condition[self._condition_parts :]))

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        mine = self.first.clock(times, strides)
        self._clock_parts = len(mine)
        return (*mine, *self.second.clock(times, strides))

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        ticks, seen = self._clock_parts, self._context_parts
        first = self.first.step(actions, clock[:ticks], context[:seen], blocks)
        others = _After(blocks, len(self.first.block_names))
        second = self.second.step(actions, clock[ticks:], context[seen:], others)
        return self.weight * first + (1.0 - self.weight) * second


class _After:
    """The blocks whose numbers begin after the first network's."""

    def __init__(self, blocks: Blocks, offset: int) -> None:
        self._blocks, self._offset = blocks, offset

    def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        return self._blocks.run(self._offset + block, compute)


class ComposedPolicy:
    """A `Policy` (and a `SampledPolicy`) out of two, which may read different things but act in the same way.

    Both keep their own normalisation of observations and their own cache schedule; noise is the first one's. `weight`
    is the first one's share: give the better policy the larger one. PolicyError unless both have the same action,
    horizon, task, process, solver and normalisation of actions.
    """

    def __init__(
        self,
        first: GenerativePolicy,
        second: GenerativePolicy,
        weight: float,
        make_backend: MakeBackend | None = None,
    ) -> None:
        _check_parents(first, second)
        self._first, self._second = first, second
        self.weight = weight
        self.version = first.version
        self._spec = _joined_spec(first.spec, second.spec)
        example = _example(first)
        denoiser = ComposedDenoiser(first.sampler.denoiser, second.sampler.denoiser, weight, len(example))
        config = first.config
        self.sampler = ChunkSampler(denoiser, config.process, config.solver, _joined_schedule(first, second))
        both = (*example, *_example(second))
        self.backend = make_backend(self.sampler, both) if make_backend else EagerBackend(self.sampler)

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def predict(self, observation: Observation) -> ActionChunk:
        """The chunk for the steps from `observation.index` on; PolicyError for a missing or non-finite feature."""
        return ActionChunk(
            observation_id=observation.id,
            index=observation.index,
            weights_version=self.version,
            actions=self.predict_batch([observation])[0],
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A) in the action's units, inside its bounds."""
        noise, step_noise = self.noise(observations)
        return self.to_actions(self.backend.sample(noise, step_noise, self.condition(observations)))

    def condition(self, observations: Sequence[Observation]) -> Arrays:
        return (*self._first.condition(observations), *self._second.condition(observations))

    def noise(self, observations: Sequence[Observation]) -> tuple[FloatArray, FloatArray | None]:
        return self._first.noise(observations)

    def to_actions(self, sample: FloatArray) -> FloatArray:
        return self._first.to_actions(sample)

    def to_samples(self, actions: FloatArray) -> FloatArray:
        return self._first.to_samples(actions)


def search_weight(
    first: GenerativePolicy,
    second: GenerativePolicy,
    score: Callable[[ComposedPolicy], float],
    weights: Sequence[float] = WEIGHTS,
) -> tuple[float, dict[float, float]]:
    """The weight whose composition scores best (success in rollouts, say), and the scores of all. A tie takes the
    first of them."""
    scores = {weight: score(ComposedPolicy(first, second, weight)) for weight in weights}
    return max(scores, key=lambda weight: scores[weight]), scores


def _example(policy: GenerativePolicy) -> Arrays:
    """A condition of one row."""
    observed = policy.spec.observation.items()
    features: Features = {name: np.zeros(feature.shape, feature.dtype) for name, feature in observed}
    words = " ".join(policy.config.vocabulary[1:2])
    return policy.condition([Observation(id=0, stamp_ns=0, features=features, age_ns={}, instruction=words)])


def _check_parents(first: GenerativePolicy, second: GenerativePolicy) -> None:
    mine, other = first.config, second.config
    pairs: dict[str, tuple[object, object]] = {
        "task": (first.spec.task, second.spec.task),
        "action": (first.spec.action, second.spec.action),
        "horizon": (first.spec.horizon, second.spec.horizon),
        "process": (mine.process, other.process),
        "solver": (mine.solver, other.solver),
        "normalisation of actions": (mine.action, other.action),
    }
    differences = [f"{name}: {one} and {two}" for name, (one, two) in pairs.items() if one != two]
    if differences:
        raise PolicyError(
            f"policies '{first.spec.name}' and '{second.spec.name}' cannot be composed:\n  - "
            + "\n  - ".join(differences)
            + "\nTrain both with the same action statistics and process, and give both the same solver (with_solver)."
        )


def _joined_spec(first: PolicySpec, second: PolicySpec) -> PolicySpec:
    observation: dict[str, Feature] = dict(first.observation)
    for name, feature in second.observation.items():
        if observation.setdefault(name, feature) != feature:
            raise PolicyError(f"policies '{first.name}' and '{second.name}' disagree on feature '{name}'")
    history = max(first.history, second.history)
    return replace(first, name=f"{first.name}+{second.name}", observation=observation, history=history)


def _joined_schedule(first: GenerativePolicy, second: GenerativePolicy) -> CacheSchedule | None:
    parts = [(policy.config.schedule, policy.sampler.denoiser.block_names) for policy in (first, second)]
    if all(schedule is None for schedule, _ in parts):
        return None
    calls = len(first.sampler.calls)
    rows = [
        row
        for schedule, names in parts
        for row in (schedule.updates if schedule else (tuple(range(calls)),) * len(names))
    ]
    names = [f"{place}.{name}" for place, (_, own) in zip(("first", "second"), parts, strict=True) for name in own]
    return CacheSchedule(
        method="composed", calls=calls, blocks=tuple(names), updates=tuple(rows), belongs_to="a composition"
    )
