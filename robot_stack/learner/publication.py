"""Publication of weights: immutable snapshots, served in chunks, named by version and hash.

The last few stay: as bases of deltas, and so that a slow edge can finish what it is fetching while newer ones appear.
Which encoding is used is the asker's choice (`GetWeights.encoding`); the publisher keeps no record of askers.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from safetensors.numpy import load, save

from robot_stack.core.delta import BLOCK_BYTES, encode_delta
from robot_stack.core.errors import TransportError
from robot_stack.core.messages import Array, GetWeights, WeightChunk, WeightEncoding, WeightSnapshot

CHUNK_BYTES = 1 << 20
HISTORY = 3

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Content:
    """A safetensors file in memory, and what announces it."""

    snapshot: WeightSnapshot
    data: bytes


class WeightPublisher:
    """Holds the newest snapshot and the `history` - 1 before it, and answers requests for them."""

    def __init__(self, kind: str, history: int = HISTORY) -> None:
        self._kind = kind
        self._published: deque[_Published] = deque(maxlen=max(1, history))

    @property
    def version(self) -> int:
        """Version of the newest snapshot, -1 before the first."""
        return self._published[-1].exact.snapshot.version if self._published else -1

    def publish(self, version: int, tensors: Mapping[str, Array], trained_steps: int) -> WeightSnapshot:
        """Make a copy of these tensors the newest snapshot. Returns how a FULL transfer announces it."""
        published = _Published(self._kind, version, tensors, trained_steps)
        self._published.append(published)
        return published.exact.snapshot

    def answer(self, request: GetWeights) -> WeightChunk:
        """The asked chunk of the snapshot that is being fetched; of the newest, from its beginning, if that is gone.

        TransportError before the first snapshot, and for an offset outside the content.
        """
        if not self._published:
            raise TransportError("no weights have been published yet")
        known = self._named(request)
        published, offset = (known, request.offset) if known else (self._published[-1], 0)
        content = published.content(request.encoding)
        if not 0 <= offset < len(content.data):
            raise TransportError(f"weights have {len(content.data)} bytes, asked for offset {offset}")
        if request.encoding is WeightEncoding.DELTA:
            base = self._base(request.base_sha256, len(content.data))
            if base is not None:
                return _delta_chunk(content, base, offset)
        return WeightChunk(snapshot=content.snapshot, offset=offset, data=content.data[offset : offset + CHUNK_BYTES])

    def _named(self, request: GetWeights) -> _Published | None:
        """The snapshot that the request is about; None if it is no longer here."""
        if not request.sha256:
            return self._published[-1] if request.version in (-1, self.version) else None
        for published in self._published:
            if published.content(request.encoding).snapshot.sha256 == request.sha256:
                return published
        return None

    def _base(self, sha256: str, size: int) -> _Content | None:
        """The content to build a delta on: known here, and of the same length, so that each tensor meets itself."""
        for published in self._published:
            exact = published.exact
            if exact.snapshot.sha256 == sha256 and len(exact.data) == size:
                return exact
        return None


class _Published:
    """One snapshot: its exact content, and the rounded one once somebody has asked for it."""

    def __init__(self, kind: str, version: int, tensors: Mapping[str, Array], trained_steps: int) -> None:
        self._template = WeightSnapshot(version=version, kind=kind, sha256="", size=0, trained_steps=trained_steps)
        self.exact = _content(self._template, tensors)
        self._half: _Content | None = None

    def content(self, encoding: WeightEncoding) -> _Content:
        """The exact content, or for FLOAT16 the rounded one; the exact one too where float16 could not hold it."""
        if encoding is not WeightEncoding.FLOAT16:
            return self.exact
        if self._half is None:
            rounded = _rounded(load(self.exact.data))
            if rounded is None:
                _LOG.warning("weights version %d do not fit into float16; they are sent whole", self._template.version)
                self._half = self.exact
            else:
                self._half = _content(msgspec.structs.replace(self._template, encoding=WeightEncoding.FLOAT16), rounded)
        return self._half


def _content(template: WeightSnapshot, tensors: Mapping[str, Array]) -> _Content:
    data = save(dict(tensors), metadata={"weights": template.identity()})
    announced = msgspec.structs.replace(template, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    return _Content(announced, data)


def _rounded(tensors: Mapping[str, Array]) -> dict[str, Array] | None:
    """float32 to float16, the rest as it is; None if a number leaves the range or one is float16 already.

    The receiver makes every float16 tensor a float32 again: an original float16 tensor would change its type.
    """
    rounded: dict[str, Array] = {}
    for name, value in tensors.items():
        if value.dtype == np.float16:
            return None
        if value.dtype != np.float32:
            rounded[name] = value
            continue
        with np.errstate(over="ignore"):
            rounded[name] = value.astype(np.float16)
        if not np.array_equal(np.isfinite(rounded[name]), np.isfinite(value)):
            return None
    return rounded


def _delta_chunk(content: _Content, base: _Content, offset: int) -> WeightChunk:
    end = offset + BLOCK_BYTES
    data = encode_delta(memoryview(content.data)[offset:end], memoryview(base.data)[offset:end])
    snapshot = msgspec.structs.replace(
        content.snapshot, encoding=WeightEncoding.DELTA, base_sha256=base.snapshot.sha256
    )
    return WeightChunk(snapshot=snapshot, offset=offset, data=data, sha256=hashlib.sha256(data).hexdigest())
