"""Transformer that denoises a chunk of actions, given one low-dimensional observation (Diffusion Policy, RSS 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.diffusion.config import DiffusionConfig

_CONDITION_TOKENS = 2  # the diffusion time, then the observation


class DiffusionNet(nn.Module):
    """Action tokens attend causally to each other and to the condition tokens [time, observation].

    Inputs in normalised units: noisy actions (B, H, A), diffusion time (B,) int64, observation (B, D).
    Output (B, H, A): the noise or the clean actions, as the configuration says.
    """

    self_mask: Tensor
    memory_mask: Tensor
    time_frequencies: Tensor

    def __init__(self, config: DiffusionConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.action_in = nn.Linear(action_dim, width)
        self.observation_in = nn.Linear(observation_dim, width)
        self.action_position = nn.Parameter(torch.empty(config.horizon, width))
        self.condition_position = nn.Parameter(torch.empty(_CONDITION_TOKENS, width))
        self.condition_mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.layers = nn.ModuleList(DecoderLayer(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.action_out = nn.Linear(width, action_dim)
        half = width // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half - 1, 1))
        self.register_buffer("time_frequencies", frequencies, persistent=False)
        steps = torch.arange(config.horizon)
        tokens = torch.arange(_CONDITION_TOKENS)
        self.register_buffer("self_mask", steps[:, None] >= steps[None, :], persistent=False)
        # Action t sees the time token and observations up to its own step; with one observation that is all of them.
        self.register_buffer("memory_mask", steps[:, None] >= tokens[None, :] - 1, persistent=False)
        self.apply(_initialize)
        nn.init.normal_(self.action_position, std=0.02)
        nn.init.normal_(self.condition_position, std=0.02)

    def forward(self, actions: Tensor, time: Tensor, observation: Tensor) -> Tensor:
        angles = time[:, None].to(self.time_frequencies.dtype) * self.time_frequencies
        time_token = torch.cat((angles.sin(), angles.cos()), dim=-1)
        condition = torch.stack((time_token, self.observation_in(observation)), dim=1)
        memory = self.condition_mlp(condition + self.condition_position)
        hidden = self.action_in(actions) + self.action_position
        for layer in self.layers:
            hidden = layer(hidden, memory, self.self_mask, self.memory_mask)
        output: Tensor = self.action_out(self.norm(hidden))
        return output


class DecoderLayer(nn.Module):
    """Pre-LN transformer decoder layer: masked self-attention, cross-attention, GELU feed-forward of 4x width."""

    def __init__(self, width: int, heads: int) -> None:
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

    def forward(self, hidden: Tensor, memory: Tensor, self_mask: Tensor, memory_mask: Tensor) -> Tensor:
        query, key, value = self.self_qkv(self.self_norm(hidden)).chunk(3, dim=-1)
        hidden = hidden + self.self_out(self._attend(query, key, value, self_mask))
        key, value = self.cross_kv(memory).chunk(2, dim=-1)
        query = self.cross_q(self.cross_norm(hidden))
        hidden = hidden + self.cross_out(self._attend(query, key, value, memory_mask))
        fed: Tensor = self.feed_out(functional.gelu(self.feed_in(self.feed_norm(hidden))))
        return hidden + fed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
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
