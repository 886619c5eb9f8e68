"""Taking in recorded steps: the part of the learner that answers a batch of steps. Nothing here needs torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from robot_stack.core.errors import CommandRefusedError, MessageError, RobotStackError, SpecMismatchError
from robot_stack.core.messages import Failed, StepAck, StepBatch
from robot_stack.learner.feeds import Feeds

logger = logging.getLogger(__name__)

_OF_THE_SENDER = (MessageError, SpecMismatchError, CommandRefusedError)
"""Errors that the sender has to mend; the store works."""


class StepSink(Protocol):
    """Where steps become durable: a `StepStore` or a `StepLog`."""

    def append(self, records: Sequence[bytes]) -> tuple[int, int]:
        """(accepted, duplicates) once every record is durable; an error, and none of them stored, otherwise."""


class Ingest:
    """Answers batches of steps. `StepAck` means: every record of the batch is durable in the store.

    A batch that is refused is not acknowledged, so the edge keeps it and sends it again.

    `feeds` says whose steps may be stored; None: everybody's.

    Attributes:
        accepted, duplicates: records stored, and records that were here already, since the start.
        problem: why the store takes no steps right now (a full disk), in words for a person; '' while it does.
    """

    def __init__(self, store: StepSink, feeds: Feeds | None = None) -> None:
        self._store = store
        self._feeds = feeds
        self.accepted = 0
        self.duplicates = 0
        self.problem = ""
        self._logged: dict[str, str] = {}

    def answer(self, batch: StepBatch, edge: str = "") -> StepAck | Failed:
        """Store a batch, then acknowledge it. Errors of the store are answered and shown, never raised."""
        try:
            if self._feeds is not None:
                self._feeds.admit(edge, batch.records)
            accepted, duplicates = self._store.append(batch.records)
        except RobotStackError as error:
            return self._refuse(error, edge)
        if self.problem:
            logger.warning("steps are taken again")
        self.problem = ""
        self._logged.pop(edge, None)
        self.accepted += accepted
        self.duplicates += duplicates
        return StepAck(records=len(batch.records), duplicates=duplicates)

    def _refuse(self, error: RobotStackError, edge: str) -> Failed:
        """The edge asks again and again: each problem is logged once, not once a batch."""
        if str(error) != self._logged.get(edge):
            logger.error("a batch of steps was not stored: %s", error)
            self._logged[edge] = str(error)
        if not isinstance(error, _OF_THE_SENDER):
            self.problem = str(error)
        return Failed(reason=type(error).__name__, message=str(error))
