"""A pretrained vision-language model is asked whether the task is done: the reward of RoboFuME (arXiv 2310.15145).

The answer is yes if p(yes) > p(no) for the next token after the question. Any model that transformers loads for
pictures and text, from a local folder or the hub: safetensors only, and never code that comes with the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from policies.vla.vlm import Look
from robot_stack.core.errors import MissingDependencyError, PolicyError
from robot_stack.core.messages import Features
from robot_stack.core.protocols import Judgement, Outcome
from robot_stack.core.specs import IMAGES
from robot_stack.learner.rewards.outcomes import decoded, verdict
from robot_stack.learner.rewards.settings import VlmSettings

_PICTURES_APART = ("smolvlm", "idefics3")  # take pictures as (1, count, 3, h, w), the others as (count, 3, h, w)
_READ_AS_A_WHOLE = ("paligemma",)  # trained with a prefix in which every token sees every other
_FRAMES = {  # what these models saw around a picture that was not cut into tiles
    "smolvlm": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "idefics3": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
}
_YES = ("yes", "Yes", " yes", " Yes")
_NO = ("no", "No", " no", " No")
_MIDDLE = (0.5, 0.5, 0.5)


class VlmReward:
    """See the module's text; a `RewardModel`. One picture of each camera, scaled to the model's size, not cut into
    tiles. PolicyError says why a model cannot be had or asked."""

    name = "vlm"

    def __init__(self, settings: VlmSettings) -> None:
        if not settings.model or not settings.question:
            raise PolicyError("reward.model and reward.question are needed: the model's folder, and what it is asked")
        self._settings = settings
        self._model, self._tokenizer, self._look = _load(settings.model)
        self._yes, self._no = self._answers(_YES), self._answers(_NO)
        if not self._yes or not self._no or set(self._yes) & set(self._no):
            raise PolicyError(f"{settings.model} has no tokens of their own for yes and no; choose another model")
        self._prompts: dict[int, list[int]] = {}
        digest = hashlib.sha256(msgspec.json.encode((settings.question, settings.cameras, settings.threshold)))
        for name, value in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.version = digest.hexdigest()

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        given = [0.0 if outcome.after is None else self.probability(outcome.after) for outcome in outcomes]
        return [verdict(one > self._settings.threshold, one) for one in given]

    @torch.no_grad()
    def probability(self, features: Features) -> float:
        """p(yes) / (p(yes) + p(no)), each summed over the ways to write it."""
        pixels = self._pixels(features)
        ids = torch.tensor([self._prompt(pixels)])
        kind = self._model.config.model_type
        whole = {"token_type_ids": torch.zeros_like(ids)} if kind in _READ_AS_A_WHOLE else {}
        output = self._model(
            input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), use_cache=False, **whole
        )
        log_p = output.logits[0, -1].to(torch.float32).log_softmax(dim=0)
        yes, no = (log_p[tokens].logsumexp(dim=0) for tokens in (self._yes, self._no))
        return float(torch.sigmoid(yes - no))

    def _pixels(self, features: Features) -> Tensor:
        names = [IMAGES + camera for camera in self._settings.cameras]
        names = names or sorted(name for name in features if name.startswith(IMAGES))
        missing = [name for name in names if name not in features]
        if missing or not names:
            raise PolicyError(
                f"the model is asked about pictures; missing: {', '.join(missing) or 'all'}, the observation has "
                f"{', '.join(sorted(features))}"
            )
        images = decoded({name: features[name] for name in names}).values()
        pictures = [self._look.pixels(torch.from_numpy(np.array(image))[None, None]) for image in images]
        pixels = torch.cat(pictures, dim=1).to(self._model.dtype)
        return pixels if self._model.config.model_type in _PICTURES_APART else pixels[0]

    def _prompt(self, pixels: Tensor) -> list[int]:
        """The tokens of the pictures and the question, as the model was trained to be asked."""
        count = pixels.shape[-4]
        if count not in self._prompts:
            first = pixels[:, :1] if pixels.dim() == 5 else pixels[:1]
            features = self._model.base_model.get_image_features(pixel_values=first).pooler_output
            self._prompts[count] = self._asked(count, [self._picture_token] * int(features[0].shape[0]))
        return self._prompts[count]

    @property
    def _picture_token(self) -> int:
        return int(self._model.config.image_token_id)

    def _asked(self, count: int, picture: list[int]) -> list[int]:
        tokenizer, question = self._tokenizer, self._settings.question
        before, after = (self._frame(text) for text in _FRAMES.get(self._model.config.model_type, ("", "")))
        framed = [*before, *picture, *after]
        if getattr(tokenizer, "chat_template", None) is None:
            begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
            return [*framed * count, *begin, *self._tokens(f"{question}\n")]
        content = [*({"type": "image"} for _ in range(count)), {"type": "text", "text": question}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        mark = tokenizer.convert_ids_to_tokens(self._picture_token)
        parts = text.split(mark) if mark else [text]
        if len(parts) != count + 1:
            raise PolicyError(
                f"the chat template of {self._settings.model} has {len(parts) - 1} places for {count} pictures; show "
                "fewer with reward.cameras, or choose another model"
            )
        ids = self._tokens(parts[0])
        for part in parts[1:]:
            ids += [*framed, *self._tokens(part)]
        return ids

    def _frame(self, text: str) -> list[int]:
        """Nothing if the model does not know these tokens."""
        ids = self._tokens(text) if text else []
        return [] if self._tokenizer.unk_token_id in ids else ids

    def _tokens(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _answers(self, words: Sequence[str]) -> list[int]:
        """The words that are one known token each."""
        found = [self._tokens(word) for word in words]
        return sorted({ids[0] for ids in found if len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id})


def _load(name: str) -> tuple[Any, Any, Look]:
    try:
        model = _transformers("AutoModelForImageTextToText").from_pretrained(
            name, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
        tokenizer = _transformers("AutoTokenizer").from_pretrained(name, trust_remote_code=False)
        settings, _ = _transformers("ImageProcessingMixin").get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        raise PolicyError(f"reward.model {name} cannot be loaded: {error}") from error
    size = model.config.vision_config.image_size
    side = int(size if isinstance(size, int) else max(size))
    mean, std = (tuple(float(value) for value in settings.get(key, _MIDDLE)) for key in ("image_mean", "image_std"))
    return model.eval().requires_grad_(False), tokenizer, Look(side, mean, std)


def _transformers(name: str) -> Any:
    try:
        return getattr(import_module("transformers"), name)
    except ImportError as error:
        raise MissingDependencyError("transformers", "vla", "rewards from a vision-language model") from error
