"""One-dimensional U-Net that denoises a chunk of actions, given observations (Diffusion Policy, RSS 2023)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.common.observation_tokens import ObservationTokens
from policies.common.sizes import Sizes
from policies.common.time_embedding import sinusoidal
from policies.diffusion.config import UNetConfig
from robot_stack.core.errors import ConfigError

PER_LEVEL = 2
"""Residual blocks on each level, on the way down and on the way up."""

_FASTEST = 10.0  # radians per unit of time: tells a flow's times in [0, 1] apart, and the steps of a chain too


class DiffusionUNet(Denoiser):
    """Convolutions along the chunk; each level of the U has half the steps of the one above it.

    The time and the observations shift and scale the channels inside every residual block (FiLM, Perez et al., 2018).
    The residual branch of each is one block, named by its level, 0 at the top: `down0.0`, `down0.1`, `down1.0`, ...,
    `mid.0`, `mid.1`, ..., `up0.0`, `up0.1`; the linear short cut beside a branch is always computed. `deep_blocks`:
    all but those of level 0, which DeepCache (Ma et al., 2024) keeps from call to call while level 0 is computed.
    """

    def __init__(self, config: UNetConfig, sizes: Sizes) -> None:
        super().__init__()
        channels, levels = config.channels, len(config.channels)
        if sizes.horizon % 2 ** (levels - 1):
            raise ConfigError(
                f"net.channels has {levels} levels and the horizon is {sizes.horizon}; allowed: horizons that are "
                f"multiples of {2 ** (levels - 1)}, or fewer levels"
            )
        names, shapes = _layout(channels, sizes.action_dim)
        self.block_names = tuple(names)
        self.deep_blocks = tuple(name for name in names if not name.startswith(("down0.", "up0.")))
        self.observation_in = ObservationTokens(sizes, config.vision, config.time_dim, config.detail)
        self.time_mlp = nn.Sequential(
            nn.Linear(config.time_dim, 4 * config.time_dim), nn.Mish(), nn.Linear(4 * config.time_dim, config.time_dim)
        )
        seen = sizes.history * config.time_dim
        self.residuals = nn.ModuleList(ResidualBranch(config, inputs, outputs, seen) for inputs, outputs in shapes)
        self.down = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in channels[:-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(below, here, 4, stride=2, padding=1) for here, below in pairwise(channels)
        )
        self.last = ConvolutionBlock(config, channels[0], channels[0])
        self.action_out = nn.Conv1d(channels[0], sizes.action_dim, 1)
        self._levels, self._time_dim = levels, config.time_dim

    def context(self, condition: Tensors) -> Tensors:
        """For every block the observations' share of scale and shift (B, 2 * channels, 1)."""
        code = functional.mish(self.observation_in(condition).flatten(1))
        return tuple(residual.film_seen(code)[..., None] for residual in self._residuals())

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        """For every block the time's share of scale and shift (T, 2 * channels, 1)."""
        code = functional.mish(self.time_mlp(sinusoidal(_FASTEST * times, self._time_dim)))
        return tuple(residual.film_time(code)[..., None] for residual in self._residuals())

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        films = list(zip(clock, context, strict=True))
        stream, skips, number = actions.transpose(1, 2), [], 0
        for level in range(self._levels):
            stream, number = self._level(stream, films, number, blocks)
            if level < self._levels - 1:
                skips.append(stream)
                stream = self.down[level](stream)
        stream, number = self._level(stream, films, number, blocks)
        for level in range(self._levels - 2, -1, -1):
            stream = torch.cat((self.up[level](stream), skips[level]), dim=1)
            stream, number = self._level(stream, films, number, blocks)
        output: Tensor = self.action_out(self.last(stream)).transpose(1, 2)
        return output

    def _level(
        self, stream: Tensor, films: list[tuple[Tensor, Tensor]], number: int, blocks: Blocks
    ) -> tuple[Tensor, int]:
        """The stream after the blocks that begin with `number`, and the number of the next one."""
        residuals = self._residuals()
        for block in range(number, number + PER_LEVEL):
            branch = blocks.run(block, partial(residuals[block], stream, *films[block]))
            stream = residuals[block].short(stream) + branch
        return stream, number + PER_LEVEL

    def _residuals(self) -> list[ResidualBranch]:
        return list(self.residuals)  # type: ignore[arg-type]


class ResidualBranch(nn.Module):
    """Two convolutions (B, inputs, steps) -> (B, outputs, steps) with FiLM between; `short` goes beside them."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int, seen: int) -> None:
        super().__init__()
        self.first = ConvolutionBlock(config, inputs, outputs)
        self.second = ConvolutionBlock(config, outputs, outputs)
        self.film_time = nn.Linear(config.time_dim, 2 * outputs)
        self.film_seen = nn.Linear(seen, 2 * outputs, bias=False)
        self.short = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, stream: Tensor, time: Tensor, seen: Tensor) -> Tensor:
        """`time` and `seen` (B or 1, 2 * outputs, 1): together what scales the channels, beside 1, and shifts them."""
        scale, shift = (time + seen).chunk(2, dim=1)
        branch: Tensor = self.second(self.first(stream) * (1.0 + scale) + shift)
        return branch


class ConvolutionBlock(nn.Module):
    """Convolution along the chunk, GroupNorm, Mish; (B, inputs, steps) -> (B, outputs, steps)."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, config.kernel, padding=config.kernel // 2)
        self.norm = nn.GroupNorm(config.groups, outputs)

    def forward(self, stream: Tensor) -> Tensor:
        return functional.mish(self.norm(self.convolution(stream)))


def _layout(channels: tuple[int, ...], action_dim: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of the residual blocks, in the order of their numbers, and their inputs and outputs."""
    levels = len(channels)
    parts = [(f"down{level}", before, here) for level, (before, here) in enumerate(pairwise((action_dim, *channels)))]
    parts.append(("mid", channels[-1], channels[-1]))
    parts += [(f"up{level}", 2 * channels[level], channels[level]) for level in range(levels - 2, -1, -1)]
    names = [f"{part}.{index}" for part, *_ in parts for index in range(PER_LEVEL)]
    return names, [
        (outputs if index else inputs, outputs) for _, inputs, outputs in parts for index in range(PER_LEVEL)
    ]
