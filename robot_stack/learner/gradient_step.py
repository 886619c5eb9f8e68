"""What every gradient step on a generative network has in common: its random numbers and its moving average."""

from __future__ import annotations

import numpy as np
import torch

from policies.common.denoiser import Denoiser


def seeded_step(seed: int, step: int) -> torch.Generator:
    """The generator of one gradient step; dropout and random crops draw from torch's own, seeded along with it."""
    first, second = (int(value) for value in np.random.SeedSequence([seed, step]).generate_state(2, np.uint32))
    torch.default_generator.manual_seed(first)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(first)
    return torch.Generator().manual_seed(second)


def average_decay(step: int, power: float, largest: float) -> float:
    """What the moving average keeps of itself at step 1, 2, ...: a power-law warm-up (Diffusion Policy)."""
    return min(largest, 1.0 - (1.0 + step) ** -power)


@torch.no_grad()
def follow(average: Denoiser, net: Denoiser, decay: float) -> None:
    """The average goes a share of 1 - decay of the way to the network; what the network does not train stays."""
    known = dict(average.named_parameters())
    trained = {name: value.data for name, value in net.named_parameters() if value.requires_grad}
    torch._foreach_lerp_([known[name].data for name in trained], list(trained.values()), 1.0 - decay)
