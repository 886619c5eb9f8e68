"""The processes that get killed: an ingest side and an edge side, forked from a warm parent: a start costs little.

Both are made of the parts that the learner and the edge are made of: `RequestServer` with CURVE, `Ingest` and its store
there; `Recorder`, outbox, spool and uplink here. Beside them an observer at the edge's socket writes down what was
acknowledged, independently of spool and store.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from msgspec import Struct

from benchmarks.faults.content import RECORDING, loop_step
from benchmarks.faults.stores import SERVED, open_store
from robot_stack.apps.connections import LEARNER_REQUEST, free_network
from robot_stack.apps.keys import EDGE_KEY, LEARNER_KEY, ROBOT_KEY, VIEWER_KEY
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.core.codec import unpack
from robot_stack.core.messages import (
    Done,
    Failed,
    GetProgress,
    Hello,
    LearnerProgress,
    LearnerReply,
    LearnerRequest,
    StepAck,
    StepBatch,
)
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.recorder import Recorder
from robot_stack.edge.spool import Spool
from robot_stack.edge.uplink import Uplink
from robot_stack.edge.weights import WeightInbox
from robot_stack.learner.ingest import Ingest
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.server import RequestServer

SPOOL_BYTES = 8 << 20
OUTBOX_BYTES = 16 << 20
ACK = struct.Struct("<32sQQQQ")  # the fields of `Ack`
COUNT = struct.Struct("<32sQQQ")  # the fields of `Count`
_PR_SET_PDEATHSIG = 1
_KEYS = ((LEARNER_KEY, Role.LEARNER), (EDGE_KEY, Role.EDGE), (ROBOT_KEY, Role.ROBOT), (VIEWER_KEY, Role.VIEWER))


@dataclass(frozen=True, slots=True)
class Site:
    """Folders, addresses and keys that both sides share. `uplink_address`: what the edge connects to."""

    root: Path
    keys: KeyStore
    ingest_address: str
    uplink_address: str

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def observed(self) -> Path:
        return self.root / "observed"


def make_site(root: Path, *, proxied: bool = False) -> Site:
    """A fresh site on free loopback ports; `proxied`: the edge connects to a port of its own, for a proxy."""
    keys = KeyStore(root / "keys")
    for name, role in _KEYS:
        keys.make(name, role)
    network = free_network(domain=True)
    site = Site(root, keys, network.learner_address, network.scene_address if proxied else network.learner_address)
    site.observed.mkdir()
    return site


class Fork:
    """A forked process that runs `work`; it dies with its parent. Fork before any thread or socket is there."""

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        self._log = log
        self._ended: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def _run(self, work: Callable[[], None]) -> None:
        code = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def kill(self) -> None:
        """`kill -9`; returns when the process is gone."""
        if self._ended is None:
            os.kill(self.pid, signal.SIGKILL)
            self._ended = os.waitpid(self.pid, 0)[1]

    def ended(self) -> bool:
        """Whether it came to its end by itself; SystemExit with the end of its log if that was an error."""
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._ended = status if pid else None
        if self._ended:
            raise SystemExit(f"a process of the benchmark failed:\n{self._log.read_text()[-3000:]}")
        return self._ended is not None


# ---- the ingest side --------------------------------------------------------------------------------------------


def serve_steps(site: Site) -> None:
    """Take steps in until killed, as the learner does."""
    requests: RequestServer[LearnerRequest] = RequestServer(
        LEARNER_REQUEST, site.ingest_address, site.keys, LEARNER_KEY, LearnerRequest
    )
    with open_store(site.store, SERVED) as store, requests:
        ingest = Ingest(store)
        while True:
            for request in requests.poll(0.05):
                request.reply(_answer(ingest, store, request.message))


def _answer(ingest: Ingest, store: StepStore, message: LearnerRequest) -> LearnerReply:
    if isinstance(message, StepBatch):
        return ingest.answer(message)
    if isinstance(message, Hello):
        return Done()
    if isinstance(message, GetProgress):
        return LearnerProgress(
            durable_steps=store.next_index,
            trained_steps=0,
            updates=0,
            weights_version=-1,
            target_steps=2**62,
            finished=False,
            metrics={},
        )
    return Failed(reason="unused", message=f"this stand-in answers no {type(message).__name__}")


# ---- the edge side ----------------------------------------------------------------------------------------------


class _Identity(Struct, frozen=True):
    session: str
    seq: int


class Ack(NamedTuple):
    """One acknowledged step: when its request was begun, when the acknowledgement was there, and how many steps of
    its batch the store had already (noted with the first step of the batch)."""

    session: str
    seq: int
    begun_ns: int
    acked_ns: int
    repeated: int


class ObservingClient(RequestClient[LearnerReply]):
    """The edge's connection; writes every acknowledged step to a file before the uplink hears of it."""

    def __init__(self, site: Site, file: int) -> None:
        super().__init__(LEARNER_REQUEST, site.uplink_address, site.keys, EDGE_KEY, LEARNER_KEY, LearnerReply)
        self._file = file

    def request(self, message: object, timeout_s: float, raise_failed: bool = True) -> LearnerReply:
        begun_ns = time.monotonic_ns()
        reply = super().request(message, timeout_s, raise_failed)
        if isinstance(message, StepBatch) and isinstance(reply, StepAck):
            _note(self._file, message, begun_ns, reply.duplicates)
        return reply


def _note(file: int, batch: StepBatch, begun_ns: int, duplicates: int) -> None:
    acked_ns = time.monotonic_ns()
    lines = []
    for position, record in enumerate(batch.records):
        step: _Identity = unpack(record, _Identity)
        repeated = duplicates if position == 0 else 0
        lines.append(ACK.pack(step.session.encode(), step.seq, begun_ns, acked_ns, repeated))
    os.write(file, b"".join(lines))


class Count(NamedTuple):
    """Of one life of the edge: steps given to the recorder, steps that the spool had kept (a moment ago, or more), and
    whether they came at a robot's pace."""

    session: str
    given: int
    kept: int
    paced: int


class EdgeSide:
    """Recorder, outbox, spool and uplink of one life of the edge; `record` gives them the next step."""

    def __init__(self, site: Site, life: int, *, paced: bool = False, spool_bytes: int = SPOOL_BYTES) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._acks = os.open(site.observed / f"acks-{life:06d}", flags, 0o644)
        self._counts = os.open(site.observed / f"recorded-{life:06d}", os.O_WRONLY | os.O_CREAT, 0o644)
        self._paced = paced
        self.spool = Spool(site.spool, spool_bytes)
        self.outbox = Outbox(self.spool, ImageCodec.RAW, OUTBOX_BYTES)
        self.uplink = Uplink(lambda: ObservingClient(site, self._acks), self.spool, WeightInbox())
        self._recorder = Recorder(RECORDING, self.outbox.put)

    def __enter__(self) -> EdgeSide:
        self.spool.open()
        self.outbox.__enter__()
        self.uplink.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.outbox.__exit__()
        self.uplink.__exit__()
        self.spool.close()

    @property
    def waiting(self) -> int:
        """Steps that are not acknowledged."""
        return self.outbox.waiting + self.spool.unacknowledged

    def record(self) -> None:
        """Give the recorder the next step, and note how far spool and recorder are."""
        session, seq = self._recorder.session, self._recorder.recorded
        self._recorder.on_step(loop_step(session, seq))
        os.pwrite(self._counts, COUNT.pack(session.encode(), seq + 1, self.outbox.kept, self._paced), 0)
        if self.outbox.dropped:
            raise SystemExit(f"a step was dropped: {self.outbox.problem}")

    def drain(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged."""
        deadline = time.monotonic() + timeout_s
        while self.waiting:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.waiting} steps were not acknowledged after {timeout_s:.0f} s")
            time.sleep(0.005)


def read_counts(folder: Path) -> list[Count]:
    """Of every life of the edge in which a step was recorded."""
    found = [path.read_bytes() for path in sorted(folder.glob("recorded-*"))]
    unpacked = [COUNT.unpack(data) for data in found if len(data) == COUNT.size]
    return [Count(session.decode(), *numbers) for session, *numbers in unpacked]


def read_acks(path: Path, start: int = 0) -> list[Ack]:
    """The acknowledgements in one file from entry `start` on; a torn one at the end does not count."""
    with path.open("rb") as file:
        file.seek(start * ACK.size)
        data = file.read()
    whole = len(data) // ACK.size * ACK.size
    return [Ack(session.decode(), *numbers) for session, *numbers in ACK.iter_unpack(data[:whole])]
