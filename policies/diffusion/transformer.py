"""Transformer that denoises a chunk of actions, given observations (Diffusion Policy, RSS 2023)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.common.observation_tokens import ObservationTokens
from policies.common.sizes import Sizes
from policies.common.time_embedding import sinusoidal
from policies.diffusion.config import TransformerConfig

KINDS = ("self", "cross", "feed")


class DiffusionTransformer(Denoiser):
    """Action tokens attend causally to each other and to the condition tokens [time, observations].

    Every layer adds three blocks to the stream: self-attention, cross-attention, feed-forward.
    """

    self_mask: Tensor

    def __init__(self, config: TransformerConfig, sizes: Sizes) -> None:
        super().__init__()
        width, tokens = config.embed_dim, sizes.history + 1
        self.block_names = tuple(f"{layer}.{kind}" for layer in range(config.layers) for kind in KINDS)
        self.action_in = nn.Linear(sizes.action_dim, width)
        self.observation_in = ObservationTokens(sizes, config.vision, width, config.detail)
        self.action_position = nn.Parameter(torch.empty(sizes.horizon, width))
        self.condition_position = nn.Parameter(torch.empty(tokens, width))
        self.condition_mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.layers = nn.ModuleList(DecoderLayer(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.action_out = nn.Linear(width, sizes.action_dim)
        self._width = width
        steps = torch.arange(sizes.horizon)
        self.register_buffer("self_mask", steps[:, None] >= steps[None, :], persistent=False)
        self.apply(_initialize)
        nn.init.normal_(self.action_position, std=0.02)
        nn.init.normal_(self.condition_position, std=0.02)

    def context(self, condition: Tensors) -> Tensors:
        """For every layer the keys and values (B, To, 2 * width) of the observations' tokens."""
        memory = self.condition_mlp(self.observation_in(condition) + self.condition_position[1:])
        return tuple(layer.cross_kv(memory) for layer in self._decoders())

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        """For every layer the key and value (T, 1, 2 * width) of the time's token."""
        memory = self.condition_mlp(sinusoidal(times, self._width) + self.condition_position[0])[:, None]
        return tuple(layer.cross_kv(memory) for layer in self._decoders())

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        stream = self.action_in(actions) + self.action_position
        for index, layer in enumerate(self._decoders()):
            first = len(KINDS) * index
            time, seen = clock[index].expand(len(actions), -1, -1), context[index]
            stream = stream + blocks.run(first, partial(layer.self_attention, stream, self.self_mask))
            stream = stream + blocks.run(first + 1, partial(layer.cross_attention, stream, time, seen))
            stream = stream + blocks.run(first + 2, partial(layer.feed_forward, stream))
        output: Tensor = self.action_out(self.norm(stream))
        return output

    def _decoders(self) -> list[DecoderLayer]:
        return list(self.layers)  # type: ignore[arg-type]


class DecoderLayer(nn.Module):
    """Pre-LN transformer decoder layer: masked self-attention, cross-attention, GELU feed-forward of 4x width.

    Each of the three gives what is added to the stream (B, H, width).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm = nn.LayerNorm(width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def self_attention(self, stream: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.self_qkv(self.self_norm(stream)).chunk(3, dim=-1)
        mixed: Tensor = self.dropout(self.self_out(self._attend(query, key, value, mask)))
        return mixed

    def cross_attention(self, stream: Tensor, time: Tensor, seen: Tensor) -> Tensor:
        """`time` (B, 1, 2 * width) and `seen` (B, To, 2 * width) are keys and values."""
        key, value = torch.cat((time, seen), dim=1).chunk(2, dim=-1)
        mixed: Tensor = self.dropout(
            self.cross_out(self._attend(self.cross_q(self.cross_norm(stream)), key, value, None))
        )
        return mixed

    def feed_forward(self, stream: Tensor) -> Tensor:
        fed: Tensor = self.dropout(self.feed_out(functional.gelu(self.feed_in(self.feed_norm(stream)))))
        return fed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        mixed = functional.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), attn_mask=mask
        )
        return mixed.transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, heads, T, width / heads)."""
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
