"""An ensemble of critics with LayerNorm and its moving average, the target; values as numbers or as histograms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.common.ensemble_mlp import EnsembleMlp
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.training import average

_LAST_SCALE = 0.01
_BINS_BEYOND = 4


class Critics(nn.Module):
    """E critics and their target. Targets are the minimum over `subset` randomly chosen members of the target.

    REDQ (arXiv 2101.05982); LayerNorm keeps what they say about actions that nobody took bounded (RLPD, arXiv
    2302.02948). Inputs (B, I) float32. All randomness comes from `generator`.
    """

    def __init__(
        self,
        members: int,
        subset: int,
        inputs: int,
        hidden: tuple[int, ...],
        generator: torch.Generator,
        histogram: Histogram | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= subset <= members:
            raise ConfigError(f"the minimum is over {subset} of {members} critics; allowed: 1 to {members}")
        outputs = 1 if histogram is None else len(histogram.centres)
        self.histogram = histogram
        self._generator = generator
        self.online = EnsembleMlp(members, inputs, hidden, outputs, last_scale=_LAST_SCALE, generator=generator)
        unused = torch.Generator()
        self.target = EnsembleMlp(members, inputs, hidden, outputs, last_scale=0.0, generator=unused)
        self.target.requires_grad_(False)
        self.target.load_state_dict(self.online.state_dict())
        self._chosen = EnsembleMlp(subset, inputs, hidden, outputs, last_scale=0.0, generator=unused)
        self._chosen.requires_grad_(False)

    def values(self, inputs: Tensor) -> Tensor:
        """What every critic says, (E, B)."""
        return self._read(self.online(inputs))

    @torch.no_grad()
    def lowest(self, inputs: Tensor) -> Tensor:
        """The minimum (B,) over randomly chosen members of the target. Only they are computed."""
        chosen = torch.randperm(self.target.members, generator=self._generator)[: self._chosen.members]
        for source, out in zip(self.target.tensors().values(), self._chosen.tensors().values(), strict=True):
            torch.index_select(source, 0, chosen, out=out)
        return self._read(self._chosen(inputs)).amin(dim=0)

    def loss(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (scalar) towards the target values (B,), and what every critic said, (E, B) without gradient.

        The squared error, or the cross-entropy of the histograms: the mean over the batch, the sum over the critics.
        """
        outputs = self.online(inputs)
        if self.histogram is None:
            estimate = outputs[..., 0]
            return (estimate - target).square().mean(dim=1).sum(), estimate.detach()
        return self.histogram.loss(outputs, target), self.histogram.mean(outputs.detach())

    def follow(self, share: float) -> None:
        """Move the target's parameters by `share` of the way to the online ones."""
        average(self.target.flat, self.online.flat, share)

    def _read(self, outputs: Tensor) -> Tensor:
        return outputs[..., 0] if self.histogram is None else self.histogram.mean(outputs)


class Histogram:
    """Numbers as distributions over bins: HL-Gauss (J. Farebrother et al., arXiv 2403.03950).

    `bins` equal bins span [lower, upper] and four more lie beyond either end, so that the mean of what a number is
    projected to is that number, to 1e-5 of a bin's width, in the whole range. Numbers outside are moved to its ends.
    """

    def __init__(self, lower: float, upper: float, bins: int) -> None:
        if not lower < upper or bins < 2:
            raise ConfigError(f"a histogram of {bins} bins over [{lower}, {upper}]; allowed: 2 or more, a rising range")
        width = (upper - lower) / bins
        steps = torch.arange(-_BINS_BEYOND, bins + _BINS_BEYOND + 1, dtype=torch.float64)
        edges = lower + width * steps
        self.centres = (edges[:-1] + width / 2).float()
        self._edges = edges
        self._spread = 0.75 * width * 2.0**0.5  # the published width of the Gaussian, in the units of erf
        self._lower, self._upper = lower, upper

    def project(self, values: Tensor) -> Tensor:
        """Probabilities (B, N) of the numbers (B,)."""
        inside = values.double().clamp(self._lower, self._upper)
        below = torch.erf((self._edges - inside[:, None]) / self._spread)
        mass = below[:, 1:] - below[:, :-1]
        return (mass / mass.sum(dim=1, keepdim=True)).float()

    def mean(self, logits: Tensor) -> Tensor:
        """Expected values (...) of the distributions (..., N)."""
        return torch.softmax(logits, dim=-1) @ self.centres

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the distributions (E, B, N) with the projected numbers (B,)."""
        return -(self.project(target) * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean(dim=1).sum()
