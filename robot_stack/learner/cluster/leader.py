"""Rank 0's side of shared updates: who takes part, and what the others are told.

Rank 0 is the learner as it is without a cluster: it alone owns the store, the checkpoints and the publication. Around
its algorithm and its curator stand two thin wrappers; through them the other ranks hear of every step that is
inserted and of every update, and they do the same. Whoever joins is given rank 0's state. Where a group breaks, rank 0
finishes the update with its own gradient and goes on alone until the others are back.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec
from safetensors.numpy import save
from torch import Tensor

from robot_stack.buffer.replay import ReplayStep
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, Step
from robot_stack.learner.algorithms.base import Algorithm, Batches, OnPolicy, Recipe
from robot_stack.learner.cluster.group import Board, BrokenGroupError, Group
from robot_stack.learner.cluster.messages import (
    GetState,
    GetSteps,
    Invitation,
    RankReply,
    RankRequest,
    Round,
    State,
    Steps,
    Wait,
    Want,
    digest_of,
)
from robot_stack.learner.curation import Curator, Kept
from robot_stack.learner.trainer import StepSource

logger = logging.getLogger(__name__)

NEAR_STEPS = 2_000
LONG_POLL_S = 1.0
FRESH_S = 2.0
GRACE_S = 1.0
LONGEST_PAUSE_S = 60.0
TOLD_BYTES = 1 << 20
ANSWER_BYTES = 8 << 20
COMPARE_EVERY = 200


class Leader:
    """One thread learns (`mean` and what `joined` wraps), any other threads call `answer`. A `Sharing`.

    `host`: this machine's address in the ranks' network. Attributes: `groups` counts those that came together,
    `breaks` those that broke.
    """

    def __init__(self, host: str, timeout_s: float) -> None:
        self._host, self._timeout_s = host, timeout_s
        self._board = Board.serve(host, timeout_s)
        self._life = secrets.token_hex(4)
        self._source: StepSource | None = None
        self._window: int | None = None
        self._position = 0
        self._changed = threading.Condition()
        self._waiting: dict[int, tuple[int, float]] = {}  # rank -> steps that it has, when it last said so
        self._invitation: Invitation | None = None
        self._taken: set[int] = set()
        self._state = b""
        self._group: Group | None = None
        self._generation = 0
        self._members: frozenset[int] = frozenset()
        self._expected_until_s = 0.0
        self._pause_s, self._not_before_s = 0.0, 0.0
        self._recent: list[bytes] = []
        self._recent_bytes = 0
        self._rounds = self._means = 0
        self.groups = self.breaks = 0

    @property
    def ranks(self) -> int:
        """How many make the present update, this one included."""
        return 1 if self._group is None else self._group.world

    def joined(self, recipe: Recipe, source: StepSource, capacity: int) -> Recipe:
        """The recipe, made together with the other ranks. `capacity`: steps that its replays hold at most.

        ConfigError for an algorithm that learns from its newest steps alone: all ranks would compute the same.
        """
        if isinstance(recipe.algorithm, OnPolicy):
            raise ConfigError("this algorithm is on-policy, its updates cannot be shared: set cluster.ranks=1")
        self._window = None if recipe.curator.selective else 2 * capacity
        self._source = source
        return replace(
            recipe, algorithm=_SharedAlgorithm(recipe.algorithm, self), curator=_ToldCurator(recipe.curator, self)
        )

    def mean(self, tensor: Tensor) -> Tensor:
        """Over the present group; this rank's own tensor while it is alone, or if the group breaks here."""
        if self._group is None:
            return tensor
        self._means += 1
        try:
            return self._group.mean(tensor)
        except BrokenGroupError as error:
            self._lose(error)
            return tensor

    # ---- the learner's thread ----

    def inserted(self, index: int, step: Step) -> None:
        """A step of the log has been inserted here."""
        self._position = index + 1
        if self._group is None:
            return
        record = pack(step)
        self._recent_bytes += len(record)
        if self._recent_bytes > TOLD_BYTES:  # the others ask for them
            self._forget_recent()
        else:
            self._recent.append(record)

    def begin_update(self, algorithm: Algorithm) -> None:
        """Form or change the group where somebody waits, and tell it that an update begins."""
        if self._group is not None and self._newcomers():
            self._tell(self._last_round())
            self._disband()
        if self._group is None:
            self._form(algorithm)
        if self._group is None:
            return
        digest = digest_of(algorithm.state()) if self._rounds % COMPARE_EVERY == 0 else ""
        first = self._position - len(self._recent)
        self._tell(Round(position=self._position, steps=Steps(first=first, records=self._recent), digest=digest))
        self._forget_recent()
        self._rounds += 1
        self._means = 0

    def end_update(self) -> None:
        """PolicyError if nothing of the update was shared: then the ranks would learn apart."""
        if self._group is None:
            return
        if not self._means:
            raise PolicyError("this algorithm shares nothing of its updates with other ranks: set cluster.ranks=1")
        self._group.next_round()

    def _forget_recent(self) -> None:
        self._recent, self._recent_bytes = [], 0

    def _tell(self, words: Round) -> None:
        if self._group is None:
            return
        try:
            self._group.say(msgspec.msgpack.encode(words))
        except BrokenGroupError as error:
            self._lose(error)

    def _newcomers(self) -> bool:
        now_s = time.monotonic()
        with self._changed:
            return any(
                rank not in self._members and now_s - seen_s < FRESH_S
                for rank, (have, seen_s) in self._waiting.items()
                if have >= self._position - NEAR_STEPS
            )

    def _form(self, algorithm: Algorithm) -> None:
        """A group of those who wait; after a change or a break the former members get a moment to come back."""
        now_s = time.monotonic()
        with self._changed:
            ready = tuple(
                sorted(
                    rank
                    for rank, (have, seen_s) in self._waiting.items()
                    if now_s - seen_s < FRESH_S and have >= self._position - NEAR_STEPS
                )
            )
        missing = self._members.difference(ready) and now_s < self._expected_until_s
        if not ready or missing or now_s < self._not_before_s:
            return
        self._generation += 1
        with self._changed:
            self._state = save(dict(algorithm.state()))
            self._invitation = Invitation(
                life=self._life,
                generation=self._generation,
                members=ready,
                position=self._position,
                host=self._board.host,
                port=self._board.port,
            )
            self._waiting.clear()
            self._taken.clear()
            self._changed.notify_all()
        self._gather(ready)

    def _gather(self, ready: tuple[int, ...]) -> None:
        try:
            world = len(ready) + 1
            self._group = Group(self._board, self._generation, 0, world, self._host, self._timeout_s)
        except BrokenGroupError as error:
            # Every attempt holds up the learner: they become rare where they lead to nothing.
            self._pause_s = min(LONGEST_PAUSE_S, max(1.0, 2.0 * self._pause_s))
            self._not_before_s = time.monotonic() + self._pause_s
            logger.warning("%s; rank 0 goes on alone for %.0f s at least", error, self._pause_s)
            self._disband()
            return
        self._pause_s = 0.0
        self._members = frozenset(ready)
        self._rounds = 0
        self.groups += 1
        self._forget_recent()
        logger.info("group %d: %d ranks make every update", self._generation, world)

    def _lose(self, error: BrokenGroupError) -> None:
        self.breaks += 1
        logger.warning("%s; rank 0 goes on alone until the others are back", error)
        if self._group is not None:
            self._group.say_last(msgspec.msgpack.encode(self._last_round()))
        self._disband()

    def _last_round(self) -> Round:
        return Round(position=self._position, steps=Steps(first=self._position, records=[]), over=True)

    def _disband(self) -> None:
        self._group = None
        self._expected_until_s = time.monotonic() + GRACE_S
        self._forget_recent()
        with self._changed:
            self._invitation, self._state = None, b""

    # ---- other threads ----

    def answer(self, request: RankRequest) -> RankReply:
        """What another rank asks; a rank that waits is answered when its group begins, or after a second."""
        if isinstance(request, GetSteps):
            return self._steps(request.start)
        if isinstance(request, GetState):
            with self._changed:
                there = self._invitation is not None and self._invitation.generation == request.generation
                return State(over=not there, tensors=self._state if there and request.tensors else b"")
        return self._wanted(request)

    def _wanted(self, request: Want) -> Wait | Invitation:
        if self._source is None:
            return Wait(position=-1, durable=-1)
        with self._changed:
            invitation = self._open_invitation(request.rank)
            if invitation is None:
                self._waiting[request.rank] = (request.have, time.monotonic())
                self._changed.wait_for(lambda: self._open_invitation(request.rank) is not None, LONG_POLL_S)
                invitation = self._open_invitation(request.rank)
            if invitation is not None:
                self._taken.add(request.rank)
                return invitation
        return Wait(position=self._position, durable=self._source.next_index)

    def _open_invitation(self, rank: int) -> Invitation | None:
        """The present one, if it is for this rank, which has not taken it yet."""
        invitation = self._invitation
        return invitation if invitation and rank in invitation.members and rank not in self._taken else None

    def _steps(self, start: int) -> Steps:
        if self._source is None:
            return Steps(first=start, records=[])
        stop, room = self._position, ANSWER_BYTES
        first = max(start, self._source.first_index)
        if self._window is not None:
            first = max(first, stop - self._window)
        records: list[bytes] = []
        for index, step in self._source.iterate(first) if first < stop else ():
            if index >= stop or room <= 0:
                break
            if not records:
                first = index
            records.append(pack(step))
            room -= len(records[-1])
        return Steps(first=first, records=records)


class _SharedAlgorithm:
    """The algorithm of rank 0; an `Algorithm`."""

    def __init__(self, algorithm: Algorithm, leader: Leader) -> None:
        self._algorithm, self._leader = algorithm, leader

    @property
    def updates(self) -> int:
        return self._algorithm.updates

    def update(self, batches: Batches) -> dict[str, float]:
        self._leader.begin_update(self._algorithm)
        ranks = self._leader.ranks
        batches.share(ranks)
        metrics = self._algorithm.update(batches)
        self._leader.end_update()
        return metrics | {"ranks": float(ranks)}

    def actor_tensors(self) -> dict[str, Array]:
        return self._algorithm.actor_tensors()

    def state(self) -> dict[str, Array]:
        return self._algorithm.state()

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        self._algorithm.load_state(tensors)


class _ToldCurator:
    """The curator of rank 0; a `Curator`."""

    def __init__(self, curator: Curator, leader: Leader) -> None:
        self._curator, self._leader = curator, leader

    @property
    def selective(self) -> bool:
        return self._curator.selective

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        self._leader.inserted(replayed.source_index, step)
        return self._curator.take(step, replayed)
