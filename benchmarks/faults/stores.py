"""The store that the benchmark puts under fire, in one place."""

from __future__ import annotations

from pathlib import Path

from robot_stack.buffer.log import Durability
from robot_stack.buffer.store import StepStore, StoreSettings

SERVED = StoreSettings(segment_bytes=256 * 1024)
TORN = StoreSettings(segment_bytes=16 * 1024, background=False)
SEAL_AT_MOST = 1_000


def open_store(folder: Path, settings: StoreSettings, durability: Durability = "power") -> StepStore:
    """A store with small files, so that all that happens to large ones happens here soon: new segments, sealing in
    the background (SERVED) or when `seal` is called (TORN), segments that go."""
    return StepStore(folder, durability, settings)


def seal(store: StepStore) -> int:
    """Seal what is complete, now."""
    return store.seal(SEAL_AT_MOST)
