"""What an actor reads of an observation on the edge: vectors in numpy, pictures through PyTorch once for each step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from policies.common.features import flatten, image_features, images, vector_features, vector_length
from policies.common.normalization import standardizer_of
from policies.pixels.config import PixelsConfig
from policies.pixels.encoder import PixelEncoder, embedding_length, encoder_shapes
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.specs import Feature, PolicySpec


class ObservationLayout:
    """Which numbers an actor of this spec reads: `vector_dim` standardised ones, then `embedding_dim` of pictures.

    `vision`: of the encoder; None where vectors alone are read, and PolicyError if the spec names a picture then.
    """

    def __init__(self, spec: PolicySpec, vision: PixelsConfig | None) -> None:
        self.features = spec.observation
        self.vision = vision
        self.cameras = {} if vision is None else image_features(spec.observation)
        if vision is not None and not self.cameras:
            raise PolicyError(f"the weights of '{spec.name}' read pictures, and its observation names no camera")
        self.vector_dim = vector_length(spec.observation if vision is None else vector_features(spec.observation))
        self.embedding_dim = 0 if vision is None else embedding_length(vision, self.cameras)

    def encoder_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of the encoder's tensors; none where it reads no pictures."""
        return {} if self.vision is None else encoder_shapes(self.vision, self.cameras)


class ObservationReader:
    """From an observation to what the actor's first layer reads. `tensors`: already checked."""

    def __init__(self, tensors: Mapping[str, Array], layout: ObservationLayout) -> None:
        self._features = layout.features
        self._standardizer = standardizer_of(tensors)
        self._pixels = None
        if layout.vision is not None:
            self._pixels = PixelReader(tensors, layout.vision, layout.cameras)

    def standardize(self, observation: FloatArray) -> FloatArray:
        """Of a flattened observation (D,)."""
        return self._standardizer.normalize(observation)

    def read(self, observation: Observation) -> FloatArray:
        """(vector_dim + embedding_dim,) float32; PolicyError for what is missing, of another size or not finite."""
        vector = self.standardize(flatten(observation.features, self._features))
        if self._pixels is None:
            return vector
        seen: FloatArray = np.concatenate((vector, self._pixels.read(observation)))
        return seen


class PixelReader:
    """What the learner's encoder makes of an observation's pictures. `tensors`: those of `PixelEncoder.arrays`, already
    checked, with others beside them."""

    def __init__(self, tensors: Mapping[str, Array], config: PixelsConfig, cameras: Mapping[str, Feature]) -> None:
        self._cameras = cameras
        self._encoder = PixelEncoder(config, cameras, torch.Generator()).requires_grad_(False)
        self._encoder.load(tensors)
        self._last: tuple[Observation, FloatArray] | None = None

    @torch.inference_mode()
    def read(self, observation: Observation) -> FloatArray:
        """Embeddings (E,) float32, computed once for an observation that is asked for twice in a row."""
        if self._last is not None and self._last[0] is observation:
            return self._last[1]
        found = images(observation.features, self._cameras)
        pictures = {
            name: torch.from_numpy(picture if picture.flags.writeable else picture.copy())[None]
            for name, picture in zip(self._cameras, found, strict=True)
        }
        embedded: FloatArray = self._encoder(pictures)[0].numpy()
        self._last = observation, embedded
        return embedded
