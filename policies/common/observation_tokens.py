"""Observations as tokens: their numbers, and what a vision encoder sees in their images, through one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.common.denoiser import Tensors
from policies.common.sizes import Sizes
from policies.common.vision import ImageEncoder
from policies.common.vision_config import VisionConfig


class ObservationTokens(nn.Module):
    """(vector (B, To, D), images (B, To, h, w, 3) uint8 ...) -> one token (B, To, width) for each observation."""

    def __init__(self, sizes: Sizes, vision: VisionConfig, width: int) -> None:
        super().__init__()
        self.cameras = nn.ModuleList(ImageEncoder(vision, height, wide) for height, wide in sizes.images)
        self.mix = nn.Linear(sizes.vector_dim + sum(2 * vision.keypoints for _ in sizes.images), width)

    def forward(self, condition: Tensors) -> Tensor:
        vector, images = condition[0], condition[1 : 1 + len(self.cameras)]
        parts = [vector]
        for encoder, image in zip(self.cameras, images, strict=True):
            seen = encoder(image.flatten(0, 1), frames=image.shape[1])
            parts.append(seen.view(*vector.shape[:2], -1))
        token: Tensor = self.mix(torch.cat(parts, dim=-1))
        return token
