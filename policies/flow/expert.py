"""Action expert of flow-matching policies: a transformer whose norms and gates the time sets (Peebles and Xie, DiT)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.common.observation_tokens import ObservationTokens
from policies.common.sizes import Sizes
from policies.common.time_embedding import sinusoidal
from policies.flow.config import ExpertConfig

KINDS = ("self", "cross", "feed")
_TOKENS = 4  # for each observation: with a single one, what cross-attention gives would not depend on the actions
_FASTEST = 100.0  # radians per unit of time: a flow's time runs from 0 to 1
_SHORTEST = 2.0**-10  # strides below count as this


class FlowExpert(Denoiser):
    """Action tokens attend to each other in both directions and to the observations' tokens.

    The time (and the stride, if `step_conditioned`) sets shift and scale of every norm and a gate on every block; the
    gates start at zero. A block is kept without its gate, so that a kept block still gets the gate of its own call.
    """

    def __init__(self, config: ExpertConfig, sizes: Sizes) -> None:
        super().__init__()
        width = config.embed_dim
        self.block_names = tuple(f"{layer}.{kind}" for layer in range(config.layers) for kind in KINDS)
        self.action_in = nn.Linear(sizes.action_dim, width)
        self.action_position = nn.Parameter(torch.empty(sizes.horizon, width))
        self.observation_in = ObservationTokens(sizes, config.vision, width, config.detail)
        self.observation_position = nn.Parameter(torch.empty(sizes.history, width))
        self.observation_mlp = _mlp(width, _TOKENS * width)
        self.time_mlp = _mlp(width, width)
        self.stride_mlp = _mlp(width, width) if config.step_conditioned else None
        self.layers = nn.ModuleList(ExpertLayer(width, config.heads) for _ in range(config.layers))
        self.last_shift_scale = nn.Linear(width, 2 * width)
        self.action_out = nn.Linear(width, sizes.action_dim)
        self._width = width
        for position in (self.action_position, self.observation_position):
            nn.init.normal_(position, std=0.02)
        zeroed: list[nn.Module] = [self.last_shift_scale, *(layer.modulation for layer in self._layers())]
        if self.stride_mlp is not None:  # with the weights of a flow without strides, it begins as that flow
            zeroed.append(self.stride_mlp[-1])
        for part in zeroed:
            for parameter in part.parameters():
                nn.init.zeros_(parameter)

    def context(self, condition: Tensors) -> Tensors:
        """For every layer the keys and values (B, 4 * To, 2 * width) of the observations' tokens."""
        seen = self.observation_in(condition) + self.observation_position
        tokens = self.observation_mlp(seen).unflatten(-1, (_TOKENS, self._width)).flatten(1, 2)
        return tuple(layer.cross_kv(tokens) for layer in self._layers())

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        """For every layer shift, scale and gate of its three blocks (T, 1, 9 * width), then the last norm's shift and
        scale (T, 1, 2 * width)."""
        code = self.time_mlp(sinusoidal(_FASTEST * times, self._width))
        if self.stride_mlp is not None:
            halvings = strides.clamp_min(_SHORTEST).log() / -math.log(2.0)
            code = code + self.stride_mlp(sinusoidal(halvings, self._width))
        code = functional.silu(code)[:, None]
        return (*(layer.modulation(code) for layer in self._layers()), self.last_shift_scale(code))

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        stream = self.action_in(actions) + self.action_position
        for index, layer in enumerate(self._layers()):
            first = len(KINDS) * index
            to_self, to_cross, to_feed = clock[index].chunk(3, dim=-1)
            stream = stream + _gate(to_self) * blocks.run(first, partial(layer.self_attention, stream, to_self))
            stream = stream + _gate(to_cross) * blocks.run(
                first + 1, partial(layer.cross_attention, stream, to_cross, context[index])
            )
            stream = stream + _gate(to_feed) * blocks.run(first + 2, partial(layer.feed_forward, stream, to_feed))
        shift, scale = clock[-1].chunk(2, dim=-1)
        output: Tensor = self.action_out(_norm(stream) * (1.0 + scale) + shift)
        return output

    def _layers(self) -> list[ExpertLayer]:
        return list(self.layers)  # type: ignore[arg-type]


class ExpertLayer(nn.Module):
    """Self-attention, cross-attention, GELU feed-forward of 4x width: each gives a branch (B, H, width) without gate.

    Their argument `setting` (1 or B, 1, 3 * width) holds the shift and scale of the norm before the block, then its
    gate.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 9 * width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)

    def self_attention(self, stream: Tensor, setting: Tensor) -> Tensor:
        query, key, value = self.self_qkv(_modulate(stream, setting)).chunk(3, dim=-1)
        mixed: Tensor = self.self_out(self._attend(query, key, value))
        return mixed

    def cross_attention(self, stream: Tensor, setting: Tensor, seen: Tensor) -> Tensor:
        """`seen` (B, tokens, 2 * width): keys and values."""
        key, value = seen.chunk(2, dim=-1)
        mixed: Tensor = self.cross_out(self._attend(self.cross_q(_modulate(stream, setting)), key, value))
        return mixed

    def feed_forward(self, stream: Tensor, setting: Tensor) -> Tensor:
        fed: Tensor = self.feed_out(functional.gelu(self.feed_in(_modulate(stream, setting))))
        return fed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
        return mixed.transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, heads, T, width / heads)."""
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


def _modulate(stream: Tensor, setting: Tensor) -> Tensor:
    shift, scale, _ = setting.chunk(3, dim=-1)
    return _norm(stream) * (1.0 + scale) + shift


def _gate(setting: Tensor) -> Tensor:
    return setting.chunk(3, dim=-1)[2]


def _norm(stream: Tensor) -> Tensor:
    """Layer norm without gain and shift of its own: those come from the time."""
    return functional.layer_norm(stream, stream.shape[-1:])


def _mlp(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, outputs))
