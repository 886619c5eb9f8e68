"""Seeds of episodes: five ranges that never meet, so nothing is evaluated on what it was trained on."""

from __future__ import annotations

import zlib

from robot_stack.config.schema import DEFAULT_EDGE

EVALUATION_LIMIT = 1_000_000
_PRACTICE = 1_000_000
_DEMONSTRATIONS = 1_000_000_000
_PRACTICE_OF_MORE_EDGES = 2_000_000_000
_VALIDATION = 3_000_000_000
_PER_SEED = 1_000_000


def practice_seed(run_seed: int, episode: int, edge: str = DEFAULT_EDGE) -> int:
    """Seed of an episode of online learning. Edges of one run begin elsewhere, each by its name."""
    if edge != DEFAULT_EDGE:
        return _PRACTICE_OF_MORE_EDGES + zlib.crc32(f"{run_seed} {edge}".encode()) % 900_000_000 + episode
    return _PRACTICE + run_seed * _PER_SEED + episode


def demonstration_seed(run_seed: int, episode: int) -> int:
    """Seed of a demonstration."""
    return _DEMONSTRATIONS + run_seed * _PER_SEED + episode


def validation_seed(run_seed: int, episode: int) -> int:
    """Seed of an episode that a training measures itself on."""
    return _VALIDATION + run_seed * _PER_SEED + episode
