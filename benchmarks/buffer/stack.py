"""The stack's own replay: frames in memory, raw or as JPEG, or read from sealed episode files on the disk."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.buffer.figures import Clock, Passed
from benchmarks.buffer.scene import ACTION_SIZE, BATCH, CAMERAS, EPISODE, STATE_SIZE, Scene
from robot_stack.buffer.batches import Draw, TransitionBatch
from robot_stack.buffer.frames import ImageBuffers
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.prefetch import Prefetcher
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.buffer.store import StepStore
from robot_stack.core.codec import pack
from robot_stack.core.errors import StorageError
from robot_stack.core.messages import Features, Step

DISCOUNT = 0.99

_APPEND = 50
_ARRAY_SETS = 3
_SEAL_WAIT_S = 300.0


def frame_bytes(scene: Scene, codec: ImageCodec, steps: int) -> int:
    """Memory for the frames of this many steps and for those of their episodes' last observations."""
    one = math.prod(scene.image_shape) if codec is ImageCodec.RAW else scene.jpeg_bytes
    frames = steps + math.ceil(steps / EPISODE) + 1
    return math.ceil(len(CAMERAS) * one * frames)


def to_replay_step(step: Step, log_index: int = -1, *, with_images: bool = True) -> ReplayStep:
    """What a learner gives its replay for a recorded step."""
    final = step.final_observation
    return ReplayStep(
        stream=(step.robot, step.session, step.episode, step.segment),
        index=step.index,
        stratum=Stratum.ONLINE,
        observation=step.observation["observation.state"],
        action_base=step.action_base,
        action=step.action_sent,
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        final_observation=None if final is None else final["observation.state"],
        final_action_base=step.final_action_base,
        source_index=log_index,
        images=_images(step.observation) if with_images else {},
        final_images=_images(final) if with_images and final is not None else {},
    )


def _images(features: Features) -> dict[str, NDArray[np.uint8]]:
    return {camera: features[camera] for camera in CAMERAS}


class StackReplay:
    """A replay with its sampler; batches are 1-step transitions with both cameras' images, as LeRobot's are.

    `store`: where frames that do not fit into `frame_budget_bytes` are read from; a step inserted then is one of the
    store's, with its log index, and brings no images.
    """

    def __init__(
        self,
        scene: Scene,
        capacity: int,
        codec: ImageCodec,
        seed: int,
        *,
        frame_budget_bytes: int,
        store: StepStore | None = None,
    ) -> None:
        self._scene = scene
        self._codec = codec
        self._on_disk = store is not None
        self._capacity = capacity
        self._added = 0
        config = ReplayConfig(
            capacity=capacity,
            observation_size=STATE_SIZE,
            action_size=ACTION_SIZE,
            images=dict.fromkeys(CAMERAS, scene.image_shape),
            frame_budget_bytes=frame_budget_bytes,
        )
        self.replay = Replay(config, image_source=store)
        self.sampler = Sampler([Part(self.replay)], seed)

    def insert(self, count: int) -> Passed:
        steps = [self._next_step(self._added + i) for i in range(count)]
        clock = Clock()
        for step in steps:
            self.replay.add(step)
        passed = clock.read()
        self._added += count
        return passed

    def sample(self, count: int) -> Passed:
        clock = Clock()
        for _ in range(count):
            self.sampler.transitions(self.sampler.draw(BATCH), 1, DISCOUNT, CAMERAS)
        return clock.read()

    def prefetch(self, count: int) -> Passed:
        """Timed once it has written into each of its sets of arrays, which are new."""
        with self.prefetcher() as batches:
            for _ in range(_ARRAY_SETS):
                batches.next()
            clock = Clock()
            for _ in range(count):
                batches.next()
            return clock.read()

    def prefetcher(self) -> Prefetcher[TransitionBatch]:
        return Prefetcher(self.sampler, BATCH, self._gather)

    def _next_step(self, number: int) -> ReplayStep:
        log_index = number % self._capacity if self._on_disk else -1
        return to_replay_step(self._scene.step(0, number, self._codec), log_index, with_images=not self._on_disk)

    def _gather(self, draw: Draw, out: ImageBuffers) -> TransitionBatch:
        return self.sampler.transitions(draw, 1, DISCOUNT, CAMERAS, out=out)


def fill_store(store: StepStore, scene: Scene, codec: ImageCodec, steps: int) -> None:
    """Steps of one robot, whole episodes, all sealed when this returns."""
    for start in range(0, steps, _APPEND):
        store.append([pack(scene.step(0, seq, codec)) for seq in range(start, min(start + _APPEND, steps))])
    until_s = time.monotonic() + _SEAL_WAIT_S
    while store.waiting_stretches:
        if time.monotonic() > until_s:
            raise StorageError(f"{store.waiting_stretches} stretches are not sealed after {_SEAL_WAIT_S:.0f} s")
        time.sleep(0.01)


def refill(directory: Path, scene: Scene, codec: ImageCodec, steps: int) -> tuple[float, float]:
    """What a learner does after a restart: (seconds to open the store, seconds to give all steps to a replay).

    Frames go into memory again, so every step is read.
    """
    clock = Clock()
    with StepStore(directory) as store:
        opened = clock.read().wall_s
        filled = StackReplay(scene, steps, codec, 0, frame_budget_bytes=frame_bytes(scene, codec, steps), store=store)
        for log_index, step in store.iterate(0):
            filled.replay.add(to_replay_step(step, log_index))
        return opened, clock.read().wall_s - opened
