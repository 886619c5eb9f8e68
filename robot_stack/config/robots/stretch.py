"""The Hello Robot Stretch 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from msgspec import structs

from hardware.stretch.config import StretchBodyConfig, StretchRos2Config
from robot_stack.config.robots.base import SIM, SIMULATED_STATE_AGE_S, RobotConfig, Setting, expert_of
from robot_stack.config.task import TaskConfig
from robot_stack.core.protocols import Robot, SafeState
from robot_stack.core.specs import RobotSpec

if TYPE_CHECKING:
    from hardware.sim.experts import Expert
    from hardware.sim.vendor import VendorSimulator
    from hardware.stretch.sim import SimulatedStretch

SIMULATION_TICK_RATE_HZ = 100.0
DRIVER_TICK_RATE_HZ = 100.0


class StretchConfig(RobotConfig, frozen=True, kw_only=True, tag_field="kind", tag="stretch"):
    """The Hello Robot Stretch 3 with the dexterous wrist and the SG3 gripper."""

    backends: ClassVar[tuple[str, ...]] = (SIM, "ros2", "body")
    simulated_vendors: ClassVar[tuple[str, ...]] = ("ros2",)

    name: str = "stretch_0"
    view_cameras: tuple[str, ...] = ("front",)
    ros2: StretchRos2Config = StretchRos2Config()
    body: StretchBodyConfig = StretchBodyConfig()

    @classmethod
    def presets(cls) -> Mapping[str, RobotConfig]:
        return {"stretch": cls()}

    @classmethod
    def tasks(cls) -> tuple[TaskConfig, ...]:
        features = ("observation.state", "observation.environment_state")
        return (TaskConfig(name="stretch_reach_grasp", features=features, demonstration_noise=0.05),)

    def simulated(self, setting: Setting) -> SimulatedStretch:
        from hardware.stretch.sim import SimulatedStretch

        return SimulatedStretch(
            self.name, setting.task, **self.rates(SIMULATION_TICK_RATE_HZ), **self.camera_arguments()
        )

    def driver(self, backend: str, setting: Setting) -> Robot:
        rates = self.rates(DRIVER_TICK_RATE_HZ)
        if backend == "ros2":
            from hardware.stretch.ros2 import StretchRos2

            return StretchRos2(self.name, setting.task, self._network(setting), **rates)
        if backend == "body":
            from hardware.stretch.body import StretchBody

            return StretchBody(self.name, setting.task, self.body, **rates)
        raise self.no_backend(backend)

    def vendor_simulator(self, backend: str, setting: Setting) -> VendorSimulator:
        from hardware.stretch.ros2_simulator import StretchRos2Simulator

        return StretchRos2Simulator(self.simulated(setting), self._network(setting))

    def safe_state(self, backend: str, setting: Setting) -> SafeState | None:
        if backend != "ros2":
            return None
        from hardware.stretch.ros2_safe_state import StretchRos2SafeState

        return StretchRos2SafeState(self._network(setting))

    def expert(self, spec: RobotSpec) -> Expert:
        from hardware.stretch.experts import StretchReachGraspExpert

        return expert_of({"stretch_reach_grasp": StretchReachGraspExpert}, spec)

    def _network(self, setting: Setting) -> StretchRos2Config:
        if setting.domain_id is None:
            return self.ros2
        return structs.replace(
            self.ros2, domain_id=setting.domain_id, loopback_only=True, max_state_age_s=SIMULATED_STATE_AGE_S
        )
