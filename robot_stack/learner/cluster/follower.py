"""The other ranks: they insert what rank 0 inserts, and make its updates with it on their own part of every batch.

A follower owns nothing that has to be kept. Whatever happens to it or to rank 0, it waits until it is invited again,
catches up on the steps, takes rank 0's state and goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from safetensors.numpy import load
from torch import Tensor

from robot_stack.buffer.replay import Replay
from robot_stack.buffer.sampling import Sampler
from robot_stack.core.codec import unpack
from robot_stack.core.errors import RobotStackError, UnreachableError
from robot_stack.core.messages import Step
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.base import Batches, Recipe
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
from robot_stack.learner.curation import Place
from robot_stack.learner.trainer import replay_step

logger = logging.getLogger(__name__)

RETRY_S = 0.5
SILENCE_S = 2.0


class LostLogError(RobotStackError):
    """A rank knows steps that the log does not; its process is worth starting again."""

    exit_code = 75


class GroupMean:
    """Means over the group that is set, if any; a `Sharing`."""

    def __init__(self) -> None:
        self.group: Group | None = None

    def mean(self, tensor: Tensor) -> Tensor:
        return tensor if self.group is None else self.group.mean(tensor)


@dataclass(frozen=True, slots=True)
class Draws:
    """How batches are drawn: the run's seed and the numbers of its algorithm."""

    seed: int
    batch_size: int
    n_step: int
    discount: float


class Follower:
    """Rank `rank` > 0. `sharing` is what its algorithm was built with, `replays` hold the demonstrations already.

    `ask` puts a request to rank 0; UnreachableError while it is away. `host`: this machine in the ranks' network.
    """

    def __init__(
        self,
        rank: int,
        recipe: Recipe,
        replays: Mapping[Place, Replay],
        observation: Mapping[str, Feature],
        draws: Draws,
        sharing: GroupMean,
        ask: Callable[[RankRequest], RankReply],
        host: str,
        timeout_s: float,
    ) -> None:
        self._rank, self._recipe, self._replays, self._observation = rank, recipe, replays, observation
        self._draws, self._sharing, self._ask = draws, sharing, ask
        self._host, self._timeout_s = host, timeout_s
        self._have = 0
        self._last = ("", 0)
        self.differences = 0

    @property
    def updates(self) -> int:
        return self._recipe.algorithm.updates

    def run(self, keep_running: Callable[[], bool]) -> None:
        """Take part in one group after another."""
        while keep_running():
            try:
                invitation = self._wait_for_invitation()
                if invitation is not None:
                    self._take_part(invitation, keep_running)
            except UnreachableError as error:
                logger.info("rank %d waits for rank 0: %s", self._rank, error)
                time.sleep(RETRY_S)
            except BrokenGroupError as error:
                logger.warning("rank %d: %s", self._rank, error)
            finally:
                self._sharing.group = None

    def _wait_for_invitation(self) -> Invitation | None:
        reply = self._ask(Want(rank=self._rank, have=self._have))
        if isinstance(reply, Invitation):
            known = (reply.life, reply.generation) == self._last
            self._last = (reply.life, reply.generation)
            return None if known else reply
        if isinstance(reply, Wait):
            if reply.position < 0:
                raise UnreachableError("it is still loading")
            self._check_log(reply.durable)
            if reply.position > self._have:
                self._pull()
        return None

    def _check_log(self, durable: int) -> None:
        if durable < self._have:
            raise LostLogError(
                f"rank {self._rank} has {self._have} steps and the log ends at {durable}: it lost some with its "
                "machine's power (learner.durability=process); this rank has to begin anew"
            )

    def _pull(self) -> bool:
        """Ask for the next steps and insert them; False if there are none."""
        steps = self._ask(GetSteps(start=self._have))
        if not isinstance(steps, Steps) or not steps.records:
            return False
        self._have = max(self._have, steps.first)
        self._insert(steps, steps.first + len(steps.records))
        return True

    def _reach(self, position: int) -> None:
        while self._have < position:
            if not self._pull():
                raise BrokenGroupError(f"rank 0 has no step {self._have} any more")

    def _insert(self, steps: Steps, stop: int) -> None:
        """Those that are not here yet: rank 0 may have gone back to an older checkpoint."""
        for index, record in enumerate(steps.records, steps.first):
            if self._have <= index < stop:
                step: Step = unpack(record, Step)
                for kept in self._recipe.curator.take(step, replay_step(step, index, self._observation)):
                    self._replays[kept.place].add(kept.step)
                self._have = index + 1

    def _take_part(self, invitation: Invitation, keep_running: Callable[[], bool]) -> None:
        self._reach(invitation.position)
        state = self._ask(GetState(generation=invitation.generation))
        if not isinstance(state, State) or state.over:
            return
        algorithm = self._recipe.algorithm
        algorithm.load_state(load(state.tensors))
        board = Board.reach(invitation.host, invitation.port, self._timeout_s)
        place, world = 1 + sorted(invitation.members).index(self._rank), 1 + len(invitation.members)
        group = Group(board, invitation.generation, place, world, self._host, self._timeout_s)
        batches = self._batches(invitation.generation, world)
        self._sharing.group = group
        logger.info("rank %d takes part in group %d from update %d", self._rank, invitation.generation, self.updates)
        while keep_running():
            words = group.hear(SILENCE_S)
            if words is None:
                state = self._ask(GetState(generation=invitation.generation, tensors=False))
                if isinstance(state, State) and not state.over:
                    continue  # rank 0 has nothing to learn from at present
                return
            told = msgspec.msgpack.decode(words, type=Round)
            if told.over:
                return
            self._follow(told)
            algorithm.update(batches)
            group.next_round()

    def _follow(self, told: Round) -> None:
        if told.steps.first <= self._have:
            self._insert(told.steps, told.position)
        self._reach(told.position)
        if told.digest and told.digest != digest_of(self._recipe.algorithm.state()):
            self.differences += 1
            raise BrokenGroupError(
                f"rank {self._rank} differs from rank 0 before update {self.updates}: this algorithm shares only a "
                "part of its updates, or the machines compute differently; rank 0's state is taken again"
            )

    def _batches(self, generation: int, world: int) -> Batches:
        """Draws of its own: the seed tells run, rank, group and update."""
        draws = self._draws
        words = np.random.SeedSequence([draws.seed, self._rank, generation, self.updates]).generate_state(2, np.uint32)
        replays = self._replays
        parts = self._recipe.mix(replays[Place.DEMONSTRATIONS], replays[Place.ONLINE])
        sampler = Sampler(parts, int(words[0]) << 32 | int(words[1]), on_empty=self._recipe.on_empty)
        batches = Batches(sampler, draws.batch_size, draws.n_step, draws.discount)
        batches.share(world)
        return batches
