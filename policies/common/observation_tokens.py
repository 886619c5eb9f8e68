"""Observations as tokens: their numbers, and what a vision encoder sees in their images, through one linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from policies.common.denoiser import Tensors
from policies.common.sizes import Sizes
from policies.common.vision import ImageEncoder
from policies.common.vision_config import VisionConfig


class ObservationTokens(nn.Module):
    """(vector (B, To, D), images (B, To, h, w, 3) uint8 ...) -> one token (B, To, width) for each observation.

    `detail`: every number x in [-1, 1] is also given as sin and cos of 2^k pi x for k < `detail`, so that small
    differences count (Mildenhall et al., NeRF, 2020). Where millimetres decide on a range of half a metre, one linear
    layer over x alone learns them slowly.
    """

    def __init__(self, sizes: Sizes, vision: VisionConfig, width: int, detail: int = 0) -> None:
        super().__init__()
        self._octaves = [math.pi * 2.0**octave for octave in range(detail)]
        self.cameras = nn.ModuleList(ImageEncoder(vision, height, wide) for height, wide in sizes.images)
        numbers = sizes.vector_dim * (1 + 2 * detail)
        self.mix = nn.Linear(numbers + sum(2 * vision.keypoints for _ in sizes.images), width)

    def forward(self, condition: Tensors) -> Tensor:
        vector, images = condition[0], condition[1 : 1 + len(self.cameras)]
        parts = [vector]
        for octave in self._octaves:
            parts += [torch.sin(octave * vector), torch.cos(octave * vector)]
        for encoder, image in zip(self.cameras, images, strict=True):
            seen = encoder(image.flatten(0, 1), frames=image.shape[1])
            parts.append(seen.view(*vector.shape[:2], -1))
        token: Tensor = self.mix(torch.cat(parts, dim=-1))
        return token
