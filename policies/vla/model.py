"""A vision-language-action network: a prefix that is computed once, and an action expert that denoises beside it.

pi0 (Black et al., 2024), pi0.5 (2025), SmolVLA (Shukor et al., 2025).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.common.sizes import Sizes
from policies.common.time_embedding import sinusoidal
from policies.vla.config import VlaConfig
from policies.vla.expert import ExpertLayer, gate, modulate
from policies.vla.prefix import Prefix, SmallPrefix

KINDS = ("attention", "feed")
_FASTEST = 100.0  # radians per unit of time: a flow's time runs from 0 to 1


class VisionLanguageAction(Denoiser):
    """Attention in blocks: prefix tokens see prefix tokens only, action tokens see the prefix and each other.

    So `context` holds the prefix's keys and values of every layer (B, P, 2 * prefix_dim), and which of them the expert
    may look at (B, 1, 1, P + H). The time enters by adaptive norms, never by the tokens, so nothing of it is in there.
    A block is kept without its gate: a kept block still gets the gate of its own call.
    """

    def __init__(self, config: VlaConfig, sizes: Sizes) -> None:
        super().__init__()
        width = config.expert_dim
        self.block_names = tuple(f"{layer}.{kind}" for layer in range(config.layers) for kind in KINDS)
        self.prefix = _make_prefix(config, sizes)
        self.action_in = nn.Linear(sizes.action_dim, width)
        self.action_position = nn.Parameter(torch.empty(sizes.horizon, width))
        self.time_mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width), nn.SiLU())
        self.layers = nn.ModuleList(ExpertLayer(width, config.prefix_dim, config.heads) for _ in range(config.layers))
        self.last_modulation = nn.Linear(width, 3 * width)
        self.action_out = nn.Linear(width, sizes.action_dim)
        self._width, self._horizon = width, sizes.horizon
        nn.init.normal_(self.action_position, std=0.5)
        nn.init.zeros_(self.last_modulation.weight)
        nn.init.zeros_(self.last_modulation.bias)

    def context(self, condition: Tensors) -> Tensors:
        memory, present = self.prefix(condition)
        actions = torch.ones(len(present), self._horizon, dtype=torch.bool, device=present.device)
        return (*memory, torch.cat((present, actions), dim=1)[:, None, None, :])

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        """For every layer scale, shift and gate of its two blocks (T, 1, 6 * width), then the last norm's."""
        code = self.time_mlp(sinusoidal(_FASTEST * times, self._width))[:, None]
        return (*(layer.modulation(code) for layer in self._layers()), self.last_modulation(code))

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        stream, mask = self.action_in(actions) + self.action_position, context[-1]
        for index, layer in enumerate(self._layers()):
            to_attention, to_feed = clock[index].chunk(2, dim=-1)
            attention = partial(layer.attention, stream, to_attention, context[index], mask)
            stream = stream + (1.0 + gate(to_attention)) * blocks.run(len(KINDS) * index, attention)
            feed = partial(layer.feed, stream, to_feed)
            stream = stream + (1.0 + gate(to_feed)) * blocks.run(len(KINDS) * index + 1, feed)
        output: Tensor = self.action_out(modulate(stream, clock[-1]))
        return output

    def _layers(self) -> list[ExpertLayer]:
        return list(self.layers)  # type: ignore[arg-type]


def _make_prefix(config: VlaConfig, sizes: Sizes) -> Prefix:
    if config.model:
        from policies.vla.vlm import FrozenPrefix

        return FrozenPrefix(config, sizes)
    return SmallPrefix(config, sizes)
