"""From the samples of every device to one Observation: a reference time, and an age for every field.

Alignment policy: the robot state's capture time is the reference time. Of each camera the picture that was taken
nearest to it is used, whatever the camera's rate. Every field carries its own age at the moment of use, with the
latencies that stamps do not know of. A robot state older than `max_age_s`, or a camera that has no fresh picture, is
refused, never used silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from msgspec.structs import replace

from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import RobotError, SpecMismatchError
from robot_stack.core.messages import Array, Observation, RobotState
from robot_stack.core.protocols import CameraSpec
from robot_stack.core.specs import IMAGES, Feature, PolicySpec, RobotSpec
from robot_stack.edge.camera_feed import CameraFeed
from robot_stack.edge.history import History

_NO_CAMERAS: Mapping[str, CameraFeed] = MappingProxyType({})


def spec_with_cameras(spec: RobotSpec, cameras: Iterable[CameraSpec]) -> RobotSpec:
    """The robot's spec plus `observation.images.<camera>` of every camera process: what policies and data are checked
    against. SpecMismatchError if the robot offers that image itself, in another shape."""
    observation = dict(spec.observation)
    for camera in cameras:
        key = IMAGES + camera.name
        feature = Feature(dtype="uint8", shape=(camera.height, camera.width, 3))
        if observation.setdefault(key, feature) != feature:
            raise SpecMismatchError(
                f"{key} has the shape {observation[key].shape} at {spec.name} and {feature.shape} at its camera "
                "process; give both the same size"
            )
    return replace(spec, observation=observation)


class Aligner:
    """Builds observations of one robot; ids count up over the life of the edge.

    Args:
        spec: of the robot; with camera processes, the one of `spec_with_cameras`.
        max_age_s: of the robot's state. Every feed knows its own limit.
        cameras: open feeds by camera name. Their images come from the feeds alone, never from the robot's state.
        now_ns: host monotonic time at which the pictures are judged.
        reads: the policy that the observations are for: they carry as many earlier steps as it reads.
        state_latency_s: from the robot's measurement to the stamp of its state, where the driver does not know it.
            Cameras have theirs taken off their stamps by their drivers (`latency_s`).
        instruction: what to do, in words, where the robot's side does not say it.
    """

    def __init__(
        self,
        spec: RobotSpec,
        max_age_s: float,
        cameras: Mapping[str, CameraFeed] = _NO_CAMERAS,
        now_ns: Callable[[], int] = time.monotonic_ns,
        *,
        reads: PolicySpec | None = None,
        state_latency_s: float = 0.0,
        instruction: str = "",
    ) -> None:
        self._robot = spec.name
        self._spec = spec.observation
        self._feeds = {IMAGES + name: feed for name, feed in cameras.items()}
        unknown = [key for key in self._feeds if key not in spec.observation]
        if unknown:
            raise SpecMismatchError(
                f"the observation of {spec.name} has no {', '.join(unknown)}; it has: {', '.join(spec.observation)}. "
                "Add the cameras to its spec (spec_with_cameras)"
            )
        self._keys = tuple(key for key in spec.observation if key not in self._feeds)
        self._max_age_s = max_age_s
        self._now_ns = now_ns
        self._history = History.of(reads)
        self._latency_ns = s_to_ns(state_latency_s)
        self._instruction = instruction
        self._next_id = 0

    def observe(self, state: RobotState, age_ns: int, episode_seed: int, index: int) -> Observation:
        """The observation of step `index`; RobotError if the state or a picture is stale, or a feature is missing.

        `age_ns`: of the state's stamp. Steps of an episode come in order; step 0 begins a new one.
        """
        age_ns += self._latency_ns
        if age_ns > self._max_age_s * 1e9:
            raise RobotError(
                f"the newest state of {self._robot} is {age_ns / 1e6:.0f} ms old (allowed: {self._max_age_s * 1e3:.0f} "
                "ms); the policy pauses. Check the robot server and the network"
            )
        missing = [key for key in self._keys if key not in state.features]
        if missing:
            raise RobotError(
                f"{self._robot} sent no {', '.join(missing)}" + (f": {state.fault}" if state.fault else "")
            )
        values = {key: (state.features[key], age_ns) for key in self._keys}
        now_ns = self._now_ns()
        values.update((key, self._picture(key, feed, age_ns, now_ns)) for key, feed in self._feeds.items())
        self._next_id += 1
        features = {key: values[key][0] for key in self._spec}
        return Observation(
            id=self._next_id,
            stamp_ns=state.stamp_ns - self._latency_ns,
            features=features,
            age_ns={key: values[key][1] for key in self._spec},
            episode_seed=episode_seed,
            index=index,
            past=self._history.add(index, features),
            instruction=state.instruction or self._instruction,
        )

    def _picture(self, key: str, feed: CameraFeed, state_age_ns: int, now_ns: int) -> tuple[Array, int]:
        image, age_ns = feed.nearest(now_ns - state_age_ns, now_ns)
        wanted = self._spec[key].shape
        if image.shape != wanted:
            raise RobotError(
                f"camera '{feed.name}' sends pictures of shape {image.shape}, the observation has {wanted}; "
                "set the camera's width and height to that"
            )
        return image, age_ns
