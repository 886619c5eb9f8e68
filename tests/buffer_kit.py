"""Steps for tests of the store: every value of a step follows from its identity, so any mix-up shows."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.codec import pack
from robot_stack.core.messages import Source, Step, Verdict

STATE = "observation.state"
IMAGE = "observation.images.front"
MANUAL = StoreSettings(segment_bytes=4000, background=False)


def image_of(robot: str, session: str, seq: int, *, final: bool = False) -> NDArray[np.uint8]:
    """(4, 6, 3) uint8."""
    seed = zlib.crc32(f"{robot}/{session}/{seq}/{final}".encode())
    return np.frombuffer(random.Random(seed).randbytes(72), np.uint8).reshape(4, 6, 3)


def make_step(robot: str, session: str, seq: int, episode: int, *, ended: bool = False) -> Step:
    state = np.array([seq, episode, zlib.crc32(session.encode()) % 1000], np.float32)
    action = np.full(2, 0.01 * seq, np.float32)
    final = {STATE: state + 1, IMAGE: image_of(robot, session, seq, final=True)}
    return Step(
        run="run",
        robot=robot,
        task="reach",
        session=session,
        seq=seq,
        episode=episode,
        episode_seed=episode,
        segment=0,
        index=seq,
        stamp_ns=1000 * seq,
        observation={STATE: state, IMAGE: image_of(robot, session, seq)},
        action_base=action,
        action_asked=action + 1,
        action_sent=action + 2,
        verdict=Verdict.ACCEPTED,
        refusal=None,
        source=Source.POLICY,
        weights_version=seq // 7,
        reward=float(seq),
        success=ended,
        terminated=False,
        truncated=ended,
        final_observation=final if ended else None,
        final_action_base=action if ended else None,
    )


def episode_of(robot: str, session: str, episode: int, length: int) -> list[bytes]:
    """Packed steps of one ended episode; seqs go on from one episode to the next."""
    start = episode * length
    return [
        pack(make_step(robot, session, seq, episode, ended=seq == start + length - 1))
        for seq in range(start, start + length)
    ]


@dataclass
class Traffic:
    """Batches as several edges send them: interleaved robots, new sessions, episodes that end or break off, seqs that
    were never sent, steps sent again."""

    seed: int
    robots: int = 3
    sent: list[bytes] = field(default_factory=list)

    def batches(self, count: int) -> Iterator[list[bytes]]:
        rng = random.Random(self.seed)
        state = {f"robot_{i}": [f"{i}-first", 0, 0] for i in range(self.robots)}
        for _ in range(count):
            batch: list[bytes] = []
            for _ in range(rng.randint(1, 12)):
                batch += self._next(rng, state)
            self.sent += batch
            yield batch + ([rng.choice(self.sent)] if rng.random() < 0.3 else [])

    def _next(self, rng: random.Random, state: dict[str, list[object]]) -> list[bytes]:
        robot = rng.choice(list(state))
        session, seq, episode = state[robot]
        assert isinstance(session, str) and isinstance(seq, int) and isinstance(episode, int)
        ended = rng.random() < 0.1
        packed = pack(make_step(robot, session, seq, episode, ended=ended))
        if rng.random() < 0.02:  # the edge starts again
            state[robot] = [f"{robot}-{rng.random()}", 0, 0]
        else:
            gap = 3 if rng.random() < 0.02 else 1
            breaks_off = rng.random() < 0.02
            state[robot] = [session, seq + gap, episode + int(ended or breaks_off)]
        return [packed] * rng.choice((1, 1, 1, 1, 1, 1, 1, 1, 1, 2))


def contents(store: StepStore, start: int = 0) -> dict[int, bytes]:
    """Packed steps by log index, in the order read."""
    read = [(index, pack(step)) for index, step in store.iterate(start)]
    assert [index for index, _ in read] == sorted({index for index, _ in read})
    return dict(read)


def sealed_paths(directory: Path) -> list[Path]:
    return sorted((directory / "episodes").glob("*.zarr.zip"))
