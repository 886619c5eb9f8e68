"""The baseline: a ring of preallocated arrays with the next observation one row further, and nothing else.

No durability, no n-step returns, no strata; an episode's last row is never drawn, for its next row is another episode.
"""

from __future__ import annotations

import numpy as np

from benchmarks.buffer.figures import Clock, Passed
from benchmarks.buffer.scene import ACTION_SIZE, BATCH, CAMERAS, EPISODE, STATE_SIZE, Scene
from robot_stack.buffer.images import ImageCodec


class PlainRing:
    def __init__(self, scene: Scene, capacity: int, rng: np.random.Generator) -> None:
        self._scene = scene
        self._rng = rng
        self._capacity = capacity
        self._added = 0
        self._images = {camera: np.zeros((capacity, *scene.image_shape), np.uint8) for camera in CAMERAS}
        self._states = np.zeros((capacity, STATE_SIZE), np.float32)
        self._actions = np.zeros((capacity, ACTION_SIZE), np.float32)
        self._rewards = np.zeros(capacity, np.float32)
        self._ends = np.zeros(capacity, np.bool_)
        self._batch = {
            (camera, following): np.empty((BATCH, *scene.image_shape), np.uint8)
            for camera in CAMERAS
            for following in (False, True)
        }

    def insert(self, count: int) -> Passed:
        block = [self._scene.images(self._added + i, ImageCodec.RAW) for i in range(count)]
        clock = Clock()
        for images in block:
            row = self._added % self._capacity
            for camera, image in images.items():
                self._images[camera][row] = image
            self._states[row] = self._scene.states[0]
            self._actions[row] = self._scene.actions[0]
            self._rewards[row] = 0.0
            self._ends[row] = self._added % EPISODE == EPISODE - 1
            self._added += 1
        return clock.read()

    def sample(self, count: int) -> Passed:
        clock = Clock()
        for _ in range(count):
            self._draw()
        return clock.read()

    def prefetch(self, count: int) -> Passed:
        """It has no thread of its own: the same as `sample`."""
        return self.sample(count)

    def _draw(self) -> None:
        rows = self._rng.integers(0, self._capacity, 2 * BATCH)
        rows = rows[~self._ends[rows]][:BATCH]
        following = (rows + 1) % self._capacity
        for camera, images in self._images.items():
            # `clip` lets numpy write into `out` without a buffer between; all rows are in range.
            np.take(images, rows, axis=0, out=self._batch[camera, False], mode="clip")
            np.take(images, following, axis=0, out=self._batch[camera, True], mode="clip")
        for vectors in (self._states, self._actions, self._rewards):
            vectors.take(rows, axis=0)
        self._states.take(following, axis=0)
