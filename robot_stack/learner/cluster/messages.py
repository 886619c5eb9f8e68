"""What the ranks say to each other beside gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from msgspec import Struct

from robot_stack.core.messages import Array


class Want(Struct, frozen=True, kw_only=True, tag=True):
    """A rank is ready to take part; it has all steps before `have`."""

    rank: int
    have: int


class GetSteps(Struct, frozen=True, kw_only=True, tag=True):
    """The steps from `start` on, as many as fit into an answer."""

    start: int


class GetState(Struct, frozen=True, kw_only=True, tag=True):
    """The algorithm's state that a group began with; without `tensors` only whether that group is still there."""

    generation: int
    tensors: bool = True


class Wait(Struct, frozen=True, kw_only=True, tag=True):
    """No group for the rank yet. Rank 0 has inserted all steps before `position` and holds those before `durable`."""

    position: int
    durable: int


class Invitation(Struct, frozen=True, kw_only=True, tag=True):
    """A group begins. It waits for its `members` (rank 0 is not among them) at the store of rank 0.

    `position`: steps before it are inserted first. `life`: of rank 0's process; groups are numbered anew in each.
    """

    life: str
    generation: int
    members: tuple[int, ...]
    position: int
    host: str
    port: int


class Steps(Struct, frozen=True, kw_only=True, tag=True):
    """Packed steps `first`, `first` + 1, ... (none before `first` are kept by rank 0 either)."""

    first: int
    records: list[bytes]


class State(Struct, frozen=True, kw_only=True, tag=True):
    """Tensors as safetensors. `over`: that group has ended, or never was."""

    over: bool
    tensors: bytes = b""


class Round(Struct, frozen=True, kw_only=True):
    """Rank 0 announces an update: insert the steps before `position`, then update.

    `steps` are the newest of them; where they do not reach back far enough, ask for the rest. `over`: there is no
    update, the group has ended. `digest`: of the algorithm's state before the update, '' where it is not compared.
    """

    position: int
    steps: Steps
    digest: str = ""
    over: bool = False


RankRequest = Want | GetSteps | GetState
RankReply = Wait | Invitation | Steps | State


def digest_of(state: Mapping[str, Array]) -> str:
    """A hash of every bit of an algorithm's state."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(f"{name}{state[name].shape}{state[name].dtype}".encode())
        found.update(state[name].tobytes())
    return found.hexdigest()
