"""The trainer: a fold over the step log.

Everything it does - inserting a step, the updates owed for it, publishing weights - is decided by the sequence of
logged steps alone, never by the clock or by how fast somebody sent them. So a trainer that is killed and restored
from a checkpoint continues exactly as if it had not been, and the same log always gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec
from msgspec import Struct

from policies.common.features import flatten
from robot_stack.buffer.limiter import UpdateBudget
from robot_stack.buffer.replay import Replay, ReplayStep, Stratum
from robot_stack.buffer.sampling import Sampler
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Array, Source, Step, Verdict
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.base import Batches, OnPolicy, Recipe
from robot_stack.learner.curation import Place

_ALGORITHM = "algorithm/"
_PUBLISHED = "published/"

_STRATA = {Source.HUMAN_RECOVERY: Stratum.RECOVERY, Source.HUMAN_CORRECTION: Stratum.CORRECTION}


class StepSource(Protocol):
    """The durable store as the trainer reads it; retention may have dropped what is before `first_index`."""

    @property
    def first_index(self) -> int: ...

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
    n_step: int
    discount: float


class TrainerMeta(Struct, frozen=True, kw_only=True):
    """The part of a checkpoint that is not tensors. `sampler`: what `Sampler.state` gave."""

    settings: TrainerSettings
    position: int
    trained_steps: int
    updates: int
    version: int
    published_at: int
    published_updates: int
    sampler: bytes


class Trainer:
    """Call `advance` until it says that there is nothing to do; `finished` after `target_steps`."""

    def __init__(
        self,
        settings: TrainerSettings,
        recipe: Recipe,
        log: StepSource,
        replays: Mapping[Place, Replay],
        observation: Mapping[str, Feature],
        seed: int,
    ) -> None:
        self._settings = settings
        self._algorithm = algorithm = recipe.algorithm
        self._curator = recipe.curator
        self._log = log
        self._replays = replays
        parts = recipe.mix(replays[Place.DEMONSTRATIONS], replays[Place.ONLINE])
        self._sampler = Sampler(parts, seed, on_empty=recipe.on_empty)
        self._batches = Batches(self._sampler, settings.batch_size, settings.n_step, settings.discount)
        self._on_policy = algorithm if isinstance(algorithm, OnPolicy) else None
        self._observation = observation
        self._budget = UpdateBudget(settings.updates_per_step, settings.start_after_steps)
        self._ahead: Iterator[tuple[int, Step]] = iter(())
        self._note: Callable[[Step], None] = lambda step: None
        self._position = 0
        self.trained_steps = 0
        self.updates = 0
        self.version = 0
        self._published_at = 0
        self._published_updates = 0
        self.published: dict[str, Array] = algorithm.actor_tensors()
        self.metrics: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        return self.trained_steps >= self._settings.target_steps and self._owed() <= 0

    @property
    def position(self) -> int:
        """Log index of the step that is learned from next."""
        return self._position

    def watch(self, note: Callable[[Step], None]) -> None:
        """From now on call `note` with every step that is learned from, before its updates; those of `restore` were
        seen before."""
        self._note = note

    def advance(self) -> bool:
        """One quantum: an update that is owed, or the next step of the log. False if neither is to be had."""
        if self.finished:
            return False
        if self._owed() > 0:
            self._update()
            return True
        found = self._next_step()
        if found is None:
            return False
        index, step = found
        self._note(step)
        replayed = self._insert(index, step)
        if self._on_policy is not None and step.verdict is not Verdict.REFUSED:
            self._on_policy.observe(step, replayed)
            if self._on_policy.due:
                self._update()  # here, so that the end of this very episode can publish it
        if (step.terminated or step.truncated) and self._publication_due():
            self._publish()
        return True

    def conclude(self) -> None:
        """Publish the final weights once the run is finished."""
        if self._published_at < self.trained_steps:
            self._publish()

    def _publication_due(self) -> bool:
        learned = self.updates > self._published_updates
        return learned and self.trained_steps - self._published_at >= self._settings.publish_every_steps

    def _owed(self) -> int:
        if self._on_policy is not None:
            return int(self._on_policy.due)
        if not self._sampler.ready():
            return 0
        if self.trained_steps < self._settings.start_after_steps:
            return 0
        return self._settings.warmup_updates + self._budget.owed(self.trained_steps, 0) - self.updates

    def _update(self) -> None:
        self.metrics = self._algorithm.update(self._batches)
        self.updates += 1

    def _next_step(self) -> tuple[int, Step] | None:
        found = next(self._ahead, None)
        if found is None and self._position < self._log.next_index:
            self._ahead = self._log.iterate(max(self._position, self._log.first_index))
            found = next(self._ahead, None)
        return found

    def _insert(self, index: int, step: Step) -> ReplayStep:
        """Keep what the curator says; the step in the form that algorithms read."""
        replayed = replay_step(step, index, self._observation)
        for kept in self._curator.take(step, replayed):
            self._replays[kept.place].add(kept.step)
        self._position = index + 1
        self.trained_steps += 1
        return replayed

    def _publish(self) -> None:
        self.version += 1
        self._published_at = self.trained_steps
        self._published_updates = self.updates
        self.published = self._algorithm.actor_tensors()

    # ---- checkpoints ----

    def state(self) -> tuple[dict[str, Array], bytes]:
        """Everything needed to continue bit for bit, beside the log itself."""
        meta = TrainerMeta(
            settings=self._settings,
            position=self._position,
            trained_steps=self.trained_steps,
            updates=self.updates,
            version=self.version,
            published_at=self._published_at,
            published_updates=self._published_updates,
            sampler=self._sampler.state(),
        )
        tensors = {_ALGORITHM + name: value for name, value in self._algorithm.state().items()}
        tensors.update({_PUBLISHED + name: value for name, value in self.published.items()})
        return tensors, msgspec.json.encode(meta)

    def restore(self, tensors: Mapping[str, Array], meta_json: bytes) -> None:
        """Continue from `state`: the log up to the checkpoint's position refills the replays.

        What lies more than twice their capacity behind that position cannot be in them any more and is not read, unless
        the curator is selective.
        """
        meta = msgspec.json.decode(meta_json, type=TrainerMeta)
        if meta.settings != self._settings:
            raise ConfigError(
                f"the checkpoint was made with {meta.settings}, this learner has {self._settings}; a run is continued "
                "with the settings that it was begun with, or begin another run with run=NAME"
            )
        self._algorithm.load_state(_part(tensors, _ALGORITHM))
        self.published = _part(tensors, _PUBLISHED)
        start = self._log.first_index
        if not self._curator.selective:
            capacity = sum(replay.config.capacity for replay in self._replays.values())
            start = max(start, meta.position - 2 * capacity)
        for index, step in self._log.iterate(start):
            if index >= meta.position:
                break
            self._insert(index, step)
        self._position = meta.position
        self.trained_steps, self.updates = meta.trained_steps, meta.updates
        self.version, self._published_at = meta.version, meta.published_at
        self._published_updates = meta.published_updates
        self._sampler.load_state(meta.sampler)


def published_tensors(checkpoint: Mapping[str, Array]) -> dict[str, Array]:
    """The weights that were published last, out of a checkpoint's tensors."""
    return _part(checkpoint, _PUBLISHED)


def _part(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def replay_step(
    step: Step, index: int, observation: Mapping[str, Feature], stratum: Stratum | None = None
) -> ReplayStep:
    """What algorithms learn from: flattened observations, and the action that really reached the driver.

    `index` is the step's in its store. `stratum` is told by who acted, unless it is given.
    """
    ended = step.terminated or step.truncated
    final = flatten(step.final_observation, observation) if ended and step.final_observation is not None else None
    return ReplayStep(
        stream=(step.run, step.robot, step.session, step.episode, step.segment),
        index=step.index,
        stratum=_STRATA.get(step.source, Stratum.ONLINE) if stratum is None else stratum,
        observation=flatten(step.observation, observation),
        action_base=step.action_base,
        action=step.action_sent,
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        final_observation=final,
        final_action_base=step.final_action_base,
        source_index=index,
    )
