"""The Franka Research 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from msgspec import structs

from hardware.franka.config import FrankaFciConfig, FrankaRos2Config
from robot_stack.config.robots.base import SIM, SIMULATED_STATE_AGE_S, RobotConfig, Setting
from robot_stack.config.task import TaskConfig
from robot_stack.core.protocols import Robot, SafeState
from robot_stack.core.specs import RobotSpec

if TYPE_CHECKING:
    from hardware.franka.sim import SimulatedFranka
    from hardware.sim.experts import Expert
    from hardware.sim.vendor import VendorSimulator

OWN_TICK_RATE_HZ = 100.0


class FrankaConfig(RobotConfig, frozen=True, kw_only=True, tag_field="kind", tag="franka"):
    """The Franka FR3 with the Franka Hand.

    action_space: ee_delta, ee_pose, joint_position or joint_delta; scripted experts drive ee_delta. Cameras of the
    simulation: front, wrist_rgb.
    """

    backends: ClassVar[tuple[str, ...]] = (SIM, "ros2", "fci")
    simulated_vendors: ClassVar[tuple[str, ...]] = ("ros2",)

    name: str = "franka_0"
    action_space: str = "ee_delta"
    view_cameras: tuple[str, ...] = ("front",)
    ros2: FrankaRos2Config = FrankaRos2Config()
    fci: FrankaFciConfig = FrankaFciConfig()

    @classmethod
    def presets(cls) -> Mapping[str, RobotConfig]:
        return {"franka": cls()}

    @classmethod
    def tasks(cls) -> tuple[TaskConfig, ...]:
        state = ("observation.state", "observation.environment_state")
        return (
            TaskConfig(
                name="peg_insertion",
                features=(*state, "observation.external_wrench"),
                demonstrations=300,
                max_attempts=600,
                demonstration_noise=0.1,
            ),
            TaskConfig(
                name="peg_cycle",
                features=(*state, "observation.external_wrench"),
                demonstrations=100,
                max_attempts=400,
                demonstration_noise=0.1,
            ),
            TaskConfig(name="pick_cube", features=state, demonstration_noise=0.05),
            TaskConfig(
                name="touch_block",
                features=("observation.state", "observation.images.front"),
                demonstrations=400,
                max_attempts=500,
                demonstration_noise=0.1,
            ),
        )

    def simulated(self, setting: Setting) -> SimulatedFranka:
        from hardware.franka.sim import SimulatedFranka

        return SimulatedFranka(
            self.name,
            setting.task,
            action_space=self.action_space,
            **self.rates(OWN_TICK_RATE_HZ),
            **self.camera_arguments(),
        )

    def driver(self, backend: str, setting: Setting) -> Robot:
        rates = self.rates(OWN_TICK_RATE_HZ)
        if backend == "ros2":
            from hardware.franka.ros2 import FrankaRos2

            return FrankaRos2(self.name, setting.task, self._network(setting), action_space=self.action_space, **rates)
        if backend == "fci":
            from hardware.franka.fci import FrankaFci

            return FrankaFci(self.name, setting.task, self.fci, action_space=self.action_space, **rates)
        raise self.no_backend(backend)

    def vendor_simulator(self, backend: str, setting: Setting) -> VendorSimulator:
        from hardware.franka.ros2_simulator import FrankaRos2Simulator

        return FrankaRos2Simulator(self.simulated(setting), self._network(setting))

    def safe_state(self, backend: str, setting: Setting) -> SafeState | None:
        if backend != "ros2":
            return None
        from hardware.franka.ros2_safe_state import FrankaRos2SafeState

        return FrankaRos2SafeState(self._network(setting))

    def expert(self, spec: RobotSpec) -> Expert:
        from hardware.sim.experts import make_expert

        return make_expert(spec.task, spec)

    def _network(self, setting: Setting) -> FrankaRos2Config:
        if setting.domain_id is None:
            return self.ros2
        return structs.replace(
            self.ros2, domain_id=setting.domain_id, loopback_only=True, max_state_age_s=SIMULATED_STATE_AGE_S
        )
