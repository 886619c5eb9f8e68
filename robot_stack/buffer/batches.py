"""What a draw is, and the batches that are gathered for it.

B: samples of a batch, D: size of the observation vector, A: size of an action, H: horizon, L: length. All vectors are
float32 unless said otherwise. Vectors of a batch belong to its owner; its images live in a ring of output arrays that
are used again (see `robot_stack.buffer.sampling.Sampler`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import FloatArray

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Which rows a batch consists of: first `counts[0]` rows of the sampler's part 0, then `counts[1]` of part 1, ...

    `rows` (B,) int64 are the numbers that the part's replay gave its steps in their order of arrival, from 0 on.
    `weight` (B,) are importance weights, the largest is 1; all are 1 unless a part is prioritised.
    """

    counts: tuple[int, ...]
    rows: Rows
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class TransitionBatch:
    """B n-step transitions; k is n, or at the end of a stream less.

        return_n  = sum over i < k of discount^i * reward[t + i]
        bootstrap = discount^k, or 0 if the episode terminated within these k steps
        target    = return_n + bootstrap * value(next_observation)

    After a termination `bootstrap`, `next_observation` and `next_action_base` are 0 and `next_images` repeat the
    episode's last frame. `stratum` holds values of `robot_stack.buffer.replay.Stratum`.

    `return_to_go` is the Monte-Carlo return: the discounted sum of all rewards from the step to the end of its episode,
    a time-out included, and `steps_to_go` how many rewards these are. Both are computed where the replay has a
    `return_discount`; while the episode is not over, and where it was cut, they are -inf and 0.
    """

    observation: FloatArray  # (B, D)
    action_base: FloatArray  # (B, A)
    action: FloatArray  # (B, A)
    return_n: FloatArray  # (B,)
    bootstrap: FloatArray  # (B,)
    next_observation: FloatArray  # (B, D)
    next_action_base: FloatArray  # (B, A)
    return_to_go: FloatArray  # (B,)
    steps_to_go: NDArray[np.int32]  # (B,)
    stratum: NDArray[np.uint8]  # (B,)
    weight: FloatArray  # (B,) importance weights, at most 1
    draw: Draw
    images: dict[str, Images] = field(default_factory=dict)  # (B, H, W, 3) by feature
    next_images: dict[str, Images] = field(default_factory=dict)  # (B, H, W, 3) by feature

    def __len__(self) -> int:
        return len(self.return_n)

    @property
    def rows(self) -> Rows:
        """(B,) row numbers within the replay of each sample's part."""
        return self.draw.rows

    @classmethod
    def of(
        cls,
        observation: FloatArray,
        action_base: FloatArray,
        action: FloatArray,
        return_n: FloatArray,
        bootstrap: FloatArray,
        next_observation: FloatArray,
        next_action_base: FloatArray,
        return_to_go: FloatArray | None = None,
        steps_to_go: NDArray[np.int32] | None = None,
    ) -> TransitionBatch:
        """A batch that comes from no replay: rows -1, stratum 0, all weights 1, no images; no returns to go (-inf and
        0) unless they are given."""
        size = len(return_n)
        weight = np.ones(size, np.float32)
        draw = Draw((size,), np.full(size, -1, np.int64), weight)
        return cls(
            observation=observation,
            action_base=action_base,
            action=action,
            return_n=return_n,
            bootstrap=bootstrap,
            next_observation=next_observation,
            next_action_base=next_action_base,
            return_to_go=np.full(size, -np.inf, np.float32) if return_to_go is None else return_to_go,
            steps_to_go=np.zeros(size, np.int32) if steps_to_go is None else steps_to_go,
            stratum=np.zeros(size, np.uint8),
            weight=weight,
            draw=draw,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ChunkBatch:
    """B observations, each with the H actions executed from there on: targets for policies that predict chunks.

    Beyond the end of a stream the last action is repeated and `is_pad` is True (LeRobot's `action_is_pad`).
    """

    observation: FloatArray  # (B, D)
    action_base: FloatArray  # (B, A) what the base policy proposed for the first step
    actions: FloatArray  # (B, H, A)
    is_pad: Mask  # (B, H)
    stratum: NDArray[np.uint8]  # (B,)
    weight: FloatArray  # (B,)
    draw: Draw
    images: dict[str, Images] = field(default_factory=dict)  # (B, H, W, 3) by feature

    def __len__(self) -> int:
        return len(self.observation)

    @property
    def rows(self) -> Rows:
        """(B,) row numbers within the replay of each sample's part."""
        return self.draw.rows


@dataclass(frozen=True, slots=True, eq=False)
class SequenceBatch:
    """B stretches of L consecutive steps of one stream each.

    `valid` is False beyond the end of the stream; there observation and actions repeat the last valid step, reward is
    0 and terminated False. The first step is always valid. `next_observation` and `next_action_base` belong to the
    state after the last valid step; they are 0 if that step terminated the episode.
    """

    observation: FloatArray  # (B, L, D)
    action_base: FloatArray  # (B, L, A)
    action: FloatArray  # (B, L, A)
    reward: FloatArray  # (B, L)
    terminated: Mask  # (B, L)
    valid: Mask  # (B, L)
    next_observation: FloatArray  # (B, D)
    next_action_base: FloatArray  # (B, A)
    stratum: NDArray[np.uint8]  # (B,)
    weight: FloatArray  # (B,)
    draw: Draw
    images: dict[str, Images] = field(default_factory=dict)  # (B, L, H, W, 3) by feature

    def __len__(self) -> int:
        return len(self.observation)

    @property
    def rows(self) -> Rows:
        """(B,) row numbers within the replay of each sample's part: where the stretches begin."""
        return self.draw.rows
