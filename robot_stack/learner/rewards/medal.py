"""MEDAL: the backward policy is paid for states that look demonstrated (arXiv 2205.05212).

A discriminator D tells states of forward demonstrations (1) from states of backward practice (0). The reward of a
backward step is -log(1 - D(s')). At the discriminator's optimum D / (1 - D) is the ratio of the two densities, so the
backward policy goes to demonstrated states that it visits too rarely, wherever along the task they lie: forward then
begins everywhere on the demonstrations, and no goal of the backward direction has to be known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from policies.common.ensemble_mlp import EnsembleMlp
from policies.common.normalization import fit_standardizer
from robot_stack.buffer.replay import ReplayStep
from robot_stack.core.direction import Direction, direction_of
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Features, FloatArray, Step
from robot_stack.core.protocols import Judgement, Outcome
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.adamw import adamw
from robot_stack.learner.curation import Curator, Kept
from robot_stack.learner.rewards.outcomes import EpisodeKey, episode_key, verdict
from robot_stack.learner.rewards.settings import MedalSettings

Places = FloatArray
_LARGEST_LOGIT = 23.0  # MEDAL adds 1e-10 inside the logarithm


class Discriminator:
    """Tells demonstrated states (N, D) from visited ones. The same calls in the same order give the same weights."""

    def __init__(self, demonstrated: Places, settings: MedalSettings) -> None:
        self._settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._standardizer = fit_standardizer(demonstrated)
        self._demonstrated = self._inputs(demonstrated)
        inputs, hidden = demonstrated.shape[1], (settings.hidden,)
        self._net = EnsembleMlp(1, inputs, hidden, 1, last_scale=0.01, generator=self._generator)
        self._optimizer = adamw([self._net.flat], settings.lr)

    def learn(self, visited: Places) -> float:
        """One update on visited states (N, D), of which a batch is drawn; the loss."""
        size = self._settings.batch_size // 2
        drawn = torch.randint(len(visited), (size,), generator=self._generator).numpy()
        rows = torch.randint(len(self._demonstrated), (size,), generator=self._generator)
        states = torch.cat((self._demonstrated[rows], self._inputs(visited[drawn])))
        labels = torch.cat((torch.ones(size), torch.zeros(size)))
        if self._settings.mixup:
            share = torch.rand((len(states), 1), generator=self._generator)
            order = torch.randperm(len(states), generator=self._generator)
            states = share * states + (1.0 - share) * states[order]
            labels = share[:, 0] * labels + (1.0 - share[:, 0]) * labels[order]
        loss = functional.binary_cross_entropy_with_logits(self._net(states)[0, :, 0], labels)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.item())

    @torch.no_grad()
    def logits(self, states: Places) -> FloatArray:
        """log(D / (1 - D)) of states (N, D), (N,)."""
        found: FloatArray = self._net(self._inputs(states))[0, :, 0].numpy()
        return found

    def rewards(self, states: Places) -> FloatArray:
        """`reward_scale` times -log(1 - D), (N,)."""
        logits = np.minimum(self.logits(states), _LARGEST_LOGIT)
        paid: FloatArray = (self._settings.reward_scale * np.logaddexp(0.0, logits)).astype(np.float32)
        return paid

    def _inputs(self, states: Places) -> Tensor:
        return torch.from_numpy(self._standardizer.normalize(states).astype(np.float32))


class NoGoal:
    """Never says success: what is paid by MEDAL ends with time alone; a `RewardModel`."""

    name = "no_goal"
    version = "1"

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        return [verdict(False, 0.0, sure=True) for _ in outcomes]


class PlaceReader:
    """Reads the vector features of some names out of observations: places, without the velocities and the direction
    that would tell forward from backward by themselves."""

    def __init__(self, observation: Mapping[str, Feature], names: Sequence[str]) -> None:
        self._picked: list[tuple[str, NDArray[np.int64]]] = []
        found: set[str] = set()
        for key, feature in observation.items():
            indices = [index for index, name in enumerate(feature.names or ()) if name in names]
            if indices:
                self._picked.append((key, np.asarray(indices)))
                found |= {(feature.names or ())[index] for index in indices}
        if found != set(names):
            missing = ", ".join(sorted(set(names) - found)) or "any"
            raise ConfigError(f"reward.places names {missing}, which no observed vector has; name some of its elements")

    @property
    def length(self) -> int:
        return sum(len(indices) for _, indices in self._picked)

    def read(self, features: Features) -> FloatArray:
        """(D,) float32."""
        return np.concatenate([features[key][indices] for key, indices in self._picked]).astype(np.float32)


@dataclasses.dataclass(slots=True)
class _Held:
    key: EpisodeKey
    step: Step
    replayed: ReplayStep


class MedalCurator:
    """Gives the steps to another curator, backward ones with the discriminator's reward; a `Curator`.

    A backward step is paid for the state after it, so it is held until that is known, by the discriminator as it is
    then. Backward episodes do not terminate: an end that was recorded as a success becomes a truncation. Forward steps
    stay as they are. Everything is a function of the sequence of steps alone.
    """

    selective = True  # what the discriminator has learned is not in a checkpoint: the log is read from its beginning

    def __init__(
        self, curator: Curator, settings: MedalSettings, reader: PlaceReader, demonstrations: Sequence[Sequence[Step]]
    ) -> None:
        self._curator = curator
        self._settings = settings
        self._reader = reader
        self.discriminator = Discriminator(demonstrated_places(demonstrations, reader), settings)
        self._visited = np.zeros((settings.visited, self._reader.length), np.float32)
        self._count = 0
        self._held: dict[str, _Held] = {}

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        kept: list[Kept] = []
        held = self._held.pop(step.robot, None)
        if held is not None:
            follows = held.key == episode_key(step) and held.step.index + 1 == step.index
            kept += self._paid(held, step.observation if follows else None)
        if direction_of(step.instruction) is Direction.FORWARD:
            return [*kept, *self._curator.take(step, replayed)]
        now = _Held(episode_key(step), step, replayed)
        if step.terminated or step.truncated:
            return [*kept, *self._paid(now, step.final_observation)]
        self._held[step.robot] = now
        return kept

    def _paid(self, held: _Held, after: Features | None) -> Iterable[Kept]:
        reward = 0.0
        if after is not None:
            place = self._reader.read(after)
            self._visited[self._count % len(self._visited)] = place
            self._count += 1
            self.discriminator.learn(self._visited[: self._count])
            reward = float(self.discriminator.rewards(place[None])[0])
        ended = held.step.terminated or held.step.truncated
        return self._curator.take(
            msgspec.structs.replace(held.step, reward=reward, terminated=False, truncated=ended),
            dataclasses.replace(held.replayed, reward=reward, terminated=False, truncated=ended),
        )


def demonstrated_places(demonstrations: Sequence[Sequence[Step]], reader: PlaceReader) -> Places:
    """States of the forward demonstrations (N, D); ConfigError if there are none."""
    places = [
        reader.read(step.observation)
        for episode in demonstrations
        for step in episode
        if direction_of(step.instruction) is Direction.FORWARD
    ]
    if not places:
        raise ConfigError("reward=medal needs forward demonstrations, and there are none; collect some")
    return np.stack(places)


def unpaid_backward(demonstrations: Sequence[Sequence[Step]], settings: MedalSettings) -> list[list[Step]]:
    """The demonstrations; those of the backward direction without a goal, paid as where D is a half."""
    reward = settings.reward_scale * float(np.log(2.0))
    return [
        [
            msgspec.structs.replace(
                step, reward=reward, success=False, terminated=False, truncated=step.terminated or step.truncated
            )
            if direction_of(step.instruction) is Direction.BACKWARD
            else step
            for step in episode
        ]
        for episode in demonstrations
    ]
