"""A vendor's driver whose other end is a vendor-side simulator: driver for the robot, scene service for the rest.

Commands and states go through the driver alone. The scene adds what a real laboratory has people and cameras for: the
reset, the objects' place, the verdict of the task.
"""

from __future__ import annotations

import time

import numpy as np
from msgspec import structs

from robot_stack.apps.connections import SCENE_STATE, scene_client
from robot_stack.apps.keys import ROBOT_KEY
from robot_stack.config.schema import NetworkConfig
from robot_stack.core.errors import MessageError, RobotError
from robot_stack.core.messages import SCHEMA_VERSION, Array, Features, FloatArray, Hello, TaskStatus
from robot_stack.core.protocols import (
    EpisodicRobot,
    Reading,
    Renderer,
    Robot,
    RobotGeometry,
    Setpoint,
    SetpointLimits,
    SimulatedRobot,
)
from robot_stack.core.scene_messages import GetScene, ResetScene, SceneRequest, SceneState
from robot_stack.core.specs import ENVIRONMENT_STATE, RobotSpec
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.stream import Subscriber

CONNECT_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 3.0
MAX_SCENE_AGE_S = 0.5
SAME_ROBOT_TOLERANCE = 0.05


class SceneRobot(EpisodicRobot, Renderer):
    """Drives through `driver`; its spec is the driver's plus the scene's state, and says simulated.

    Treating a robot as simulated lets it be armed without a person. So the driver's measured setpoint is compared
    with the simulator's own at connect and at every reset: a driver that turns out to talk to another robot, a real
    one say, is refused. `world` is the simulated robot behind the simulator, for its spec; it is not opened here.
    """

    def __init__(self, driver: Robot, world: SimulatedRobot, network: NetworkConfig, keys: KeyStore) -> None:
        self._driver = driver
        self._cameras = world.cameras
        self._client = scene_client(network, keys, ROBOT_KEY)
        self._scenes: Subscriber[SceneState] = Subscriber(
            SCENE_STATE, network.scene_state_address, keys, ROBOT_KEY, ROBOT_KEY, SceneState
        )
        observation = {**driver.spec.observation, ENVIRONMENT_STATE: world.spec.observation[ENVIRONMENT_STATE]}
        self._spec = structs.replace(driver.spec, simulated=True, observation=observation)
        self._scene: SceneState | None = None
        # where a mobile base counts from is the driver's own affair
        self._compared = np.array([not name.startswith("base_") for name in driver.limits.names])
        self._open = False

    # ---- the driver's own ----

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def limits(self) -> SetpointLimits:
        return self._driver.limits

    @property
    def geometry(self) -> RobotGeometry | None:
        return self._driver.geometry

    def measured_setpoint(self) -> Setpoint:
        return self._driver.measured_setpoint()

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._driver.resolve(action)

    def engage(self) -> None:
        self._driver.engage()

    def send(self, setpoint: Setpoint) -> None:
        self._driver.send(setpoint)

    def release(self) -> None:
        self._driver.release()

    def idle(self) -> None:
        self._driver.idle()

    def emergency_stop(self) -> None:
        self._driver.emergency_stop()

    def hold(self) -> None:
        self._driver.hold()

    def external_effort(self) -> Setpoint | None:
        return self._driver.external_effort()

    # ---- driver and scene ----

    def connect(self) -> None:
        """Wait for the simulator, then for the driver, and see that both mean the same robot."""
        if self._open:
            return
        self._client.__enter__()
        self._scenes.__enter__()
        self._open = True
        self._client.greet(Hello(schema_version=SCHEMA_VERSION, peer=self._spec.name), CONNECT_TIMEOUT_S)
        self._scene = self._request(GetScene())
        self._driver.connect()
        self._wait_until_same()

    def close(self) -> None:
        self._driver.close()
        if self._open:
            self._open = False
            self._scenes.__exit__(None, None, None)
            self._client.__exit__(None, None, None)

    def read(self) -> Reading:
        reading = self._driver.read()
        scene = self._newest_scene()
        age_s = (time.monotonic_ns() - scene.stamp_ns) / 1e9
        if age_s > MAX_SCENE_AGE_S and not reading.fault:
            fault = f"{self._spec.name}: the vendor-side simulator has been silent for {age_s:.1f} s; is it running?"
            reading = structs.replace(reading, fault=fault)
        return structs.replace(reading, features={**reading.features, ENVIRONMENT_STATE: scene.environment_state})

    def reset(self, seed: int) -> None:
        self._scene = self._request(ResetScene(seed=seed))
        self._wait_until_same(newer_than_ns=time.monotonic_ns())

    def task_status(self) -> TaskStatus:
        return self._newest_scene().task

    def ground_truth(self) -> Features:
        return self._newest_scene().ground_truth

    def instruction(self) -> str:
        return self._newest_scene().instruction

    @property
    def cameras(self) -> tuple[str, ...]:
        return self._cameras

    def render(self, camera: str) -> Array:
        return self._request(GetScene(cameras=(camera,))).images[camera]

    def _newest_scene(self) -> SceneState:
        newest = self._scenes.newest(0.0)
        if newest is not None and (self._scene is None or newest.episode_seed == self._scene.episode_seed):
            self._scene = newest
        if self._scene is None:
            raise RobotError(f"{self._spec.name} is not connected; call connect() first")
        return self._scene

    def _request(self, message: SceneRequest) -> SceneState:
        reply = self._client.request(message, REQUEST_TIMEOUT_S)
        if not isinstance(reply, SceneState):
            raise MessageError(f"the vendor-side simulator answered with {type(reply).__name__} where a scene was due")
        return reply

    def _wait_until_same(self, newer_than_ns: int = 0) -> None:
        """Wait until a sample that arrived after that time is what the simulator says; RobotError if none is."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            scene = self._request(GetScene())
            reading = self._driver.read()
            fault = reading.fault
            difference = np.abs(self._driver.measured_setpoint() - scene.measured) * self._compared
            if not fault and reading.stamp_ns > newer_than_ns and difference.max() < SAME_ROBOT_TOLERANCE:
                self._scene = scene
                return
            if time.monotonic() > deadline:
                axis = self._driver.limits.names[int(difference.argmax())]
                raise RobotError(
                    f"{self._spec.name}: driver and vendor-side simulator differ by {difference.max():.3g} at {axis}"
                    + (f" ({fault})" if fault else "")
                    + "; is the driver connected to another robot? Use vendor=hardware for a real one"
                )
            time.sleep(0.01)
