"""The cameras of a configuration: their settings, their processes, and the edge's feeds.

    cameras.wrist.driver=realsense cameras.wrist.serial=1234 cameras.wrist.address=tcp://127.0.0.1:7740

Every camera is a process of its own (`robot-stack camera --name NAME`); its pictures are `observation.images.NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec

from hardware.cameras.config import CameraConfig, CameraServerConfig, SimulatedCameraConfig
from hardware.cameras.drivers import make_camera
from robot_stack.apps.build import has_simulated_vendor
from robot_stack.apps.camera import CAMERA_FRAME, run_camera
from robot_stack.apps.connections import robot_client, scene_client
from robot_stack.apps.keys import ROBOT_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.messages import Array, CameraFrame, GetState, RobotState
from robot_stack.core.protocols import CameraSpec
from robot_stack.core.scene_messages import GetScene, SceneState
from robot_stack.core.specs import IMAGES, RobotSpec
from robot_stack.edge.alignment import spec_with_cameras
from robot_stack.edge.camera_feed import CameraFeed
from robot_stack.edge.freshness import FreshnessJudge
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.stream import Subscriber

_SERVER_KEYS = set(CameraServerConfig.__struct_fields__)
RENDER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """One camera: its driver's settings and its process's."""

    driver: CameraConfig
    server: CameraServerConfig

    @property
    def spec(self) -> CameraSpec:
        return make_camera(self.driver, source=_nothing).spec


def camera_settings(config: StackConfig) -> dict[str, CameraSettings]:
    """All configured cameras by name. Where no address is given, each takes the next port."""
    found = {}
    for index, (name, keys) in enumerate(sorted(config.cameras.items())):
        server: dict[str, object] = {"address": f"tcp://127.0.0.1:{CAMERA_FRAME.default_port + index}"}
        server |= {key: value for key, value in keys.items() if key in _SERVER_KEYS}
        driver: dict[str, object] = {"name": name} | {
            key: value for key, value in keys.items() if key not in _SERVER_KEYS
        }
        found[name] = CameraSettings(_driver(name, driver), msgspec.convert(server, CameraServerConfig))
    return found


def _driver(name: str, keys: Mapping[str, object]) -> CameraConfig:
    try:
        driver: CameraConfig = msgspec.convert(keys, CameraConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"cameras.{name}: {error}; choose driver=sim, realsense, ros2 or uvc") from error
    unknown = sorted(set(keys) - set(type(driver).__struct_fields__) - {"driver"})
    if unknown:
        known = sorted({*type(driver).__struct_fields__, *_SERVER_KEYS} - {"name"})
        raise ConfigError(f"cameras.{name} has no key '{unknown[0]}'; its keys are: {', '.join(known)}")
    return driver


@dataclass(frozen=True, slots=True)
class ObservedCameras:
    """The open feeds of all configured cameras, and the robot's spec with their images."""

    spec: RobotSpec
    feeds: Mapping[str, CameraFeed]
    patience_s: float

    def wait(self) -> None:
        """Wait until every camera has sent something fresh; RobotError for one that does not."""
        for feed in self.feeds.values():
            feed.wait(self.patience_s)


@contextmanager
def observed_cameras(
    config: StackConfig, robot: RobotSpec, keys: KeyStore, patience_s: float
) -> Iterator[ObservedCameras]:
    """The edge's feed of every configured camera, once each has sent something fresh."""
    settings = camera_settings(config)
    spec = spec_with_cameras(robot, [one.spec for one in settings.values()])
    with ExitStack() as opened:
        feeds = {}
        for name, one in settings.items():
            subscriber: Subscriber[CameraFrame] = Subscriber(
                CAMERA_FRAME, one.server.address, keys, config.edge.name, ROBOT_KEY, CameraFrame
            )
            judge = FreshnessJudge(one.spec.rate_hz, one.server.max_age_s)
            feeds[name] = opened.enter_context(CameraFeed(name, subscriber, judge))
        cameras = ObservedCameras(spec, feeds, patience_s)
        cameras.wait()
        yield cameras


def run_camera_process(config: StackConfig, name: str, keep_running: Callable[[], bool]) -> None:
    """Own one configured camera until told to end."""
    cameras = camera_settings(config)
    if name not in cameras:
        raise ConfigError(f"there is no camera '{name}' in the configuration; it has: {', '.join(cameras) or 'none'}")
    settings, keys = cameras[name], ensure_keys(RunLayout.of(config))
    if isinstance(settings.driver, SimulatedCameraConfig):
        with _rendering(config, name, keys) as source:
            run_camera(settings.server, make_camera(settings.driver, source), keys, ROBOT_KEY, keep_running)
    else:
        run_camera(settings.server, make_camera(settings.driver), keys, ROBOT_KEY, keep_running)


@contextmanager
def _rendering(config: StackConfig, name: str, keys: KeyStore) -> Iterator[Callable[[], Array]]:
    """Pictures of the simulated robot, from whoever computes its world."""
    if has_simulated_vendor(config):
        with scene_client(config.network, keys, ROBOT_KEY) as scenes:
            yield lambda: _image(scenes.request(GetScene(cameras=(name,)), RENDER_TIMEOUT_S), name)
    else:
        with robot_client(config.network, keys, config.edge.name) as robot:
            yield lambda: _image(robot.request(GetState(cameras=(name,)), RENDER_TIMEOUT_S), name)


def _image(reply: object, name: str) -> Array:
    if isinstance(reply, SceneState):
        return reply.images[name]
    if isinstance(reply, RobotState):
        return reply.features[IMAGES + name]
    raise RobotError(f"no picture of the simulated camera '{name}': answered with {type(reply).__name__}")


def _nothing() -> Array:
    raise RobotError("this camera is only described here, not opened")
