"""The vendor's side of a robot, simulated, in a process of its own.

The robot server reaches it through the vendor's interface only. What no vendor's interface has (the scene's reset, its
truth, faults on request) goes over a service of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from uuid import uuid4

from hardware.sim.vendor import VendorSimulator
from robot_stack.apps.build import build_vendor_simulator
from robot_stack.apps.connections import SCENE_REQUEST, SCENE_STATE
from robot_stack.apps.keys import ROBOT_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import StackConfig
from robot_stack.core.clock import Pacer
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import SCHEMA_VERSION, Done, Failed
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.scene_messages import GetScene, InjectFault, ResetScene, SceneReply, SceneRequest, SceneState
from robot_stack.core.specs import ENVIRONMENT_STATE
from robot_stack.transport.server import Request, RequestServer
from robot_stack.transport.stream import Publisher

logger = logging.getLogger(__name__)

SCENE_RATE_HZ = 100.0


class VendorSide:
    """Runs one vendor-side simulator on the wall clock and answers for its scene."""

    def __init__(self, simulator: VendorSimulator, requests: RequestServer[SceneRequest], scenes: Publisher) -> None:
        self._simulator = simulator
        self._requests = requests
        self._scenes = scenes
        self._boot = uuid4().hex
        self._seq = 0
        self._seed = 0
        self._publish_every = max(1, round(1.0 / SCENE_RATE_HZ / simulator.period_s))
        self.pacer = Pacer(simulator.period_s)

    def run(self, keep_running: Callable[[], bool]) -> None:
        simulator = self._simulator
        simulator.open()
        try:
            logger.info("%s: the vendor's side is simulated", simulator.world.spec.name)
            while keep_running():
                self.pacer.wait()
                for request in self._requests.poll(0.0):
                    request.reply(self._answer(request))
                simulator.tick()
                if self.pacer.ticks % self._publish_every == 0:
                    self._scenes.send(self._scene())
        finally:
            simulator.close()

    def _answer(self, request: Request[SceneRequest]) -> SceneReply:
        try:
            return self._handle(request.message)
        except RobotStackError as error:
            return Failed(reason=type(error).__name__, message=str(error))

    def _handle(self, message: SceneRequest) -> SceneReply:
        if isinstance(message, ResetScene):
            self._simulator.reset(message.seed)
            self._seed = message.seed
            return self._scene()
        if isinstance(message, GetScene):
            return self._scene(message.cameras)
        if isinstance(message, InjectFault):
            self._simulator.inject(message)
            return Done()
        if message.schema_version != SCHEMA_VERSION:
            text = f"{message.peer} speaks schema version {message.schema_version}, this simulator {SCHEMA_VERSION}"
            return Failed(reason="schema_version", message=f"{text}; install the same release on both")
        return Done()

    def _scene(self, cameras: tuple[str, ...] = ()) -> SceneState:
        world: SimulatedRobot = self._simulator.world
        self._seq += 1
        return SceneState(
            boot=self._boot,
            seq=self._seq,
            stamp_ns=time.monotonic_ns(),
            episode_seed=self._seed,
            environment_state=world.read().features[ENVIRONMENT_STATE],
            measured=world.measured_setpoint(),
            task=world.task_status(),
            ground_truth=world.ground_truth(),
            images={camera: world.render(camera) for camera in cameras},
            instruction=world.instruction(),
        )


def run_vendor_sim(config: StackConfig, keep_running: Callable[[], bool]) -> None:
    """Simulate the vendor's side of the configured back-end until told to end."""
    keys = ensure_keys(RunLayout.of(config))
    simulator = build_vendor_simulator(config)
    network = config.network
    requests: RequestServer[SceneRequest] = RequestServer(
        SCENE_REQUEST, network.scene_address, keys, ROBOT_KEY, SceneRequest
    )
    with requests, Publisher(SCENE_STATE, network.scene_state_address, keys, ROBOT_KEY) as scenes:
        side = VendorSide(simulator, requests, scenes)
        side.run(keep_running)
        late = side.pacer.overruns
        logger.info("%d ticks of %.1f ms, %d late", side.pacer.ticks, simulator.period_s * 1e3, late)
