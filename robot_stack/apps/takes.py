"""Takes: what a person drove and nobody judged yet, and where it goes then.

A take is on this machine's disk step by step while it is driven. When it is over, what was called a success becomes a
demonstration, everything else goes to `takes/rejected`. Nothing said is failure, unless the task's own predicate was
met. A crash loses nothing that was said: at the next start, takes that were called successes become demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby

from msgspec import structs

from robot_stack.apps.edge import EpisodeCounter
from robot_stack.apps.layout import RunLayout
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import StackConfig
from robot_stack.core.codec import pack, unpack
from robot_stack.core.messages import HUMAN_SOURCES, Source, Step
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.spool import Spool
from robot_stack.learner.rewards.labels import read_labels

ALL = 1 << 40

TakeKey = tuple[str, int]
"""Session and episode."""


class Takes:
    """What was recorded and not judged yet, and where it goes then. Use as a context manager."""

    def __init__(self, config: StackConfig) -> None:
        layout = RunLayout.of(config)
        self._labels = layout.labels
        self._spool = Spool(layout.takes / "spool", config.edge.spool_capacity_bytes)
        self._chosen = StepStore(layout.demonstrations)
        self._rejected = StepStore(layout.takes / "rejected")
        self.outbox = Outbox(self._spool, ImageCodec(config.edge.image_codec), config.edge.outbox_capacity_bytes)
        self.counter = EpisodeCounter(layout.takes / "episodes.json")
        self._kept: set[TakeKey] = set()
        self._opened = ExitStack()

    def __enter__(self) -> Takes:
        for part in (self._spool, self._chosen, self._rejected, self.outbox):
            self._opened.enter_context(part)
        self._kept = {(step.session, step.episode) for _, step in self._chosen.iterate(self._chosen.first_index)}
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def kept(self) -> int:
        """Demonstrations in the store, whoever gave them."""
        return len(self._kept)

    def settle(self, refusals: Mapping[TakeKey, str]) -> dict[TakeKey, str]:
        """Give every recorded take to where it belongs. Why each that was not kept was not; `refusals`: reasons that
        count more than what was said. Interrupted, it is done again, and nothing is kept twice."""
        _, records = self._spool.pending(ALL, ALL)
        if not records:
            return {}
        said = {(one.session, one.episode): one.success for one in read_labels(self._labels) if one.index is None}
        rejected: dict[TakeKey, str] = {}
        recorded = (_unpacked(record) for record in records)
        for key, group in groupby(recorded, lambda step: (step.session, step.episode)):
            steps = list(group)
            reason = refusals.get(key) or _rejection(steps, said.get(key))
            if reason:
                rejected[key] = reason
                self._rejected.append([pack(step) for step in steps])
            else:
                self._chosen.append([pack(step) for step in as_demonstration(steps)])
                self._kept.add(key)
        first, _ = self._spool.pending(1, 0)
        self._spool.acknowledge(first + len(records) - 1)
        return rejected


def as_demonstration(steps: Sequence[Step]) -> list[Step]:
    """A take that was called a success, as the store of demonstrations has it: the person is the expert, what they did
    is what is learned, and the last step is the success."""
    taught = [
        structs.replace(step, source=Source.EXPERT, action_base=step.action_asked)
        if step.source in HUMAN_SOURCES
        else step
        for step in steps
    ]
    last = taught[-1]
    taught[-1] = structs.replace(last, success=True, terminated=True, truncated=False, reward=max(last.reward, 1.0))
    return taught


def _rejection(steps: Sequence[Step], said: bool | None) -> str:
    """Why a take is no demonstration, or ''."""
    if steps[-1].final_observation is None:
        return "it was broken off"
    if said is None:
        return "" if steps[-1].success else "nobody called it a success"
    return "" if said else "it was called a failure, or discarded"


def _unpacked(record: bytes) -> Step:
    step: Step = unpack(record, Step)
    return step
