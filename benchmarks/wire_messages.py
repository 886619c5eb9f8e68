"""Hostile requests for a learner: what a peer with a good key and bad intentions can send."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import msgspec
import numpy as np

from robot_stack.core.codec import encode, pack
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    GetProgress,
    GetWeights,
    Hello,
    Source,
    Step,
    StepBatch,
    Verdict,
    WeightEncoding,
)

Frames = list[bytes]

MIB = 1 << 20
_HEADER = b"\x82\xa4type\xa9StepBatch\xa7records"


def example_step(seq: int = 0) -> bytes:
    """One packed `Step` of a state-only robot."""
    action = np.linspace(-1, 1, 7, dtype=np.float32)
    return pack(
        Step(
            run="run",
            robot="robot_0",
            task="task",
            session="session",
            seq=seq,
            episode=0,
            episode_seed=0,
            segment=0,
            index=seq,
            stamp_ns=seq,
            observation={"observation.state": np.arange(14, dtype=np.float32)},
            action_base=action,
            action_asked=action,
            action_sent=action,
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=Source.POLICY,
            weights_version=1,
            reward=0.0,
            success=False,
            terminated=False,
            truncated=False,
        )
    )


class HostileMessages:
    """An endless supply, the same for the same seed. Each is the frames after the request id."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._step = example_step()
        self._good: list[bytes] = [
            bytes(encode(message)[0])
            for message in (
                Hello(schema_version=SCHEMA_VERSION, peer="edge"),
                GetProgress(),
                GetWeights(),
                GetWeights(version=3, offset=10, sha256="0" * 64, encoding=WeightEncoding.DELTA, base_sha256="1" * 64),
                StepBatch(records=[self._step, self._step]),
            )
        ]
        makers: list[tuple[int, Callable[[], Frames]]] = [
            (5, self.valid),
            (25, self.flipped),
            (10, self.noise),
            (8, self.truncated),
            (7, self.spliced),
            (10, self.edited),
            (10, self.other_types),
            (4, self.nested),
            (6, self.announced),
            (5, self.extra_frames),
            (8, self.bad_records),
            (2, self.extreme_numbers),
        ]
        self._makers = [maker for _, maker in makers]
        self._weights = [weight for weight, _ in makers]

    def next(self) -> Frames:
        (maker,) = self._rng.choices(self._makers, self._weights)
        return maker()

    def request_id(self, index: int) -> bytes:
        """Nine in ten are as they should be."""
        rng = self._rng
        return struct.pack("<q", index) if rng.random() < 0.9 else rng.randbytes(rng.randrange(40))

    def valid(self) -> Frames:
        return [self._rng.choice(self._good)]

    def flipped(self) -> Frames:
        data = bytearray(self._rng.choice(self._good))
        for _ in range(self._rng.randrange(1, 6)):
            data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        return [bytes(data)]

    def noise(self) -> Frames:
        return [self._rng.randbytes(self._rng.randrange(300)) for _ in range(self._rng.randrange(5))]

    def truncated(self) -> Frames:
        data = self._rng.choice(self._good)
        return [data[: self._rng.randrange(len(data))]]

    def spliced(self) -> Frames:
        left, right = self._rng.choice(self._good), self._rng.choice(self._good)
        return [left[: self._rng.randrange(len(left))] + right[self._rng.randrange(len(right)) :]]

    def edited(self) -> Frames:
        data, rng = self._rng.choice(self._good), self._rng
        begin = rng.randrange(len(data))
        end = min(len(data), begin + rng.randrange(12))
        return [data[:begin] + rng.randbytes(rng.randrange(12)) + data[end:]]

    def other_types(self) -> Frames:
        """Well-formed msgpack with values of the wrong kind in every place."""
        rng = self._rng
        values: list[object] = [
            None, True, -1, 2**63, 1e308, float("nan"), "x" * rng.randrange(300), b"x", [1, [2]], {"a": {"b": 1}},
            msgspec.msgpack.Ext(rng.randrange(-128, 128), rng.randbytes(rng.randrange(20))), {1: 2}, {None: None},
        ]  # fmt: skip
        tags = ("Hello", "StepBatch", "GetProgress", "GetWeights", "Step", "object", "", 7, None)
        names = ("schema_version", "peer", "records", "version", "offset", "sha256", "encoding", "base_sha256", "x")
        message: dict[object, object] = {"type": rng.choice(tags)}
        message |= {rng.choice(names): rng.choice(values) for _ in range(rng.randrange(6))}
        return [msgspec.msgpack.encode(rng.choice([message, [message], rng.choice(values)]))]

    def nested(self) -> Frames:
        opening = self._rng.choice([b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01"])
        return [_HEADER + opening * self._rng.randrange(1, 20_000)]

    def announced(self) -> Frames:
        """Lengths of gigabytes that never come."""
        kind = self._rng.choice([b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9", b"\xdc", b"\xde", b"\x9f", b"\x8f"])
        return [self._rng.choice([b"", _HEADER, _HEADER + b"\x91"]) + kind + self._rng.randbytes(4)]

    def extra_frames(self) -> Frames:
        sizes = self._rng.choice([0, 0, 1, 100, 5000])
        count = self._rng.choice([1, 2, 10, 40, 40, 1100])
        return [self._rng.choice(self._good), *([self._rng.randbytes(sizes)] * count)]

    def bad_records(self) -> Frames:
        records = []
        for _ in range(self._rng.randrange(1, 5)):
            data = bytearray(self._step)
            for _ in range(self._rng.randrange(4)):
                data[self._rng.randrange(len(data))] = self._rng.randrange(256)
            records.append(bytes(data[: self._rng.choice([len(data), self._rng.randrange(len(data))])]))
        return [bytes(encode(StepBatch(records=records))[0])]

    def extreme_numbers(self) -> Frames:
        numbers = (-1, 0, 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 10**6)
        version, offset = self._rng.choice(numbers), self._rng.choice(numbers)
        return [msgspec.msgpack.encode({"type": "GetWeights", "version": version, "offset": offset})]

    def heavy(self, max_message_bytes: int) -> Frames:
        """As large as is allowed, or a little more, and as slow to read as a message can be made."""
        room = max_message_bytes - 100
        length = struct.pack(">I", room - 100)
        half = struct.pack(">I", room // 2 - 100)
        makers: list[Callable[[], Frames]] = [
            lambda: [_HEADER + b"\xdd" + half + b"\xc4\x00" * (room // 2 - 100)],
            lambda: [b"\x83\xa4type\xa9StepBatch\xa1x\xdd" + length + bytes(room - 100) + b"\xa7records\x90"],
            lambda: [b"\xdf" + half + b"\xa4type\xa9StepBatch" + b"\xa0\x00" * (room // 2 - 101)],
            lambda: [b"\x82\xa4type\xdb" + length + b"x" * (room - 100)],
            lambda: [_HEADER + b"\x91\xc6" + length + bytes(room - 100)],
            lambda: [self._good[1], *[bytes(MIB)] * (max_message_bytes // MIB + 1)],
            lambda: [self._good[1], *[b""] * 50_000],
        ]
        return self._rng.choice(makers)()
