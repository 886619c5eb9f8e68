"""Weights on their way to the edge: fetched in chunks, verified whole, handed over at a chunk boundary."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from robot_stack.core.errors import MessageError, PolicyError
from robot_stack.core.messages import Array, FloatArray, GetWeights, Observation, WeightChunk, WeightSnapshot
from robot_stack.core.protocols import ResidualPolicy

logger = logging.getLogger(__name__)

MAX_WEIGHT_BYTES = 2 << 30


def fetch_weights(ask: Callable[[GetWeights], object]) -> tuple[WeightSnapshot, bytes] | None:
    """Fetch the newest snapshot chunk by chunk; None if it was replaced meanwhile (ask again).

    `ask` sends one request and returns the reply. Raises MessageError if size or hash do not match.
    """
    first = _chunk(ask(GetWeights()))
    snapshot = first.snapshot
    if not 0 < snapshot.size <= MAX_WEIGHT_BYTES:
        raise MessageError(f"weights version {snapshot.version} announce {snapshot.size} bytes")
    data = bytearray(first.data)
    while len(data) < snapshot.size:
        chunk = _chunk(ask(GetWeights(version=snapshot.version, offset=len(data))))
        if chunk.snapshot != snapshot:
            return None
        if not chunk.data or chunk.offset != len(data):
            raise MessageError(f"weights version {snapshot.version}: expected a chunk at {len(data)}")
        data += chunk.data
    if len(data) != snapshot.size or hashlib.sha256(data).hexdigest() != snapshot.sha256:
        raise MessageError(f"weights version {snapshot.version} do not have the announced hash; the old ones stay")
    return snapshot, bytes(data)


def _chunk(reply: object) -> WeightChunk:
    if not isinstance(reply, WeightChunk):
        raise MessageError(f"the learner answered a request for weights with {type(reply).__name__}")
    return reply


def load_tensors(data: bytes) -> dict[str, Array]:
    """Named tensors from safetensors bytes; PolicyError unless all are finite."""
    try:
        tensors: dict[str, Array] = load(data)
    except SafetensorError as error:
        raise PolicyError(f"the weights are not valid safetensors: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise PolicyError(f"the weights hold values that are not finite, in '{name}'; the old ones stay")
    return tensors


class WeightInbox:
    """Newest verified weights, from the uplink's thread to the control loop. Thread-safe, never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: tuple[int, Mapping[str, Array]] | None = None

    def put(self, version: int, tensors: Mapping[str, Array]) -> None:
        with self._lock:
            self._newest = (version, tensors)

    def newest(self, newer_than: int) -> tuple[int, Mapping[str, Array]] | None:
        with self._lock:
            if self._newest is None or self._newest[0] <= newer_than:
                return None
            return self._newest


class LiveResidual:
    """A residual policy that exchanges its weights at chunk boundaries for the newest in the inbox.

    `build` makes a residual from (version, tensors). It is tried on the next observation before it takes over: a
    residual that fails or gives a non-finite action is refused with a logged error, and the old one stays.
    """

    def __init__(
        self,
        initial: ResidualPolicy,
        inbox: WeightInbox,
        build: Callable[[int, Mapping[str, Array]], ResidualPolicy],
    ) -> None:
        self._residual = initial
        self._candidate: ResidualPolicy | None = None
        self._inbox = inbox
        self._build = build
        self._seen = initial.version

    @property
    def version(self) -> int:
        return (self._candidate or self._residual).version

    def refresh(self) -> None:
        newest = self._inbox.newest(self._seen)
        if newest is None:
            return
        self._seen = newest[0]
        try:
            self._candidate = self._build(*newest)
        except PolicyError as error:
            logger.error("weights version %d refused: %s", newest[0], error)

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        if self._candidate is not None:
            candidate, self._candidate = self._candidate, None
            action = candidate.correct(observation, action_base)
            if np.isfinite(action).all():
                self._residual = candidate
                return action
            logger.error("weights version %d refused: they give a non-finite action", candidate.version)
        return self._residual.correct(observation, action_base)
