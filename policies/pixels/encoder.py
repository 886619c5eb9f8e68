"""The encoder of pictures for reinforcement learning, and the named tensors in which it travels.

For every camera 3x3 convolutions with stride 2, then Linear -> LayerNorm -> tanh (the encoder of DrQ-v2, arXiv
2107.09645, with the strides of SERL's small one, arXiv 2401.16013). The generative policies' encoder
(`policies.common.vision`) is several times as much work, which an update of reinforcement learning cannot pay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.pixels.config import PixelsConfig
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.specs import Feature

PREFIX = "vision."

_KERNEL = 3


class PixelEncoder(nn.Module):
    """Pictures (B, H, W, 3) uint8 of every camera -> (B, cameras * embedding) float32 in [-1, 1], camera by camera.

    `cameras`: image features by name, in order. PolicyError for one that is no picture, or too small. One vector holds
    every parameter, as of `EnsembleMlp`. Convolutions and the linear layer start orthogonal.
    """

    def __init__(self, config: PixelsConfig, cameras: Mapping[str, Feature], generator: torch.Generator) -> None:
        super().__init__()
        self._config, self._cameras = config, tuple(cameras)
        self.shapes = encoder_shapes(config, cameras)
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.flat = nn.Parameter(torch.zeros(sum(self._sizes)))
        self.length = embedding_length(config, cameras)
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                if name.endswith(".gain"):
                    tensor.fill_(1.0)
                elif tensor.dim() > 1:
                    gain = math.sqrt(2.0) if tensor.dim() > 2 else 1.0
                    nn.init.orthogonal_(tensor, gain=gain, generator=generator)

    def tensors(self) -> dict[str, Tensor]:
        """Views of the parameter vector, named as of `encoder_shapes`."""
        parts = torch.split(self.flat, self._sizes)
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def arrays(self) -> dict[str, Array]:
        """Copies of `tensors` as numpy arrays."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.tensors().items()}

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Take the parameters over from `arrays`."""
        with torch.no_grad():
            for name, value in self.tensors().items():
                value.copy_(torch.from_numpy(tensors[name].copy()))

    def forward(self, pictures: Mapping[str, Tensor]) -> Tensor:
        tensors = self.tensors()
        return torch.cat([self._encode(tensors, camera, pictures[camera]) for camera in self._cameras], dim=1)

    def _encode(self, tensors: Mapping[str, Tensor], camera: str, picture: Tensor) -> Tensor:
        value = picture.permute(0, 3, 1, 2).to(torch.float32).div_(255.0).sub_(0.5)  # in memory the channels are last
        if self._config.shrink > 1:
            value = functional.avg_pool2d(value, self._config.shrink)
        names = _Names(camera)
        for index in range(len(self._config.channels)):
            weight = tensors[names.weight(index)].contiguous(memory_format=torch.channels_last)  # a third faster
            bias = tensors[names.bias(index)]
            value = functional.conv2d(value, weight, bias, stride=2, padding=_KERNEL // 2).relu_()
        value = functional.linear(value.flatten(1), tensors[names.linear_weight], tensors[names.linear_bias])
        gain, shift = tensors[names.gain], tensors[names.shift]
        return torch.tanh(functional.layer_norm(value, value.shape[-1:], gain, shift))


class _Names:
    """Of one camera's tensors."""

    def __init__(self, camera: str) -> None:
        self._camera = PREFIX + camera
        self.linear_weight, self.linear_bias = f"{self._camera}.linear.weight", f"{self._camera}.linear.bias"
        self.gain, self.shift = f"{self._camera}.norm.gain", f"{self._camera}.norm.shift"

    def weight(self, layer: int) -> str:
        return f"{self._camera}.conv.{layer}.weight"

    def bias(self, layer: int) -> str:
        return f"{self._camera}.conv.{layer}.bias"


def embedding_length(config: PixelsConfig, cameras: Mapping[str, Feature]) -> int:
    """How many numbers the pictures of all cameras become."""
    return config.embedding * len(cameras)


def encoder_shapes(config: PixelsConfig, cameras: Mapping[str, Feature]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, in their order in the vector; PolicyError as of `PixelEncoder`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for camera, feature in cameras.items():
        height, width = _size(config, camera, feature)
        names, inputs = _Names(camera), 3
        for index, outputs in enumerate(config.channels):
            shapes[names.weight(index)] = (outputs, inputs, _KERNEL, _KERNEL)
            shapes[names.bias(index)] = (outputs,)
            height, width, inputs = -(-height // 2), -(-width // 2), outputs
        shapes[names.linear_weight] = (config.embedding, inputs * height * width)
        shapes[names.linear_bias] = shapes[names.gain] = shapes[names.shift] = (config.embedding,)
    return shapes


def _size(config: PixelsConfig, camera: str, feature: Feature) -> tuple[int, int]:
    """Height and width of what the convolutions read."""
    if feature.dtype != "uint8" or len(feature.shape) != 3 or feature.shape[2] != 3:
        raise PolicyError(
            f"'{camera}' is {feature.dtype} of shape {feature.shape}; the encoder reads pictures, uint8 of shape "
            "(height, width, 3)"
        )
    height, width = feature.shape[0] // config.shrink, feature.shape[1] // config.shrink
    smallest = 2 ** len(config.channels)
    if min(height, width) < smallest:
        raise PolicyError(
            f"'{camera}' has {feature.shape[0]}x{feature.shape[1]} pixels, shrunk to {height}x{width}; allowed for "
            f"{len(config.channels)} convolutions (vision.channels): {smallest} or more a side. Let the camera send "
            "larger pictures, or take fewer convolutions or a smaller vision.shrink"
        )
    return height, width
