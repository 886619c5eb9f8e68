"""A pretrained vision-language model, frozen, as the prefix of a vision-language-action policy (SmolVLA's pattern).

Any model that transformers loads for images and text (SmolVLM, Idefics 3, PaliGemma, ...), from a local folder or the
hub: safetensors only, and never code that comes with the weights. Its weights are no part of the policy: the policy
holds their digest, and refuses other weights under the same name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from policies.common.denoiser import Tensors
from policies.common.sizes import Sizes
from policies.vla.attention import rms_norm
from policies.vla.config import VlaConfig
from policies.vla.prefix import Prefix
from robot_stack.core.errors import MissingDependencyError, PolicyError

_PICTURES_APART = ("smolvlm", "idefics3")  # take pictures as (B, count, 3, h, w), the others as (B * count, 3, h, w)
_READ_AS_A_WHOLE = ("paligemma",)  # trained with a prefix in which every token sees every other
_MIDDLE = [0.5, 0.5, 0.5]


class FrozenPrefix(Prefix):
    """For expert layer i a learned projection of what the model's layer i makes of the pictures and words, and of the
    robot's state, which the model does not see.

    Token ids of the condition: those of `model_tokens`.
    """

    digest: Tensor

    def __init__(self, config: VlaConfig, sizes: Sizes) -> None:
        super().__init__()
        if not sizes.images:
            raise PolicyError(f"net.model is {config.model}, which looks at pictures; the policy reads no camera")
        self._frozen = load_frozen(config.model, config.layers)
        hidden = self._frozen.hidden_dim
        self.state = nn.Linear(sizes.vector_dim, hidden)
        self.state_position = nn.Parameter(torch.zeros(sizes.history, hidden))
        self.memory = nn.ModuleList(nn.Linear(hidden, 2 * config.prefix_dim) for _ in range(config.layers))
        self.register_buffer("digest", self._frozen.digest.clone())

    def forward(self, condition: Tensors) -> tuple[Tensors, Tensor]:
        vector, images, ids = condition[0], condition[1:-1], condition[-1]
        hidden, present = self._frozen.read(images, ids)
        state = self.state(vector) + self.state_position
        present = torch.cat((present, torch.ones_like(state[..., 0], dtype=torch.bool)), dim=1)
        tokens = (torch.cat((one.to(state.dtype), state), dim=1) for one in hidden)
        return tuple(linear(rms_norm(one)) for linear, one in zip(self.memory, tokens, strict=True)), present

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        known = state_dict.get(f"{prefix}digest")
        if known is not None and not torch.equal(known.cpu(), self._frozen.digest):
            raise PolicyError(
                f"the policy was trained with other weights than those that {self._frozen.name} has now; give "
                "net.model the folder of the model that it was trained with"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)


@dataclass(frozen=True, slots=True)
class Look:
    """How a model wants its pictures: side in pixels, mean and deviation of each colour."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, images: Tensor) -> Tensor:
        """(B, To, height, width, 3) uint8 -> (B, To, 3, side, side) float32."""
        scaled = images.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        sized = functional.interpolate(scaled, (self.side, self.side), mode="bilinear", antialias=True)
        mean, std = (sized.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((sized - mean) / std).view(*images.shape[:2], *sized.shape[1:])


class FrozenModel:
    """The first layers of a model. It belongs to all networks that read it: it is no parameter of theirs, and a copy of
    a network has the same one."""

    def __init__(self, name: str, model: Any, look: Look, layers: int) -> None:
        decoder = model.get_decoder()
        if len(decoder.layers) < layers:
            raise PolicyError(f"net.layers is {layers}; allowed with {name}: 1 to {len(decoder.layers)}")
        decoder.layers = decoder.layers[:layers]
        self.name = name
        self.hidden_dim = int(decoder.config.hidden_size)
        self.digest = _digest(model)
        self._model, self._look, self._layers = model, look, layers
        self._tokens = 0

    def __deepcopy__(self, memo: dict[int, object]) -> FrozenModel:
        return self

    @torch.no_grad()
    def read(self, images: Tensors, ids: Tensor) -> tuple[Tensors, Tensor]:
        """For each layer what it makes of the pictures (B, To, height, width, 3) uint8 of all cameras and the words
        after them: (B, P, hidden_dim). Which tokens are there: (B, P) bool."""
        self._model.to(ids.device)
        config = self._model.config
        pixels = torch.cat([self._look.pixels(camera) for camera in images], dim=1).to(self._model.dtype)
        batch, count = pixels.shape[:2]
        shaped = pixels if config.model_type in _PICTURES_APART else pixels.flatten(0, 1)
        self._tokens = self._tokens or self._tokens_of(shaped[:1, :1] if shaped.dim() == 5 else shaped[:1])
        pictures = ids.new_full((batch, count * self._tokens), config.image_token_id)
        words = torch.cat((pictures, (ids - 1).clamp_min(0)), dim=1)
        present = torch.cat((torch.ones_like(pictures), ids), dim=1) != 0
        whole = {"token_type_ids": torch.zeros_like(words)} if config.model_type in _READ_AS_A_WHOLE else {}
        output = self._model.base_model(
            input_ids=words,
            pixel_values=shaped,
            attention_mask=present.to(torch.int64),
            output_hidden_states=True,
            use_cache=False,
            **whole,
        )
        return tuple(output.hidden_states[1:]), present

    def _tokens_of(self, picture: Tensor) -> int:
        features = self._model.base_model.get_image_features(pixel_values=picture).pooler_output
        return int(features[0].shape[0])


@lru_cache(maxsize=2)
def load_frozen(name: str, layers: int) -> FrozenModel:
    """The first layers of a model, from a folder or the hub; PolicyError says why it cannot be had."""
    model_class = _transformers("AutoModelForImageTextToText")
    try:
        model = model_class.from_pretrained(name, dtype="auto", use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise PolicyError(f"net.model {name} cannot be loaded: {error}") from error
    return FrozenModel(name, model.eval().requires_grad_(False), _look_of(name, model.config), layers)


def model_tokens(name: str, instruction: str, length: int) -> NDArray[np.int64]:
    """The model's own token ids plus one (length,), filled up with 0; PolicyError for none or too many."""
    found = _tokenizer(name)(instruction, add_special_tokens=False)["input_ids"]
    if not 1 <= len(found) <= length:
        raise PolicyError(f"the instruction '{instruction}' has {len(found)} tokens; allowed: 1 to {length}")
    ids = np.zeros(length, np.int64)
    ids[: len(found)] = np.asarray(found) + 1
    return ids


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> Any:
    try:
        return _transformers("AutoTokenizer").from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise PolicyError(f"the tokenizer of net.model {name} cannot be loaded: {error}") from error


def _look_of(name: str, config: Any) -> Look:
    """From the model's own settings. The processor itself is not built: it resizes picture by picture and wants more
    packages."""
    try:
        settings, _ = _transformers("ImageProcessingMixin").get_image_processor_dict(name)
    except OSError as error:
        raise PolicyError(f"net.model {name} does not say how it wants its pictures: {error}") from error
    size = config.vision_config.image_size
    side = int(size if isinstance(size, int) else max(size))
    mean, std = (tuple(float(value) for value in settings.get(key, _MIDDLE)) for key in ("image_mean", "image_std"))
    return Look(side, mean, std)


def _digest(model: Any) -> Tensor:
    """SHA-256 of all weights, (32,) uint8."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _transformers(name: str) -> Any:
    try:
        return getattr(import_module("transformers"), name)
    except ImportError as error:
        raise MissingDependencyError("transformers", "vla", "pretrained vision-language models") from error
