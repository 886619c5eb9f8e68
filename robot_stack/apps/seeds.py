"""Seeds of episodes: four ranges that never meet, so nothing is evaluated on what it was trained on."""

from __future__ import annotations

EVALUATION_LIMIT = 1_000_000
_PRACTICE = 1_000_000
_DEMONSTRATIONS = 1_000_000_000
_VALIDATION = 3_000_000_000
_PER_SEED = 1_000_000


def practice_seed(run_seed: int, episode: int) -> int:
    """Seed of an episode of online learning."""
    return _PRACTICE + run_seed * _PER_SEED + episode


def demonstration_seed(run_seed: int, episode: int) -> int:
    """Seed of a demonstration."""
    return _DEMONSTRATIONS + run_seed * _PER_SEED + episode


def validation_seed(run_seed: int, episode: int) -> int:
    """Seed of an episode that a training measures itself on."""
    return _VALIDATION + run_seed * _PER_SEED + episode
