"""A policy of chunks that exchanges itself for the newest weights, where the learner trains what predicts chunks.

What a candidate costs, on the thread that predicts: building it, one prediction for each observation that it is tried
on (`KEPT_PREDICTIONS` at most), and the one that it is asked for. The policy that acts is not run again: its chunks are
kept. While a robot moves in real time that delay could leave it without actions; so `at_rest_only` waits for an
episode's first chunk, which the robot awaits at rest, and `budget_s` bounds it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, Array, FloatArray, Observation
from robot_stack.core.protocols import GuidedChunkPolicy, Policy
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.warmup import check_chunk
from robot_stack.edge.weights import WeightInbox

KEPT_PREDICTIONS = 8
_QUANTILE = 0.95
_ROUNDING = 1e-6

BuildPolicy = Callable[[int, Mapping[str, Array]], Policy]


@dataclass(frozen=True, slots=True)
class Asked:
    """One prediction that was asked for; `planned` where the chunk had to go on from planned actions."""

    observation: Observation
    planned: FloatArray | None = None
    delay_steps: int = 0
    execute_steps: int = 0

    def of(self, policy: Policy) -> ActionChunk:
        """The chunk of that policy; what it raises passes through."""
        if self.planned is None:
            return policy.predict(self.observation)
        if not isinstance(policy, GuidedChunkPolicy):
            raise PolicyError("they cannot go on from planned actions; choose edge.chunking=switch, ensemble or sync")
        return policy.predict_guided(self.observation, self.planned, self.delay_steps, self.execute_steps)


@dataclass(frozen=True, slots=True)
class Tried:
    """A prediction that was asked for, and the actions (H, A) of whoever acts."""

    asked: Asked
    actions: FloatArray


class PolicyCanary:
    """Tries whole policies on the newest predictions that were asked for, and compares with what acts now.

    Args:
        max_change: the largest change that may act: p95, over the actions of all tried chunks, of the largest change
            of an action's elements as a share of their range. 1 or more lets any change inside the bounds act.
        budget_s: no further chunk is tried after so long, but one in any case; None tries all, as repeatable runs need.
    """

    def __init__(
        self,
        max_change: float,
        budget_s: float | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not max_change > 0.0:
            raise PolicyError(f"a canary check needs a largest change above 0; it is {max_change}")
        self._max_change = max_change
        self._budget_s = budget_s
        self._now_s = now_s
        self._kept: deque[Tried] = deque(maxlen=KEPT_PREDICTIONS)

    def saw(self, asked: Asked, actions: FloatArray) -> None:
        """A chunk was predicted by what acts now."""
        self._kept.append(Tried(asked, actions))

    def judge(self, candidate: Policy, version: int) -> list[Tried]:
        """The candidate's own chunks, oldest first, in the place of those that were kept.

        PolicyError says why it must not act; what the candidate raises passes through.
        """
        until_s = None if self._budget_s is None else self._now_s() + self._budget_s
        own: list[Tried] = []
        for kept in reversed(self._kept):
            if own and until_s is not None and self._now_s() > until_s:
                break
            own.append(Tried(kept.asked, checked(candidate, version, kept.asked).actions))
        if own:
            self._check_change(candidate.spec, own)
        return own[::-1]

    def accepted(self, own: Sequence[Tried]) -> None:
        """The judged candidate acts from now on: the next one is compared with it."""
        self._kept = deque(own, maxlen=KEPT_PREDICTIONS)

    def _check_change(self, spec: PolicySpec, own: Sequence[Tried]) -> None:
        width = spec.action.upper_array() - spec.action.lower_array()
        steps = min(len(tried.actions) for tried in (*own, *self._kept))
        newest_first = islice(reversed(self._kept), len(own))
        changes = np.stack(
            [
                (np.abs(new.actions[:steps] - kept.actions[:steps]) / width).max(axis=1)
                for new, kept in zip(own, newest_first, strict=True)
            ]
        )
        change = float(np.quantile(changes, _QUANTILE))
        if change > self._max_change + _ROUNDING:
            raise PolicyError(
                f"they change actions by {100 * change:.0f} % of their range (p95 of {len(own)} recent chunks; "
                f"allowed: {100 * self._max_change:.0f} %)"
            )


def checked(policy: Policy, version: int, asked: Asked) -> ActionChunk:
    """The policy's chunk; PolicyError if it is not what its spec promises, or bears another version."""
    chunk = asked.of(policy)
    check_chunk(policy.spec, chunk.actions, chunk.index, asked.observation.index)
    if chunk.weights_version != version:
        raise PolicyError(f"their chunks say version {chunk.weights_version}")
    return chunk


class LivePolicy:
    """A `Policy` that, when asked for a chunk, first exchanges itself for the newest in the inbox.

    `build` makes a policy of (version, tensors). It is tried on recent observations (`canary`) and on the present one
    before it acts: a policy that cannot be built, does not fit, fails, gives actions that are not finite, out of bounds
    or of another shape, or changes them too much, is refused, counted and shown on `board`, and the old one predicts,
    in the same call. One thread predicts at a time; others may read the properties.

    Args:
        initial: acts until there are weights; its version is 0. Built policies read no more than it does, and predict
            at least as many actions.
        at_rest_only: exchange at an episode's first chunk only.
    """

    def __init__(
        self,
        initial: Policy,
        inbox: WeightInbox,
        build: BuildPolicy,
        canary: PolicyCanary,
        board: AlarmBoard | None = None,
        *,
        at_rest_only: bool = False,
    ) -> None:
        if not initial.spec.action.lower:
            raise PolicyError(f"policy '{initial.spec.name}' has an action without bounds; weights cannot be judged")
        self._spec = initial.spec
        self._acting = initial
        self._version = self._seen = 0
        self._inbox = inbox
        self._build = build
        self._canary = canary
        self._board = board or AlarmBoard()
        self._at_rest_only = at_rest_only
        self._lock = threading.Lock()
        self.refused = 0
        """How many weights were not let act."""

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def version(self) -> int:
        """Of the weights that act."""
        return self._version

    @property
    def acting(self) -> Policy:
        """The policy that predicts now."""
        return self._acting

    def predict(self, observation: Observation) -> ActionChunk:
        return self._chunk(Asked(observation))

    def _chunk(self, asked: Asked) -> ActionChunk:
        with self._lock:  # an old inference thread may still be at it when a new one begins
            chunk = self._of_candidate(asked) or asked.of(self._acting)
            self._canary.saw(asked, chunk.actions)
            return chunk

    def _of_candidate(self, asked: Asked) -> ActionChunk | None:
        """The chunk of newer weights, and they act from now on; None if there are none, or they must not act."""
        if self._at_rest_only and asked.observation.index > 0:
            return None
        newest = self._inbox.newest(self._seen)
        if newest is None:
            return None
        version, self._seen = newest[0], newest[0]
        try:
            candidate = self._build(*newest)
            self._check_fits(candidate.spec)
            own = self._canary.judge(candidate, version)
            chunk = checked(candidate, version, asked)
        except Exception as error:  # whatever a learner sent must not stop the control loop
            self._refuse(version, str(error) or type(error).__name__)
            return None
        self._acting, self._version = candidate, version
        self._canary.accepted(own)
        self._board.end(AlarmKind.WEIGHTS_REFUSED)
        return chunk

    def _check_fits(self, spec: PolicySpec) -> None:
        mine = self._spec
        if spec.action != mine.action:
            raise PolicyError("they act in another action space than the policy that the edge began with")
        if spec.horizon < mine.horizon:
            raise PolicyError(f"their chunks have {spec.horizon} actions; allowed: {mine.horizon} or more")
        unread = [name for name, feature in spec.observation.items() if mine.observation.get(name) != feature]
        if unread or spec.history > mine.history:
            raise PolicyError(
                f"they read {', '.join(unread) or 'other features'} over {spec.history} steps; this edge observes "
                f"{', '.join(mine.observation)} over {mine.history}"
            )

    def _refuse(self, version: int, reason: str) -> None:
        self.refused += 1
        words = f"weights version {version} refused: {reason}; version {self._version} stays"
        self._board.put(AlarmKind.WEIGHTS_REFUSED, words, remind=True)


class LiveGuidedPolicy(LivePolicy):
    """The same for policies whose chunks can go on from planned actions; a `GuidedChunkPolicy`."""

    def __init__(
        self,
        initial: GuidedChunkPolicy,
        inbox: WeightInbox,
        build: Callable[[int, Mapping[str, Array]], GuidedChunkPolicy],
        canary: PolicyCanary,
        board: AlarmBoard | None = None,
        *,
        at_rest_only: bool = False,
    ) -> None:
        super().__init__(initial, inbox, build, canary, board, at_rest_only=at_rest_only)

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        return self._chunk(Asked(observation, previous, delay_steps, execute_steps))
