"""The Unitree G1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from msgspec import structs

from hardware.unitree_g1.config import G1BusConfig
from robot_stack.config.robots.base import SIM, SIMULATED_STATE_AGE_S, RobotConfig, Setting, expert_of
from robot_stack.config.task import TaskConfig
from robot_stack.core.protocols import Robot, SafeState
from robot_stack.core.specs import RobotSpec

if TYPE_CHECKING:
    from hardware.sim.experts import Expert
    from hardware.sim.vendor import VendorSimulator
    from hardware.unitree_g1.sim import SimulatedG1

SIMULATION_TICK_RATE_HZ = 100.0
MOTOR_TICK_RATE_HZ = 500.0


class G1Config(RobotConfig, frozen=True, kw_only=True, tag_field="kind", tag="g1"):
    """The Unitree G1 with 29 joints: arms and waist over the vendor's own balance.

    action_space: palm_delta or joint_delta; scripted experts drive palm_delta.
    """

    backends: ClassVar[tuple[str, ...]] = (SIM, "dds", "ros2")
    simulated_vendors: ClassVar[tuple[str, ...]] = ("dds",)

    name: str = "g1_0"
    action_space: str = "palm_delta"
    view_cameras: tuple[str, ...] = ("front",)
    bus: G1BusConfig = G1BusConfig()

    @classmethod
    def presets(cls) -> Mapping[str, RobotConfig]:
        return {"g1": cls()}

    @classmethod
    def tasks(cls) -> tuple[TaskConfig, ...]:
        features = ("observation.state", "observation.environment_state")
        return (TaskConfig(name="g1_bimanual_lift", features=features, demonstration_noise=0.05),)

    def simulated(self, setting: Setting) -> SimulatedG1:
        from hardware.unitree_g1.sim import SimulatedG1

        return SimulatedG1(
            self.name,
            setting.task,
            hands=self.bus.hands,
            action_space=self.action_space,
            **self.rates(SIMULATION_TICK_RATE_HZ),
            **self.camera_arguments(),
        )

    def driver(self, backend: str, setting: Setting) -> Robot:
        if backend not in self.backends:
            raise self.no_backend(backend)
        from hardware.unitree_g1.driver import G1

        return G1(
            self.name,
            setting.task,
            self._network(setting),
            backend=backend,
            action_space=self.action_space,
            **self.rates(MOTOR_TICK_RATE_HZ),
        )

    def vendor_simulator(self, backend: str, setting: Setting) -> VendorSimulator:
        from hardware.unitree_g1.dds_simulator import G1DdsSimulator

        return G1DdsSimulator(self.simulated(setting), self._network(setting))

    def safe_state(self, backend: str, setting: Setting) -> SafeState | None:
        """Over DDS also for `ros2`: both are the same network."""
        if backend == SIM:
            return None
        from hardware.unitree_g1.dds_safe_state import G1DdsSafeState

        return G1DdsSafeState(self._network(setting))

    def expert(self, spec: RobotSpec) -> Expert:
        from hardware.unitree_g1.experts import G1BimanualLiftExpert

        return expert_of({"g1_bimanual_lift": G1BimanualLiftExpert}, spec)

    def _network(self, setting: Setting) -> G1BusConfig:
        if setting.domain_id is None:
            return self.bus
        return structs.replace(
            self.bus, domain_id=setting.domain_id, interface="lo", max_state_age_s=SIMULATED_STATE_AGE_S
        )
