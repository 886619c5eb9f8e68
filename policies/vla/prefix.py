"""The small vision-language model of ours: images, words and the robot's state as tokens, trained from scratch."""

from __future__ import annotations

import abc
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.common.denoiser import Tensors
from policies.common.sizes import Sizes
from policies.common.time_embedding import sinusoidal
from policies.common.vision import spatial_softmax
from policies.vla.attention import attend, rms_norm
from policies.vla.config import VlaConfig

_FINE_CHANNELS = (24, 32)  # of the maps in which the instruction looks
_FINE = len(_FINE_CHANNELS)
_POINTS = 8


class Prefix(nn.Module, abc.ABC):
    """Everything that a vision-language-action policy reads, as memory for its action expert.

    No action has any influence here: so it is computed once for a chunk and kept for all calls of a solver.
    """

    __call__: Callable[..., tuple[Tensors, Tensor]]

    @abc.abstractmethod
    def forward(self, condition: Tensors) -> tuple[Tensors, Tensor]:
        """For every layer of the expert keys and values (B, P, 2 * prefix_dim); which tokens are there (B, P) bool."""


class SmallPrefix(Prefix):
    """Tokens [images | words] see each other, the state's see those and each other (pi0's two prefix blocks).

    Every layer gives the keys and values that its own tokens attend to.
    """

    mask: Tensor

    def __init__(self, config: VlaConfig, sizes: Sizes) -> None:
        super().__init__()
        width = config.prefix_dim
        self.cameras = nn.ModuleList(ImageTokens(config.patch, width, sizes.history, size) for size in sizes.images)
        self.words = nn.Embedding(max(sizes.words, 1), width)
        self.word_position = nn.Parameter(torch.empty(config.max_words, width))
        self.state = nn.Linear(sizes.vector_dim, width)
        self.state_position = nn.Parameter(torch.empty(sizes.history, width))
        self.layers = nn.ModuleList(PrefixLayer(width, config.heads) for _ in range(config.layers - 1))
        self.last = nn.Linear(width, 2 * width)
        nn.init.normal_(self.words.weight)
        for tensor in (self.word_position, self.state_position):
            nn.init.normal_(tensor, std=0.5)
        seen = sum(camera.tokens for camera in self._eyes()) + config.max_words
        block = torch.arange(seen + sizes.history) >= seen
        self.register_buffer("mask", block[:, None] >= block[None, :], persistent=False)

    def forward(self, condition: Tensors) -> tuple[Tensors, Tensor]:
        stream, present = self.tokens(condition)
        mask = self.mask & present[:, None, None, :]
        memory = []
        for layer in self._layers():
            stream, seen = layer(stream, mask)
            memory.append(seen)
        memory.append(self.last(rms_norm(stream)))
        return tuple(memory), present

    def tokens(self, condition: Tensors) -> tuple[Tensor, Tensor]:
        """(B, P, prefix_dim), and which are there (B, P)."""
        vector, images, ids = condition[0], condition[1:-1], condition[-1]
        words = self.words(ids)
        known = (ids != 0)[..., None].to(words.dtype)
        told = (words * known).sum(dim=1) / known.sum(dim=1).clamp_min(1.0).sqrt()
        seen = [eye(image, told) for eye, image in zip(self._eyes(), images, strict=True)]
        parts = [patches for patches, _ in seen]
        parts.append(words + self.word_position)
        parts.append(sum((pointed for _, pointed in seen), self.state(vector) + self.state_position))
        counts = [part.shape[1] for part in parts]
        present = torch.ones(len(vector), sum(counts), dtype=torch.bool, device=vector.device)
        there = (present[:, : sum(counts[:-2])], ids != 0, present[:, : counts[-1]])
        return torch.cat(parts, dim=1), torch.cat(there, dim=1)

    def _eyes(self) -> list[ImageTokens]:
        return list(self.cameras)  # type: ignore[arg-type]

    def _layers(self) -> list[PrefixLayer]:
        return list(self.layers)  # type: ignore[arg-type]


class ImageTokens(nn.Module):
    """Pictures (B, To, height, width, 3) uint8 -> tokens of their patches, and where the instruction points.

    Convolutions of stride 2 instead of one linear layer over a patch (Xiao et al., 2021). The instruction looks in
    their fine maps for what it names, and where that is goes into the token of the state: a spatial softmax (Levine et
    al., 2016) whose maps are asked for by words. What words have to do with colours is learned so within a few hundred
    steps, in which attention between patches and words alone had not learned it.
    """

    def __init__(self, patch: int, width: int, history: int, size: tuple[int, int]) -> None:
        super().__init__()
        halvings = patch.bit_length() - 1
        channels = [3, *_FINE_CHANNELS, *[width] * halvings][: halvings + 1]
        stages = [_stage(*pair, first=index == 0) for index, pair in enumerate(pairwise(channels))]
        self.fine, self.coarse = (nn.Sequential(*part) for part in (stages[:_FINE], stages[_FINE:]))
        self.patch = nn.Conv2d(channels[-1], width, 1)
        self.question = nn.Linear(width, _POINTS * channels[min(_FINE, halvings)])
        self.answer = nn.Linear(2 * _POINTS, width)
        rows, columns = (-(-side // patch) for side in size)
        self.tokens = history * rows * columns
        self.place = nn.Parameter(_places(rows, columns, width))
        self.frame = nn.Parameter(torch.zeros(history, 1, width))

    def forward(self, images: Tensor, instruction: Tensor) -> tuple[Tensor, Tensor]:
        """`instruction` (B, width): all of it in one vector. Patches (B, P, width), pointed (B, To, width)."""
        batch, frames = images.shape[:2]
        fine = self.fine(images.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0)
        patches = self.patch(self.coarse(fine)).flatten(2).transpose(1, 2) + self.place
        told = instruction[:, None].expand(-1, frames, -1).flatten(0, 1)
        asked = self.question(told).view(batch * frames, _POINTS, -1)
        found = torch.bmm(asked, fine.flatten(2)).view(batch * frames, _POINTS, *fine.shape[2:])
        tokens = (patches.view(batch, frames, *patches.shape[1:]) + self.frame).flatten(1, 2)
        return tokens, self.answer(spatial_softmax(found)).view(batch, frames, -1)


def _stage(inputs: int, outputs: int, *, first: bool) -> nn.Sequential:
    kernel = 5 if first else 3
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2), nn.SiLU())


class PrefixLayer(nn.Module):
    """Pre-norm transformer layer; also gives the keys and values (B, P, 2 * width) that its tokens attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)

    def forward(self, stream: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        normed = rms_norm(stream)
        seen = self.key_value(normed)
        key, value = seen.chunk(2, dim=-1)
        stream = stream + self.out(attend(self.query(normed), key, value, mask, self.heads))
        return stream + self.feed_out(functional.gelu(self.feed_in(rms_norm(stream)))), seen


def _places(rows: int, columns: int, width: int) -> Tensor:
    """(rows * columns, width): where a patch is, half of the numbers for its row, half for its column."""
    down, right = (sinusoidal(torch.arange(count), width // 2, longest=100.0) for count in (rows, columns))
    return torch.cat((down.repeat_interleave(columns, dim=0), right.repeat(rows, 1)), dim=-1)
