"""The steps that every buffer is given: two cameras, a state and actions of a made-up robot.

The images are a shaded background with moving bright and dark boxes and sensor noise, so that JPEG finds about as much
to do as in a camera's picture of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.buffer.images import ImageCodec, encode_image
from robot_stack.core.messages import Source, Step, Verdict

CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE_SIZE = 18
ACTION_SIZE = 7
EPISODE = 100
BATCH = 256
POOL = 64

_BOXES = 12
_NOISE = 3.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A pool of observations, used in turn. `raw` holds (POOL, H, W, 3) of each camera, `encoded` the same as JPEG."""

    raw: dict[str, NDArray[np.uint8]]
    encoded: dict[str, tuple[NDArray[np.uint8], ...]]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, height, width, _ = self.raw[CAMERAS[0]].shape
        return height, width, 3

    @property
    def jpeg_bytes(self) -> float:
        """Mean size of one encoded image."""
        return float(np.mean([image.size for images in self.encoded.values() for image in images]))

    def images(self, index: int, codec: ImageCodec) -> dict[str, NDArray[np.uint8]]:
        """Fresh copies: a buffer that keeps references must pay for what it keeps, as it does in use."""
        pool = self.raw if codec is ImageCodec.RAW else self.encoded
        return {camera: np.array(pool[camera][index % POOL]) for camera in CAMERAS}

    def step(self, robot: int, seq: int, codec: ImageCodec) -> Step:
        """Step `seq` of a robot whose episodes of EPISODE steps follow each other; each ends by a time-out."""
        index, episode = seq % EPISODE, seq // EPISODE
        ends = index == EPISODE - 1
        action = self.actions[seq % POOL]
        return Step(
            run="benchmark",
            robot=f"robot_{robot}",
            task="reach",
            session=f"session-{robot}",
            seq=seq,
            episode=episode,
            episode_seed=episode,
            segment=0,
            index=index,
            stamp_ns=seq * 20_000_000,
            observation=self._observation(seq, codec),
            action_base=action,
            action_asked=action,
            action_sent=action,
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=Source.POLICY,
            weights_version=1,
            reward=0.0,
            success=False,
            terminated=False,
            truncated=ends,
            final_observation=self._observation(seq + 1, codec) if ends else None,
            final_action_base=action if ends else None,
        )

    def _observation(self, index: int, codec: ImageCodec) -> dict[str, NDArray[np.uint8] | NDArray[np.float32]]:
        return {"observation.state": self.states[index % POOL], **self.images(index, codec)}


def make_scene(height: int, width: int, seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    raw = {camera: _pictures(height, width, rng) for camera in CAMERAS}
    return Scene(
        raw=raw,
        encoded={name: tuple(encode_image(image, ImageCodec.JPEG) for image in images) for name, images in raw.items()},
        states=rng.standard_normal((POOL, STATE_SIZE)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, (POOL, ACTION_SIZE)).astype(np.float32),
    )


def _pictures(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:height, 0:width]
    shade = 60 + 60 * rows / height + 40 * columns / width
    corners = rng.uniform(0, 0.8, (_BOXES, 2)) * (height, width)
    sizes = rng.uniform(0.05, 0.3, (_BOXES, 2)) * (height, width)
    speeds = rng.uniform(-0.005, 0.005, (_BOXES, 2)) * (height, width)
    colours = rng.uniform(0, 255, (_BOXES, 3))
    pictures = np.empty((POOL, height, width, 3), dtype=np.uint8)
    for i in range(POOL):
        picture = np.repeat(shade[:, :, None], 3, axis=2)
        for corner, size, speed, colour in zip(corners, sizes, speeds, colours, strict=True):
            top, left = np.maximum(corner + i * speed, 0).astype(int)
            bottom, right = (corner + i * speed + size).astype(int)
            picture[top:bottom, left:right] = colour
        picture += rng.normal(0.0, _NOISE, picture.shape)
        pictures[i] = picture.clip(0, 255)
    return pictures
