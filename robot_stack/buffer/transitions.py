"""What algorithms sample from: n-step transitions in low-dimensional float32 rings.

A transition pairs the state at t with the state k steps later, where k is n or, at the end of an episode, less:

    return_n  = sum over i < k of discount^i * reward[t + i]
    bootstrap = discount^k, or 0 if the episode terminated within these k steps
    target    = return_n + bootstrap * value(next_observation)

Termination and truncation stay apart: a terminated episode has no future worth anything, a truncated one bootstraps
from the observation stored after its last action. Steps of different streams are never paired. The contents are a
function of the sequence of `add` and `end` calls alone, so replaying a log rebuilds the same buffer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from robot_stack.core.errors import ConfigError, SpecMismatchError, StorageError
from robot_stack.core.messages import FloatArray

MAX_OPEN_STREAMS = 256


@dataclass(frozen=True, slots=True)
class StepVectors:
    """One step as vectors: observation (D,), actions (A,), all float32.

    `stream` names the stretch of steps that belong together (session, episode, segment); `index` counts within it.
    `action` is what was executed, `action_base` what the base policy proposed. `final_observation` and
    `final_action_base` belong to the state after the action of an episode's last step; a truncated step needs them.
    """

    stream: Hashable
    index: int
    observation: FloatArray
    action_base: FloatArray
    action: FloatArray
    reward: float
    terminated: bool
    truncated: bool
    final_observation: FloatArray | None = None
    final_action_base: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class TransitionBatch:
    """B transitions, float32. After a termination `bootstrap` is 0 and the next_* rows mean nothing."""

    observation: FloatArray  # (B, D)
    action_base: FloatArray  # (B, A)
    action: FloatArray  # (B, A)
    return_n: FloatArray  # (B,)
    bootstrap: FloatArray  # (B,)
    next_observation: FloatArray  # (B, D)
    next_action_base: FloatArray  # (B, A)

    def __len__(self) -> int:
        return len(self.return_n)


class TransitionBuffer:
    """A ring of `capacity` n-step transitions; the oldest make room for the newest.

    Counted, because they are left out: `dropped` steps whose stream ended with no next observation (the edge was
    killed, a segment changed), and `non_finite` steps with a NaN or an infinity.
    """

    def __init__(self, capacity: int, observation_size: int, action_size: int, n_step: int, discount: float) -> None:
        if capacity < 1 or n_step < 1 or not 0.0 <= discount <= 1.0:
            raise ConfigError(
                f"a transition buffer needs capacity >= 1, n_step >= 1 and discount in [0, 1]; it was given "
                f"{capacity}, {n_step} and {discount}"
            )
        self.capacity = capacity
        self.dropped = 0
        self.non_finite = 0
        self._n_step = n_step
        self._discount = discount
        self._shapes = ((observation_size,), (action_size,))
        self._open: dict[Hashable, deque[StepVectors]] = {}
        self._stored = 0
        self._rows = TransitionBatch(
            observation=np.zeros((capacity, observation_size), np.float32),
            action_base=np.zeros((capacity, action_size), np.float32),
            action=np.zeros((capacity, action_size), np.float32),
            return_n=np.zeros(capacity, np.float32),
            bootstrap=np.zeros(capacity, np.float32),
            next_observation=np.zeros((capacity, observation_size), np.float32),
            next_action_base=np.zeros((capacity, action_size), np.float32),
        )

    def __len__(self) -> int:
        return min(self._stored, self.capacity)

    def add(self, item: StepVectors) -> None:
        """Take the next step of its stream; transitions that it completes become available.

        A step whose index does not follow the last one of its stream starts anew, as after `end`.
        """
        self._check_shapes(item)
        window = self._open.pop(item.stream, None)
        if not _is_finite(item):
            self.non_finite += 1
            self._finish_cut(window)
            return
        if window is not None and item.index != window[-1].index + 1:
            self._finish_cut(window)
            window = None
        window = deque() if window is None else window
        window.append(item)
        if len(window) > self._n_step:
            self._store(window, self._n_step, item.observation, item.action_base, bootstraps=True)
        if item.terminated or item.truncated:
            self._finish_episode(window)
        else:
            self._open[item.stream] = window
            if len(self._open) > MAX_OPEN_STREAMS:
                self.end(next(iter(self._open)))

    def end(self, stream: Hashable) -> None:
        """Say that a stream stops here without the end of its episode; unknown streams are ignored.

        Its last step has no next observation and is dropped; those before it get the steps that there are. The streams
        longest without a step end by themselves when more than MAX_OPEN_STREAMS are open.
        """
        self._finish_cut(self._open.pop(stream, None))

    def sample(self, batch_size: int, rng: np.random.Generator) -> TransitionBatch:
        """`batch_size` transitions, uniformly, with replacement."""
        if not len(self):
            raise StorageError("nothing can be sampled from an empty transition buffer; collect or load steps first")
        rows = rng.integers(0, len(self), size=batch_size)
        return TransitionBatch(*(getattr(self._rows, field.name).take(rows, axis=0) for field in fields(self._rows)))

    def _finish_episode(self, window: deque[StepVectors]) -> None:
        last = window[-1]
        if last.terminated:
            following, base = np.zeros_like(last.observation), np.zeros_like(last.action_base)
        elif last.final_observation is None or last.final_action_base is None:
            self._finish_cut(window)
            return
        else:
            following, base = last.final_observation, last.final_action_base
        while window:
            self._store(window, len(window), following, base, bootstraps=not last.terminated)

    def _finish_cut(self, window: deque[StepVectors] | None) -> None:
        if not window:
            return
        last = window[-1]
        while len(window) > 1:
            self._store(window, len(window) - 1, last.observation, last.action_base, bootstraps=True)
        self.dropped += 1

    def _store(
        self, window: deque[StepVectors], steps: int, following: FloatArray, base: FloatArray, *, bootstraps: bool
    ) -> None:
        """Store the transition from the window's first step over `steps` steps, and take that step off the window."""
        rows, row = self._rows, self._stored % self.capacity
        first = window[0]
        rows.observation[row] = first.observation
        rows.action_base[row] = first.action_base
        rows.action[row] = first.action
        rows.return_n[row] = math.fsum(self._discount**i * window[i].reward for i in range(steps))
        rows.bootstrap[row] = self._discount**steps if bootstraps else 0.0
        rows.next_observation[row] = following
        rows.next_action_base[row] = base
        self._stored += 1
        window.popleft()

    def _check_shapes(self, item: StepVectors) -> None:
        observation, action = self._shapes
        wanted = {
            "observation": observation,
            "action_base": action,
            "action": action,
            "final_observation": observation,
            "final_action_base": action,
        }
        for name, shape in wanted.items():
            vector = getattr(item, name)
            if vector is not None and vector.shape != shape:
                raise SpecMismatchError(
                    f"{name} of step {item.index} of {item.stream} has shape {list(vector.shape)}, this buffer was "
                    f"made for {list(shape)}: these steps were recorded with another robot, task or configuration"
                )


def sample_mixed(
    buffers_with_shares: Sequence[tuple[TransitionBuffer, float]], batch_size: int, rng: np.random.Generator
) -> TransitionBatch:
    """One batch out of several buffers, in their order, with an exact count of each (RLPD, arXiv 2302.02948).

    The shares are relative weights. Buffer i gives floor(batch_size * share_i / sum of shares) transitions; what
    rounding leaves over goes one each to the largest remainders, the earlier buffer first. A buffer that should give
    some and is empty raises StorageError: a mix is never changed silently.
    """
    counts = _exact_counts([share for _, share in buffers_with_shares], batch_size)
    parts = []
    for position, ((buffer, share), count) in enumerate(zip(buffers_with_shares, counts, strict=True)):
        if count and not len(buffer):
            raise StorageError(
                f"buffer {position + 1} of {len(counts)} in the mix has share {share} and is empty; "
                "load steps into it, or give it the share 0"
            )
        if count:
            parts.append(buffer.sample(count, rng))
    return TransitionBatch(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(TransitionBatch))
    )


def _exact_counts(shares: Sequence[float], total: int) -> list[int]:
    weight = math.fsum(shares)
    if total < 1 or not shares or min(shares) < 0.0 or not 0.0 < weight < math.inf:
        raise ConfigError(
            f"a mix needs a batch size of 1 or more, and shares of 0 or more that are not all 0; it was given {total} "
            f"and {list(shares)}"
        )
    exact = [total * share / weight for share in shares]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _is_finite(item: StepVectors) -> bool:
    vectors = [item.observation, item.action_base, item.action]
    if not item.terminated:  # after a termination the final state is not used
        vectors += [vector for vector in (item.final_observation, item.final_action_base) if vector is not None]
    return math.isfinite(item.reward) and all(np.isfinite(vector).all() for vector in vectors)
