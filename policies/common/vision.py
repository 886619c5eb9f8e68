"""Image encoder of the policies: a ResNet with GroupNorm, then the spatial softmax (Chi et al., RSS 2023).

No torchvision, and no BatchNorm: its running statistics and an average of the weights do not go together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.common.vision_config import VisionConfig
from robot_stack.core.errors import ConfigError

_GROUP = 8  # channels in a group


class ImageEncoder(nn.Module):
    """RGB images (N, height, width, 3) uint8 -> (N, 2 * keypoints) float32, coordinates in [-1, 1].

    While training every image is cropped at a random place of torch's global generator, otherwise in the middle.
    ConfigError if the images are so small that nothing of a place is left in the last maps.
    """

    def __init__(self, config: VisionConfig, height: int, width: int) -> None:
        super().__init__()
        self._size = height, width
        self._crop = max(1, round(config.crop * height)), max(1, round(config.crop * width))
        shrinking = 2 ** len(config.channels)  # by the stem and every stage but the first
        if min(self._crop) <= shrinking:
            raise ConfigError(
                f"images of {height}x{width} pixels, cropped to {self._crop[0]}x{self._crop[1]}, are too small for the "
                f"{len(config.channels)} stages of vision.channels; allowed: crops above {shrinking} pixels a side, or "
                "fewer stages"
            )
        first = config.channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2), nn.GroupNorm(first // _GROUP, first), nn.ReLU()
        )
        inputs = (first, *config.channels[:-1])
        self.stages = nn.Sequential(
            *(
                ResidualStage(a, b, 1 if index == 0 else 2)
                for index, (a, b) in enumerate(zip(inputs, config.channels, strict=True))
            )
        )
        self.to_points = nn.Conv2d(config.channels[-1], config.keypoints, 1)

    def forward(self, images: Tensor, frames: int = 1) -> Tensor:
        """`frames`: so many images that follow each other are cropped at the same place, so that their motion stays."""
        cropped = self._random_crop(images, frames) if self.training else self._central_crop(images)
        pixels = cropped.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        return spatial_softmax(self.to_points(self.stages(self.stem(pixels))))

    def _central_crop(self, images: Tensor) -> Tensor:
        top, left = ((whole - part) // 2 for whole, part in zip(self._size, self._crop, strict=True))
        return images[:, top : top + self._crop[0], left : left + self._crop[1]]

    def _random_crop(self, images: Tensor, frames: int) -> Tensor:
        count, device = len(images), images.device
        rows, columns = (
            torch.randint(whole - part + 1, (count // frames, 1), device=device).repeat_interleave(frames, dim=0)
            + torch.arange(part, device=device)
            for whole, part in zip(self._size, self._crop, strict=True)
        )
        return images[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


class ResidualStage(nn.Module):
    """Two 3x3 convolutions with GroupNorm, added to the input.

    The short way takes every `stride`-th pixel before its 1x1 convolution, which is the same as a convolution with that
    stride: the gradient of such a convolution crashes the process in torch 2.13 (oneDNN, channels last, 8 channels).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.first_norm = nn.GroupNorm(outputs // _GROUP, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.second_norm = nn.GroupNorm(outputs // _GROUP, outputs)
        self.stride = stride
        self.short = nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1)

    def forward(self, value: Tensor) -> Tensor:
        changed = functional.relu(self.first_norm(self.first(value)))
        changed = self.second_norm(self.second(changed))
        return functional.relu(self.short(value[:, :, :: self.stride, :: self.stride]) + changed)


def spatial_softmax(maps: Tensor) -> Tensor:
    """Expected image coordinates of each feature map (N, K, h, w) under its softmax: (N, 2K), x then y of each point.

    Levine et al., 2016. Coordinates run from -1 (left, top) to 1.
    """
    height, width = maps.shape[2:]
    weights = maps.flatten(2).softmax(dim=-1).view(*maps.shape)
    x = (weights.sum(dim=2) * _coordinates(width, maps)).sum(dim=-1)
    y = (weights.sum(dim=3) * _coordinates(height, maps)).sum(dim=-1)
    return torch.stack((x, y), dim=-1).flatten(1)


def _coordinates(count: int, like: Tensor) -> Tensor:
    """From -1 to 1. Not `linspace`: exported to ONNX it is of double precision, whatever its dtype here."""
    return torch.arange(count, dtype=like.dtype, device=like.device) * (2.0 / max(count - 1, 1)) - 1.0
