"""Several equal MLPs in one: batched matrix products, and one vector that holds every parameter.

On one CPU core, small networks spend their time in the overhead of many small operations. One parameter vector makes
clipping, the optimiser's step and moving averages one operation each.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from robot_stack.core.messages import Array


class EnsembleMlp(nn.Module):
    """E independent MLPs: hidden layers Linear -> LayerNorm -> ReLU, the last one Linear.

    Input (E, B, inputs), or (B, inputs) given to every member; output (E, B, outputs). LayerNorm has no gain or shift
    of its own: the bias before it and, through the ReLU, the weights after it do the same. Hidden weights start
    orthogonal, the last layer's uniform within +-`last_scale` (0: the output starts at exactly zero).
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        last_scale: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.members = members
        self.shapes = layer_shapes(members, inputs, hidden, outputs)
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.flat = nn.Parameter(torch.zeros(sum(self._sizes)))
        with torch.no_grad():
            tensors = self.tensors()
            for index in range(len(hidden)):
                for member in tensors[f"weight.{index}"]:
                    nn.init.orthogonal_(member, gain=math.sqrt(2.0), generator=generator)
            tensors[f"weight.{len(hidden)}"].uniform_(-last_scale, last_scale, generator=generator)

    def tensors(self) -> dict[str, Tensor]:
        """Views of the parameter vector: `weight.<layer>` (E, in, out) and `bias.<layer>` (E, 1, out)."""
        parts = torch.split(self.flat, self._sizes)
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def arrays(self, prefix: str = "") -> dict[str, Array]:
        """Copies of `tensors` as numpy arrays, with `prefix` before their names."""
        return {prefix + name: value.detach().cpu().numpy().copy() for name, value in self.tensors().items()}

    def forward(self, value: Tensor) -> Tensor:
        tensors = self.tensors()
        last = len(tensors) // 2 - 1
        if value.dim() == 2:
            value = value.expand(self.members, -1, -1)
        for index in range(last):
            value = torch.baddbmm(tensors[f"bias.{index}"], value, tensors[f"weight.{index}"])
            value = functional.layer_norm(value, value.shape[-1:]).relu_()
        return torch.baddbmm(tensors[f"bias.{last}"], value, tensors[f"weight.{last}"])


def layer_shapes(members: int, inputs: int, hidden: tuple[int, ...], outputs: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter tensor, in their order in the vector."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (fan_in, fan_out) in enumerate(pairwise((inputs, *hidden, outputs))):
        shapes[f"weight.{index}"] = (members, fan_in, fan_out)
        shapes[f"bias.{index}"] = (members, 1, fan_out)
    return shapes
