"""What the networks of step algorithms read of a batch: standardised vectors and, where asked for, pictures.

Pictures are learned from as in DrQ-v2 (D. Yarats et al., arXiv 2107.09645): both observations are shifted at random
(pad by repeating the border, crop), the encoder's gradient is that of the critics' loss alone, actors read its numbers
without gradient, and the next observation is encoded by the online encoder: there is no moving average of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from policies.common.features import image_features
from policies.pixels.config import PixelsConfig
from policies.pixels.encoder import PixelEncoder
from robot_stack.buffer.batches import Images, TransitionBatch
from robot_stack.buffer.replay import ReplayStep
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, Features, Step
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.base import Batches, Ingredients
from robot_stack.learner.algorithms.settings.base import StepSettings
from robot_stack.learner.algorithms.training import Units
from robot_stack.learner.curation import Curator, Kept


@dataclass(frozen=True, slots=True)
class Vision:
    """Pictures that an algorithm reads: the cameras' features by name, and its encoder's settings."""

    config: PixelsConfig
    cameras: Mapping[str, Feature]

    @classmethod
    def of(cls, settings: StepSettings, ingredients: Ingredients) -> Vision | None:
        """None where the settings ask for no pictures; PolicyError where the observation has none."""
        if not settings.images:
            return None
        cameras = image_features(ingredients.observation)
        if not cameras:
            raise PolicyError(
                f"algorithm.images is {settings.images}, and the observation has no camera; it has "
                f"{', '.join(ingredients.observation)}"
            )
        return cls(settings.vision, cameras)


class Senses:
    """Reads batches; owns the encoder of pictures, where there is one.

    `dim`: how many numbers networks read. All randomness is the generator's, which the algorithm keeps in its state,
    except for the encoder's first weights: those are of `seed`.
    """

    def __init__(self, units: Units, vision: Vision | None, seed: int, generator: torch.Generator) -> None:
        self._units, self._generator = units, generator
        self._shift = 0 if vision is None else vision.config.shift
        self._cameras = () if vision is None else tuple(vision.cameras)
        self._encoder = None
        if vision is not None:
            self._encoder = PixelEncoder(vision.config, vision.cameras, torch.Generator().manual_seed(seed))
        self.dim = units.observation_dim + (0 if self._encoder is None else self._encoder.length)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the critics' loss trains beside the critics."""
        return [] if self._encoder is None else [self._encoder.flat]

    def draw(self, batches: Batches) -> TransitionBatch:
        """A fresh batch with the pictures that are read."""
        return batches.transitions(images=self._cameras)

    def present(self, batch: TransitionBatch) -> Tensor:
        """What was observed, (B, dim) float32, with a gradient to the encoder."""
        return self._read(batch.observation, batch.images)

    @torch.no_grad()
    def following(self, batch: TransitionBatch) -> Tensor:
        """What was observed afterwards, (B, dim) float32, for targets."""
        return self._read(batch.next_observation, batch.next_images)

    def _read(self, vectors: Array, pictures: Mapping[str, Images]) -> Tensor:
        standardised = self._units.observe(vectors)
        if self._encoder is None:
            return standardised
        missing = [name for name in self._cameras if name not in pictures]
        if missing:
            raise PolicyError(f"a batch has no {', '.join(missing)}, which the algorithm reads")
        shifted = {
            name: torch.from_numpy(random_shift(pictures[name], self._shift, self._generator)) for name in self._cameras
        }
        return torch.cat((standardised, self._encoder(shifted)), dim=1)

    def published(self) -> dict[str, Array]:
        """The encoder's tensors for the edge. Copies."""
        return {} if self._encoder is None else self._encoder.arrays()

    def state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name; not copies."""
        return {} if self._encoder is None else {"encoder.flat": self._encoder.flat}


def random_shift(pictures: Images, largest: int, generator: torch.Generator) -> Images:
    """Each picture (B, H, W, 3) moved by up to `largest` pixels along either side; the border is repeated. A copy."""
    if largest == 0:
        return pictures.copy()
    size, height, width = pictures.shape[:3]
    places = torch.randint(2 * largest + 1, (size, 2), generator=generator).tolist()
    padded = np.pad(pictures, ((0, 0), (largest, largest), (largest, largest), (0, 0)), mode="edge")
    shifted = np.empty_like(pictures)
    for out, picture, (top, left) in zip(shifted, padded, places, strict=True):
        out[...] = picture[top : top + height, left : left + width]
    return shifted


class KeepsPictures:
    """Gives steps to another curator with the pictures of these cameras, as recorded; a `Curator`."""

    def __init__(self, curator: Curator, cameras: Mapping[str, Feature]) -> None:
        self._curator, self._cameras = curator, tuple(cameras)

    @property
    def selective(self) -> bool:
        return self._curator.selective

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        ended = replayed.truncated and step.final_observation is not None
        return self._curator.take(
            step,
            dataclasses.replace(
                replayed,
                images=self._pictures(step, step.observation),
                final_images=self._pictures(step, step.final_observation or {}) if ended else {},
            ),
        )

    def _pictures(self, step: Step, features: Features) -> dict[str, Images]:
        missing = [name for name in self._cameras if name not in features]
        if missing:
            raise PolicyError(
                f"step {step.seq} of session {step.session} was recorded without {', '.join(missing)}, which "
                f"algorithm.images asks for; it has {', '.join(sorted(features))}. Begin another run with these cameras"
            )
        return {name: features[name] for name in self._cameras}


def with_pictures(curator: Curator, vision: Vision | None) -> Curator:
    """A curator whose steps bring the pictures that an algorithm reads; itself where it reads none."""
    return curator if vision is None else KeepsPictures(curator, vision.cameras)
