"""How many samples of a batch each part of a mix gives, so that the shares come out exactly in the long run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from robot_stack.core.errors import ConfigError

_LARGEST_DENOMINATOR = 1_000_000
_LARGEST_SUM = 1 << 40


class SharedOut:
    """Deals out samples to parts: after N samples part i has floor or ceil of N * share_i, never more or less.

    The shares are relative weights. They become whole numbers once (0.3 and 0.7 become 3 and 7), so the arithmetic is
    exact for ever. What must be given by now comes first; the rest goes to those that must have theirs soonest. That is
    the quota method (M. Balinski, H. P. Young: The Quota Method of Apportionment, 1975) for a whole batch at a time.
    `given` is the whole state.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        if not shares or not all(math.isfinite(share) and share >= 0.0 for share in shares) or not any(shares):
            raise ConfigError(
                f"the shares of a mix are finite numbers of 0 or more that are not all 0; it was given {list(shares)}"
            )
        exact = [Fraction(share / max(shares)).limit_denominator(_LARGEST_DENOMINATOR) for share in shares]
        common = min(_LARGEST_SUM, math.lcm(*(share.denominator for share in exact)))
        self.weights = [round(share * common) for share in exact]
        self.given = [0] * len(self.weights)

    def take(self, samples: int) -> list[int]:
        """How many of the next `samples` samples each part gives."""
        whole = sum(self.weights)
        total = sum(self.given) + samples
        due = [total * weight for weight in self.weights]  # in units of 1 / whole
        new = [max(given, part // whole) for given, part in zip(self.given, due, strict=True)]
        waiting = [i for i, part in enumerate(due) if new[i] * whole < part]
        waiting.sort(key=lambda i: Fraction(new[i] + 1, self.weights[i]))
        for i in waiting[: total - sum(new)]:
            new[i] += 1
        counts = [after - before for after, before in zip(new, self.given, strict=True)]
        self.given = new
        return counts
