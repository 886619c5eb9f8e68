"""A group of ranks: what they add up together, and how rank 0 tells the others what comes next.

A group lives as long as its members. When one dies or stays silent the group is of no more use to anybody, and rank 0
begins another one with those who are there; nothing here is global, so any number of groups can follow each other.

Sums go through torch.distributed's gloo back-end, announcements through the key-value store that rank 0 serves. Both
are neither encrypted nor authenticated: they belong into a network of their own (docs/cluster.md).
"""

from __future__ import annotations

import contextlib
import socket
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

from robot_stack.core.errors import RobotStackError


class BrokenGroupError(RobotStackError):
    """A member has died, or kept the others waiting for too long."""


class Board:
    """The key-value store of all groups of one life of rank 0, which serves it; bound to one address of its host."""

    def __init__(self, store: TCPStore, host: str, port: int) -> None:
        self.store = store
        self.host, self.port = host, port

    @classmethod
    def serve(cls, host: str, timeout_s: float) -> Board:
        """A store at a free port of `host`."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind((host, 0))
        listening.listen()
        port = listening.getsockname()[1]
        store = TCPStore(
            host,
            port,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        return cls(store, host, port)

    @classmethod
    def reach(cls, host: str, port: int, timeout_s: float) -> Board:
        """The store of rank 0; BrokenGroupError if nobody answers."""
        try:
            store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
        except RuntimeError as error:
            raise BrokenGroupError(f"rank 0 does not answer at {host}:{port}: {error}") from error
        return cls(store, host, port)


class Group:
    """One generation of ranks; `rank` 0 announces, all of them add up. Every member makes the same calls in order.

    Making one waits until all members are there. BrokenGroupError from every call once a member is gone.
    """

    def __init__(self, board: Board, generation: int, rank: int, world: int, host: str, timeout_s: float) -> None:
        self.rank, self.world = rank, world
        self._store = PrefixStore(f"{generation}/words", board.store)
        self._round = 0
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=timeout_s)
        try:
            self._gloo = ProcessGroupGloo(PrefixStore(f"{generation}/gloo", board.store), rank, world, options)
        except RuntimeError as error:
            raise BrokenGroupError(f"group {generation} of {world} ranks did not come together: {error}") from error

    @torch.no_grad()
    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all members, as a tensor of its own."""
        total = tensor.detach().clone()
        try:
            self._gloo.allreduce([total]).wait()  # type: ignore[attr-defined]
        except RuntimeError as error:
            raise BrokenGroupError(f"the ranks could not add up: {error}") from error
        return total.div_(self.world)

    def say(self, words: bytes) -> None:
        """Announce the next round (rank 0); at most 8 MB."""
        try:
            self._store.set(f"{self._round}", words)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise BrokenGroupError(f"the ranks' store takes no more words: {error}") from error

    def say_last(self, words: bytes) -> None:
        """Announce to whoever still listens, in this round or the next, after the group broke (rank 0)."""
        with contextlib.suppress(RuntimeError):
            for number in (self._round, self._round + 1):
                self._store.set(f"{number}", words)  # type: ignore[arg-type]

    def hear(self, patience_s: float) -> bytes | None:
        """What rank 0 announces for the next round; None if it says nothing for so long."""
        key = f"{self._round}"
        try:
            self._store.wait([key], timedelta(seconds=patience_s))
        except RuntimeError as error:
            if "timeout" in str(error).lower():
                return None
            raise BrokenGroupError(f"rank 0 is gone: {error}") from error
        try:
            words: bytes = self._store.get(key)
            return words
        except RuntimeError as error:
            raise BrokenGroupError(f"rank 0 is gone: {error}") from error

    def next_round(self) -> None:
        """Everybody has heard the round's words and done what they say. Rank 0 wipes them."""
        if self.rank == 0:
            self._store.delete_key(f"{self._round}")
        self._round += 1
