"""The action expert: a narrow transformer over the chunk that looks at the prefix's keys and values layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.vla.attention import attend, rms_norm


class ExpertLayer(nn.Module):
    """One attention to the prefix and to all actions, one GELU feed-forward of 4x width: branches (B, H, width).

    `setting` (1 or B, 1, 3 * width) holds scale and shift of the norm before the block, then its gate, which the caller
    applies: adaptive norms that the time sets (Peebles and Xie, 2023; pi0.5's adaRMS).
    """

    def __init__(self, width: int, attention: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * attention)
        self.out = nn.Linear(attention, width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def attention(self, stream: Tensor, setting: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """`memory` (B, P, 2 * attention): keys and values of the prefix. `mask` (B, 1, 1, P + H)."""
        query, *own = self.qkv(modulate(stream, setting)).chunk(3, dim=-1)
        key, value = (torch.cat(parts, dim=1) for parts in zip(memory.chunk(2, dim=-1), own, strict=True))
        mixed: Tensor = self.out(attend(query, key, value, mask, self.heads))
        return mixed

    def feed(self, stream: Tensor, setting: Tensor) -> Tensor:
        fed: Tensor = self.feed_out(functional.gelu(self.feed_in(modulate(stream, setting))))
        return fed


def modulate(stream: Tensor, setting: Tensor) -> Tensor:
    """The normed stream, scaled and shifted as the time says."""
    scale, shift, _ = setting.chunk(3, dim=-1)
    return rms_norm(stream) * (1.0 + scale) + shift


def gate(setting: Tensor) -> Tensor:
    return setting.chunk(3, dim=-1)[2]
