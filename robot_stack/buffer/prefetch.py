"""Gathers batches ahead of the consumer, in threads, without changing a single one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from robot_stack.buffer.batches import Draw
from robot_stack.buffer.frames import ImageBuffers
from robot_stack.buffer.sampling import Cursor, Sampler
from robot_stack.core.errors import ConfigError, StorageError

Batch = TypeVar("Batch")
Gather = Callable[[Draw, ImageBuffers], Batch]


@dataclass(frozen=True, slots=True)
class _Ahead(Generic[Batch]):
    """A batch that is being gathered: where the sampler stood after its draw, and whose arrays it is written into."""

    after: Cursor
    future: Future[Batch]
    out: ImageBuffers


class Prefetcher(Generic[Batch]):
    """`next` gives the same batches, in the same order, as drawing and gathering one at a time would.

        gather = lambda draw, out: sampler.transitions(draw, 3, 0.99, images=("observation.images.wrist",), out=out)
        with Prefetcher(sampler, 256, gather) as prefetcher:
            batch = prefetcher.next()

    Draws are made in the consumer's thread, up to `depth` ahead; `workers` threads gather them. When the replays or
    priorities change in between, what was drawn ahead is thrown away and drawn anew, so the consumer never gets a batch
    from before the change. `expect` says how many batches will be taken before the next change, so that nothing is
    gathered in vain. A batch's images stay valid until `keep` more batches were taken.

    The thread that calls `next` is also the one that adds steps, sets priorities and takes states; a sampler is drawn
    from by its prefetcher alone.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        gather: Gather[Batch],
        *,
        depth: int = 2,
        workers: int = 2,
        keep: int = 1,
    ) -> None:
        if min(depth, workers, keep) < 1:
            raise ConfigError(
                f"a prefetcher needs depth, workers and keep of 1 or more; it was given {depth}, {workers} and {keep}"
            )
        self.thrown_away = 0
        self._sampler = sampler
        self._batch_size = batch_size
        self._gather = gather
        self._depth = depth
        self._expected: int | None = None
        self._keep = keep
        self._generation = sampler.generation
        self._consumed = sampler.cursor()
        self._ahead: deque[_Ahead[Batch]] = deque()
        self._taken: deque[ImageBuffers] = deque()
        self._spare = [ImageBuffers() for _ in range(depth + keep)]
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(workers, thread_name_prefix="replay-gather")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def expect(self, batches: int) -> None:
        """This many batches will be taken before steps are added or priorities set; starts to gather them.

        Without a call as many as `depth` are gathered ahead at any time.
        """
        self._follow_changes()
        self._expected = max(0, batches)
        self._fill()

    def next(self) -> Batch:
        """The next batch. An error of a draw or a gather is raised here; the next call then tries the same again."""
        self._follow_changes()
        try:
            self._fill(at_least=1)
            first = self._ahead[0]
            batch = first.future.result()
        except BaseException:
            self._throw_away()
            raise
        self._ahead.popleft()
        self._consumed = first.after
        self._taken.append(first.out)
        if len(self._taken) > self._keep:
            self._spare.append(self._taken.popleft())
        if self._expected is not None:
            self._expected = max(0, self._expected - 1)
        self._fill()
        return batch

    def state(self) -> bytes:
        """The sampler's state after the batches that were taken; what was drawn ahead does not count."""
        return self._sampler.state(self._consumed)

    def load_state(self, state: bytes) -> None:
        """Go on from a state, as `Sampler.load_state`."""
        self._throw_away()
        self._sampler.load_state(state)
        self._consumed = self._sampler.cursor()

    def close(self) -> None:
        """Stop the threads; the sampler goes on after the last batch taken. May be called twice."""
        if self._pool is None:
            return
        self._throw_away()
        self._pool.shutdown()
        self._pool = None

    def _follow_changes(self) -> None:
        if self._generation != self._sampler.generation:
            self._throw_away()
            self._expected = None if self._expected is None else 0

    def _throw_away(self) -> None:
        for ahead in self._ahead:
            if not ahead.future.cancel():
                ahead.future.exception()  # waits: its arrays are written to until then
            self._spare.append(ahead.out)
        if self._ahead:
            self.thrown_away += len(self._ahead)
            self._ahead.clear()
        self._sampler.rewind(self._consumed)
        self._generation = self._sampler.generation

    def _fill(self, at_least: int = 0) -> None:
        if self._pool is None:
            raise StorageError("a prefetcher that was closed is asked for a batch; make a new one")
        wanted = self._depth if self._expected is None else min(self._depth, self._expected)
        while len(self._ahead) < max(wanted, at_least):
            draw = self._sampler.draw(self._batch_size)
            out = self._spare.pop()
            future = self._pool.submit(self._gather, draw, out)
            self._ahead.append(_Ahead(self._sampler.cursor(), future, out))
