"""The composition of batches for imitation: which share of every batch each kind of data has, exactly.

A rule tells the shares from how much there is of each kind. They are kept by drawing: weighting a sample's loss by
target share / actual share, as IWR and Sirius put it, has the same expectation, and needs more samples for the same
variance.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.buffer.batches import Draw
from robot_stack.buffer.replay import Replay, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.core.errors import ConfigError, StorageError
from robot_stack.learner.algorithms.settings.imitation import RuleName

logger = logging.getLogger(__name__)

KINDS = (
    Stratum.DEMONSTRATION,
    Stratum.ONLINE,
    Stratum.RECOVERY,
    Stratum.CORRECTION,
    Stratum.PRE_INTERVENTION,
)
"""The parts of the mix, in their order; the demonstrations are a replay of their own."""

_INTERVENTION = (Stratum.RECOVERY, Stratum.CORRECTION)

Shares = dict[Stratum, float]


@dataclass(frozen=True, slots=True)
class ByKind:
    """A part for every kind of data; a `Mix`."""

    def __call__(self, demonstrations: Replay, online: Replay) -> Sequence[Part]:
        return [Part(demonstrations) if kind is Stratum.DEMONSTRATION else Part(online, kind) for kind in KINDS]


@dataclass(frozen=True, slots=True)
class Targets:
    """Which shares a rule wants.

    natural (bc, dagger, hg_dagger, rac): every step counts the same. iwr: `intervention` of every batch from
    interventions, the rest from everything else. sirius: `intervention` and `pre_intervention` as given, the
    demonstrations as many as there are, the policy's own steps what is left.
    """

    rule: RuleName
    intervention: float = 0.5
    pre_intervention: float = 0.002

    def shares(self, sizes: Mapping[Stratum, int]) -> Shares:
        """Target shares by kind; they add up to 1, and a kind that has no steps has none. All sizes 0: ConfigError.

        Where wanted shares cannot be had, because a kind is empty or the demonstrations alone are more than is left
        (then the policy's own share would be negative: it becomes 0), the others keep their proportions.
        """
        total = sum(sizes.values())
        if total == 0:
            raise ConfigError("there are no steps to learn from yet; load demonstrations or collect some first")
        natural = {kind: sizes.get(kind, 0) / total for kind in KINDS}
        wanted = natural
        if self.rule in ("iwr", "sirius") and any(natural[kind] for kind in _INTERVENTION):
            wanted = self._iwr(natural) if self.rule == "iwr" else self._sirius(natural)
        there = {kind: max(0.0, wanted[kind]) if natural[kind] else 0.0 for kind in KINDS}
        whole = sum(there.values())
        return {kind: share / whole for kind, share in there.items()}

    def weights(self, sizes: Mapping[Stratum, int]) -> Shares:
        """Target share / actual share of the kinds that have steps: what a uniform sample's loss would be weighted
        with."""
        total, shares = sum(sizes.values()), self.shares(sizes)
        return {kind: shares[kind] * total / size for kind, size in sizes.items() if size}

    def clamped(self, sizes: Mapping[Stratum, int]) -> bool:
        """Whether the policy's own share would be negative."""
        total = max(1, sum(sizes.values()))
        interventions = any(sizes.get(kind, 0) for kind in _INTERVENTION)
        demonstrations = sizes.get(Stratum.DEMONSTRATION, 0) / total
        left = 1.0 - self.intervention - self.pre_intervention - demonstrations
        return self.rule == "sirius" and interventions and left < 0.0

    def _iwr(self, natural: Shares) -> Shares:
        theirs = sum(natural[kind] for kind in _INTERVENTION)
        rest = sum(share for kind, share in natural.items() if kind not in _INTERVENTION) or 1.0
        wanted = {kind: (1.0 - self.intervention) * share / rest for kind, share in natural.items()}
        return wanted | {kind: self.intervention * natural[kind] / theirs for kind in _INTERVENTION}

    def _sirius(self, natural: Shares) -> Shares:
        theirs = sum(natural[kind] for kind in _INTERVENTION)
        demonstrations = natural[Stratum.DEMONSTRATION]
        wanted = {kind: self.intervention * natural[kind] / theirs for kind in _INTERVENTION}
        return wanted | {
            Stratum.DEMONSTRATION: demonstrations,
            Stratum.PRE_INTERVENTION: self.pre_intervention,
            Stratum.ONLINE: 1.0 - self.intervention - self.pre_intervention - demonstrations,
        }


class Composition:
    """Draws batches of target shares from a sampler with the parts of `ByKind`, all shares 1, empty ones passed over.

    After N samples of constant targets a kind has given N times its share, to less than one sample. What a kind is
    owed (`owed`, (kinds,) float64) is the whole state.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self.owed: NDArray[np.float64] = np.zeros(len(KINDS), np.float64)
        self._warned = False

    def draw(self, sampler: Sampler, batch_size: int) -> tuple[Draw, Shares]:
        """The rows of a batch, and the targets that it was drawn for."""
        sizes = {kind: part.replay.size(part.stratum) for kind, part in zip(KINDS, sampler.parts, strict=True)}
        if not any(sizes.values()):
            raise StorageError("no step to learn from is eligible yet; load demonstrations or collect some first")
        self._warn(sizes)
        shares = self._targets.shares(sizes)
        counts = self._deal(np.array([shares[kind] for kind in KINDS]), batch_size)
        # Every part that has rows gives a whole batch; of these rows the first ones are taken.
        plenty = sampler.draw(batch_size * len(KINDS))
        first = np.cumsum([0, *plenty.counts[:-1]])
        rows = np.concatenate([plenty.rows[at : at + count] for at, count in zip(first, counts, strict=True)])
        return Draw(tuple(counts), rows, np.ones(batch_size, np.float32)), shares

    def _deal(self, shares: NDArray[np.float64], batch_size: int) -> list[int]:
        owed = np.where(shares > 0.0, self.owed + shares * batch_size, 0.0)
        owed += (batch_size - owed.sum()) * shares  # what a kind that has become empty was owed goes to the others
        counts = np.maximum(0, np.floor(owed)).astype(np.int64)
        while counts.sum() > batch_size:
            counts[np.argmax(np.where(counts > 0, counts - owed, -np.inf))] -= 1
        while counts.sum() < batch_size:
            counts[np.argmax(np.where(shares > 0.0, owed - counts, -np.inf))] += 1
        self.owed = owed - counts
        return [int(count) for count in counts]

    def _warn(self, sizes: Mapping[Stratum, int]) -> None:
        if not self._warned and self._targets.clamped(sizes):
            self._warned = True
            logger.warning(
                "%d of %d steps are demonstrations: Sirius leaves no share to the policy's own steps, theirs is 0 now",
                sizes[Stratum.DEMONSTRATION],
                sum(sizes.values()),
            )
