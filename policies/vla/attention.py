"""What the two streams of a vision-language-action network have in common: attention in heads, and the norm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LEAST = 1e-6


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention in heads: query (B, Q, width), key and value (B, K, width) -> (B, Q, width).

    `mask` bool, to be broadcast to (B, heads, Q, K): True where a query may look.
    """
    mixed = functional.scaled_dot_product_attention(
        _split(query, heads), _split(key, heads), _split(value, heads), attn_mask=mask
    )
    return mixed.transpose(1, 2).flatten(2)


def rms_norm(stream: Tensor) -> Tensor:
    """The stream with a mean square of one in every token; no gain of its own (Zhang and Sennrich, 2019)."""
    return stream * torch.rsqrt(stream.square().mean(dim=-1, keepdim=True) + _LEAST)


def _split(tokens: Tensor, heads: int) -> Tensor:
    """(B, T, width) -> (B, heads, T, width / heads)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)
