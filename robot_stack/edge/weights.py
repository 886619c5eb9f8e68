"""Weights on their way to the edge: fetched in chunks, verified whole, handed over at a chunk boundary."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.numpy import load, save

from robot_stack.core.delta import BLOCK_BYTES, decode_delta
from robot_stack.core.errors import MessageError, PolicyError
from robot_stack.core.messages import (
    Array,
    FloatArray,
    GetWeights,
    Observation,
    WeightChunk,
    WeightEncoding,
    WeightSnapshot,
)
from robot_stack.core.protocols import ExploringPolicy, ResidualPolicy
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.canary import Canary, Judgement, why_refused

MAX_WEIGHT_BYTES = 2 << 30


class WeightFetch:
    """Fetches snapshots, one after another, in the encoding asked for.

    What has arrived survives a broken connection: the next call goes on at that offset, over whatever connection
    `ask` then uses, and begins anew only if the learner no longer has that snapshot. `ask` sends one request and
    returns the reply; what it raises passes through. With DELTA the last content is kept as the base of the next.
    """

    def __init__(self, encoding: WeightEncoding = WeightEncoding.FULL) -> None:
        self._encoding = encoding
        self._snapshot: WeightSnapshot | None = None
        self._data = bytearray()
        self._base_sha256, self._base = "", b""

    @property
    def received_bytes(self) -> int:
        """How much of the content of the snapshot under way is here."""
        return len(self._data)

    def fetch(self, ask: Callable[[GetWeights], object]) -> tuple[WeightSnapshot, bytes] | None:
        """The snapshot under way or else the newest, and its content; None if it was replaced meanwhile (ask again).

        The content is a safetensors file with tensors of the original types, whatever the encoding. MessageError if
        anything is not as announced: what has arrived is thrown away then, and the old weights stay.
        """
        while True:
            before = self._snapshot
            whole = self.advance(ask)
            if whole is not None:
                return whole
            if before is not None and self._snapshot != before:
                return None

    def advance(self, ask: Callable[[GetWeights], object]) -> tuple[WeightSnapshot, bytes] | None:
        """Ask for one chunk; the snapshot and its content once it is whole. Errors as for `fetch`."""
        chunk = _chunk(ask(self._request()))
        try:
            snapshot = self._take(chunk)
            return (snapshot, self._finish(snapshot)) if len(self._data) == snapshot.size else None
        except MessageError:
            self._forget()
            self._base_sha256, self._base = "", b""  # so that the next attempt depends on nothing
            raise

    def _request(self) -> GetWeights:
        snapshot = self._snapshot
        if snapshot is None:
            return GetWeights(encoding=self._encoding, base_sha256=self._base_sha256)
        return GetWeights(
            version=snapshot.version,
            offset=len(self._data),
            sha256=snapshot.sha256,
            encoding=self._encoding,
            base_sha256=self._base_sha256,
        )

    def _take(self, chunk: WeightChunk) -> WeightSnapshot:
        """Add a chunk to what is here, or begin with it if it belongs to another snapshot."""
        snapshot = chunk.snapshot
        if snapshot != self._snapshot:
            self._check_announced(snapshot)
            self._forget()
            self._snapshot = snapshot
        begin = len(self._data)
        if not chunk.data or chunk.offset != begin:
            raise MessageError(
                f"weights version {snapshot.version}: expected a chunk at {begin}, got {len(chunk.data)} bytes at "
                f"{chunk.offset}"
            )
        if snapshot.encoding is WeightEncoding.DELTA:
            if hashlib.sha256(chunk.data).hexdigest() != chunk.sha256:
                raise MessageError(f"weights version {snapshot.version}: the chunk at {begin} does not have its hash")
            self._data += decode_delta(chunk.data, memoryview(self._base)[begin : begin + BLOCK_BYTES])
        else:
            self._data += chunk.data
        if len(self._data) > snapshot.size:
            raise MessageError(
                f"weights version {snapshot.version} are longer than the {snapshot.size} bytes announced"
            )
        return snapshot

    def _check_announced(self, snapshot: WeightSnapshot) -> None:
        if not 0 < snapshot.size <= MAX_WEIGHT_BYTES:
            raise MessageError(
                f"weights version {snapshot.version} announce {snapshot.size} bytes; allowed: 1 to {MAX_WEIGHT_BYTES}"
            )
        if snapshot.encoding not in (self._encoding, WeightEncoding.FULL):
            raise MessageError(
                f"weights version {snapshot.version} come as {snapshot.encoding.value}, asked for was "
                f"{self._encoding.value}"
            )
        if snapshot.encoding is WeightEncoding.DELTA and (
            snapshot.base_sha256 != self._base_sha256 or snapshot.size != len(self._base)
        ):
            raise MessageError(f"weights version {snapshot.version} build on a snapshot that is not here")

    def _finish(self, snapshot: WeightSnapshot) -> bytes:
        content = bytes(self._data)
        if hashlib.sha256(content).hexdigest() != snapshot.sha256:
            raise MessageError(f"weights version {snapshot.version} do not have the announced hash; the old ones stay")
        identity = _identity(content)
        if identity and identity != snapshot.identity():
            raise MessageError(
                f"weights announced as '{snapshot.identity()}' are '{identity}' inside; the old ones stay"
            )
        self._forget()
        if self._encoding is WeightEncoding.DELTA:
            self._base_sha256, self._base = snapshot.sha256, content
        return _widened(content) if snapshot.encoding is WeightEncoding.FLOAT16 else content

    def _forget(self) -> None:
        self._snapshot, self._data = None, bytearray()


def _chunk(reply: object) -> WeightChunk:
    if not isinstance(reply, WeightChunk):
        raise MessageError(f"the learner answered a request for weights with {type(reply).__name__}")
    return reply


class _Header(Struct, frozen=True):
    """Of a safetensors file: the free texts; the list of tensors is left to the library."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def _identity(content: bytes) -> str:
    """What the publisher wrote into the content; empty if it wrote nothing. MessageError if it cannot be read."""
    length = int.from_bytes(content[:8], "little")
    try:
        return msgspec.json.decode(content[8 : 8 + length], type=_Header).metadata.get("weights", "")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"the weights are no safetensors file: {error}") from error


def _widened(content: bytes) -> bytes:
    """The same safetensors content with every float16 tensor as float32."""
    tensors = _parsed(content)
    return save(
        {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in tensors.items()}
    )


def _parsed(content: bytes) -> dict[str, Array]:
    try:
        tensors: dict[str, Array] = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"the weights are not valid safetensors: {error}") from error
    return tensors


def load_tensors(data: bytes) -> dict[str, Array]:
    """Named tensors from safetensors bytes; PolicyError unless all are finite."""
    tensors = _parsed(data)
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

    `build` makes a residual from (version, tensors). It is tried before it takes over, on recent observations
    (`canary`) and on the next one: a residual that cannot be built, fails, gives an action that is not finite, out of
    bounds or of another shape, or changes the actions too much, is refused, counted and shown on `board`, and the old
    one stays, in the same control step.
    """

    def __init__(
        self,
        initial: ResidualPolicy,
        inbox: WeightInbox,
        build: Callable[[int, Mapping[str, Array]], ResidualPolicy],
        canary: Canary | None = None,
        board: AlarmBoard | None = None,
    ) -> None:
        self._residual = initial
        self._candidate: tuple[ResidualPolicy, Judgement] | None = None
        self._inbox = inbox
        self._build = build
        self._canary = canary
        self._board = board or AlarmBoard()
        self._seen = initial.version
        self.refused = 0
        """How many weights were not let act."""

    @property
    def version(self) -> int:
        return (self._candidate[0] if self._candidate else self._residual).version

    def refresh(self) -> None:
        newest = self._inbox.newest(self._seen)
        if newest is None:
            return
        self._seen = newest[0]
        try:
            candidate = self._build(*newest)
            judgement = self._canary.judge(candidate) if self._canary else Judgement("")
        except Exception as error:  # whatever a learner sent must not stop the control loop
            self._refuse(newest[0], str(error))
            return
        if judgement.problem:
            self._refuse(newest[0], judgement.problem)
        else:
            self._candidate = candidate, judgement

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        action = self._of_candidate(observation, action_base)
        if action is None:
            action = self._residual.correct(observation, action_base)
        if self._canary:
            self._canary.saw(observation, action_base, action)
        return action

    def explore(self, observation: Observation, action_base: FloatArray, rng: np.random.Generator) -> FloatArray | None:
        """Called after `correct`: what the weights that act now do to learn; None if they have no way of their own."""
        acting = self._residual
        return acting.explore(observation, action_base, rng) if isinstance(acting, ExploringPolicy) else None

    def _of_candidate(self, observation: Observation, action_base: FloatArray) -> FloatArray | None:
        """The candidate's action, and it acts from now on; None if there is none, or it must not act."""
        if self._candidate is None:
            return None
        (candidate, judgement), self._candidate = self._candidate, None
        try:
            action = candidate.correct(observation, action_base)
        except Exception as error:  # as above
            self._refuse(candidate.version, f"they fail: {error}")
            return None
        problem = self._canary.problem(action, action_base) if self._canary else why_refused(action, action_base)
        if problem:
            self._refuse(candidate.version, problem)
            return None
        self._residual = candidate
        if self._canary:
            self._canary.accepted(judgement)
        self._board.end(AlarmKind.WEIGHTS_REFUSED)
        return action

    def _refuse(self, version: int, reason: str) -> None:
        self.refused += 1
        stays = self._residual.version
        words = f"weights version {version} refused: {reason}; version {stays} stays"
        self._board.put(AlarmKind.WEIGHTS_REFUSED, words, remind=True)
