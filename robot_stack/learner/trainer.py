"""The trainer: a fold over the step log.

Everything it does - inserting a step, the updates owed for it, publishing weights - is decided by the sequence of
logged steps alone, never by the clock or by how fast somebody sent them. So a trainer that is killed and restored
from a checkpoint continues exactly as if it had not been, and the same log always gives the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct

from policies.common.features import flatten
from robot_stack.buffer.limiter import UpdateBudget
from robot_stack.buffer.transitions import StepVectors, TransitionBuffer, sample_mixed
from robot_stack.core.messages import Array, Step, Verdict
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.base import Algorithm

_ALGORITHM = "algorithm/"
_PUBLISHED = "published/"


class StepSource(Protocol):
    """The durable log as the trainer reads it."""

    @property
    def next_index(self) -> int: ...

    def iterate(self, start: int) -> Iterator[tuple[int, Step]]: ...


class TrainerSettings(Struct, frozen=True, kw_only=True):
    """Numbers that shape the fold; they are part of the checkpoint and must match at resume."""

    target_steps: int
    start_after_steps: int
    warmup_updates: int
    updates_per_step: float
    publish_every_steps: int
    batch_size: int
    demonstration_share: float
    seed: int


class TrainerMeta(Struct, frozen=True, kw_only=True):
    """The part of a checkpoint that is not tensors. `rng_*`: the sampler's PCG64 state (128-bit numbers as text)."""

    settings: TrainerSettings
    position: int
    trained_steps: int
    updates: int
    version: int
    published_at: int
    rng_state: str
    rng_inc: str
    rng_has_uint32: int
    rng_uinteger: int


class Trainer:
    """Call `advance` until it says that there is nothing to do; `finished` after `target_steps`."""

    def __init__(
        self,
        settings: TrainerSettings,
        algorithm: Algorithm,
        log: StepSource,
        online: TransitionBuffer,
        demonstrations: TransitionBuffer,
        observation: Mapping[str, Feature],
    ) -> None:
        self._settings = settings
        self._algorithm = algorithm
        self._log = log
        self._online = online
        self._demonstrations = demonstrations
        self._observation = observation
        self._budget = UpdateBudget(settings.updates_per_step, settings.start_after_steps)
        self._rng = np.random.default_rng(settings.seed)
        self._ahead: Iterator[tuple[int, Step]] = iter(())
        self._position = 0
        self.trained_steps = 0
        self.updates = 0
        self.version = 0
        self._published_at = 0
        self.published: dict[str, Array] = algorithm.actor_tensors()
        self.metrics: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        return self.trained_steps >= self._settings.target_steps and self._owed() <= 0

    def advance(self) -> bool:
        """One quantum: an update that is owed, or the next step of the log. False if neither is to be had."""
        if self.finished:
            return False
        if self._owed() > 0:
            self._update()
            return True
        step = self._next_step()
        if step is None:
            return False
        self._insert(step)
        ended = step.terminated or step.truncated
        if ended and self.updates > 0 and self.trained_steps - self._published_at >= self._settings.publish_every_steps:
            self._publish()
        return True

    def conclude(self) -> None:
        """Publish the final weights once the run is finished."""
        if self._published_at < self.trained_steps:
            self._publish()

    def _owed(self) -> int:
        if self.trained_steps < self._settings.start_after_steps:
            return 0
        return self._settings.warmup_updates + self._budget.owed(self.trained_steps, 0) - self.updates

    def _update(self) -> None:
        settings = self._settings
        batch = sample_mixed(
            [(self._demonstrations, settings.demonstration_share), (self._online, 1.0 - settings.demonstration_share)],
            settings.batch_size,
            self._rng,
        )
        self.metrics = self._algorithm.update(batch)
        self.updates += 1

    def _next_step(self) -> Step | None:
        found = next(self._ahead, None)
        if found is None and self._position < self._log.next_index:
            self._ahead = self._log.iterate(self._position)
            found = next(self._ahead, None)
        return None if found is None else found[1]

    def _insert(self, step: Step) -> None:
        if step.verdict is not Verdict.REFUSED:
            # A refused action moved nothing. Leaving the step out makes a gap that no transition spans.
            self._online.add(step_vectors(step, self._observation))
        self._position += 1
        self.trained_steps += 1

    def _publish(self) -> None:
        self.version += 1
        self._published_at = self.trained_steps
        self.published = self._algorithm.actor_tensors()

    # ---- checkpoints ----

    def state(self) -> tuple[dict[str, Array], bytes]:
        """Everything needed to continue bit for bit, beside the log itself."""
        rng = self._rng.bit_generator.state
        meta = TrainerMeta(
            settings=self._settings,
            position=self._position,
            trained_steps=self.trained_steps,
            updates=self.updates,
            version=self.version,
            published_at=self._published_at,
            rng_state=str(rng["state"]["state"]),
            rng_inc=str(rng["state"]["inc"]),
            rng_has_uint32=rng["has_uint32"],
            rng_uinteger=rng["uinteger"],
        )
        tensors = {_ALGORITHM + name: value for name, value in self._algorithm.state().items()}
        tensors.update({_PUBLISHED + name: value for name, value in self.published.items()})
        return tensors, msgspec.json.encode(meta)

    def restore(self, tensors: Mapping[str, Array], meta_json: bytes) -> None:
        """Continue from `state`: the log up to the checkpoint's position refills the replay buffer."""
        meta = msgspec.json.decode(meta_json, type=TrainerMeta)
        self._algorithm.load_state(_part(tensors, _ALGORITHM))
        self.published = _part(tensors, _PUBLISHED)
        for index, step in self._log.iterate(0):
            if index >= meta.position:
                break
            self._insert(step)
        self.trained_steps, self.updates = meta.trained_steps, meta.updates
        self.version, self._published_at = meta.version, meta.published_at
        words = {"state": int(meta.rng_state), "inc": int(meta.rng_inc)}
        self._rng.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": words,
            "has_uint32": meta.rng_has_uint32,
            "uinteger": meta.rng_uinteger,
        }


def published_tensors(checkpoint: Mapping[str, Array]) -> dict[str, Array]:
    """The weights that were published last, out of a checkpoint's tensors."""
    return _part(checkpoint, _PUBLISHED)


def _part(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def step_vectors(step: Step, observation: Mapping[str, Feature]) -> StepVectors:
    """What algorithms learn from: flattened observations, and the action that really reached the driver."""
    ended = step.terminated or step.truncated
    final = flatten(step.final_observation, observation) if ended and step.final_observation is not None else None
    return StepVectors(
        stream=(step.run, step.robot, step.session, step.episode, step.segment),
        index=step.index,
        observation=flatten(step.observation, observation),
        action_base=step.action_base,
        action=step.action_sent,
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        final_observation=final,
        final_action_base=step.final_action_base,
    )
