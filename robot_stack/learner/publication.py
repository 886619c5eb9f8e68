"""Publication of weights: one immutable snapshot at a time, served in chunks, named by version and hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors.numpy import save

from robot_stack.core.errors import TransportError
from robot_stack.core.messages import Array, GetWeights, WeightChunk, WeightSnapshot

CHUNK_BYTES = 1 << 20


class WeightPublisher:
    """Holds the newest snapshot and answers requests for it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._snapshot: WeightSnapshot | None = None
        self._data = b""

    @property
    def version(self) -> int:
        """Version of the newest snapshot, -1 before the first."""
        return self._snapshot.version if self._snapshot else -1

    def publish(self, version: int, tensors: Mapping[str, Array], trained_steps: int) -> WeightSnapshot:
        data = save(dict(tensors))
        self._data = data
        self._snapshot = WeightSnapshot(
            version=version,
            kind=self._kind,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            trained_steps=trained_steps,
        )
        return self._snapshot

    def answer(self, request: GetWeights) -> WeightChunk:
        """The asked chunk of the newest snapshot; a request for an older one gets the newest from its beginning."""
        if self._snapshot is None:
            raise TransportError("no weights have been published yet")
        current = request.version in (-1, self._snapshot.version)
        offset = request.offset if current else 0
        if not 0 <= offset < max(1, len(self._data)):
            raise TransportError(f"weights have {len(self._data)} bytes, asked for offset {offset}")
        return WeightChunk(snapshot=self._snapshot, offset=offset, data=self._data[offset : offset + CHUNK_BYTES])
