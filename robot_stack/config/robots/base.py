"""What every robot's configuration has, and which of its classes stands for which back-end.

    back-end          the robot server holds                     at the other end, with vendor=simulated
    sim               the simulated robot itself                 -
    ros2, dds, ...    a driver for the vendor's interface        a vendor-side simulator of that interface

A robot's file in this folder is the one place outside `hardware/` that knows its classes; it imports them when they
are built, so that nothing but the chosen back-end needs to be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypedDict

from msgspec import Struct, field

from robot_stack.config.task import TaskConfig
from robot_stack.core.checked import Checked
from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import Robot, SafeState, SimulatedRobot
from robot_stack.core.specs import RobotSpec

if TYPE_CHECKING:
    from hardware.sim.experts import Expert
    from hardware.sim.rendering import CameraConfig
    from hardware.sim.vendor import VendorSimulator

SIM = "sim"
# A simulated vendor's side shares this machine with everything else, and its middleware stalls for a third of a second
# when somebody joins or dies: that is no fault of a robot.
SIMULATED_STATE_AGE_S = 0.6
VIEW_PX = 256


class AxisLimits(Struct, frozen=True, kw_only=True):
    """Limits of one's own, by name of a setpoint's axis (`fr3_joint1_rad`); they may only be narrower than the robot's.

    speed: scales all velocities, more than 0 and at most 1.
    """

    lower: dict[str, float] = field(default_factory=dict)
    upper: dict[str, float] = field(default_factory=dict)
    max_velocity: dict[str, float] = field(default_factory=dict)
    max_acceleration: dict[str, float] = field(default_factory=dict)
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1:
            raise ConfigError(f"robot.limits.speed = {self.speed} must be larger than 0 and at most 1")


class ContactEnergy(Struct, frozen=True, kw_only=True):
    """Bounds the energy that motions put into a contact (`robot_stack/safety/passivity.py`). limited: whether to.

    Energies in J, refill in W, stiffness in N m/rad or N/m: what an axis' effort changes by per motion of its setpoint.
    """

    limited: bool = False
    capacity_j: float = 5.0
    initial_j: float = 2.0
    floor_j: float = 0.2
    refill_w: float = 1.0
    stiffness: float = 500.0


class Rates(TypedDict):
    """Keyword arguments of every driver."""

    control_rate_hz: float
    tick_rate_hz: float


class Cameras(TypedDict):
    """Keyword arguments of every simulated robot."""

    cameras: tuple[CameraConfig, ...]
    view_cameras: tuple[CameraConfig, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a driver is built with beside its robot's own configuration.

    `domain_id`: DDS domain of a simulated vendor's side, on loopback; None to use the robot's own network settings.
    """

    task: str
    domain_id: int | None = None


class RobotConfig(Checked, frozen=True, kw_only=True):
    """What all robots have in common.

    name: under which its steps are recorded. tick_rate_hz: of the server's loop, 0 for the back-end's own.
    lock_step: time stands still between commands; only `backend=sim` can do that, the others run on the wall clock.
    cameras: recorded with every observation. view_cameras: rendered on request only, for films. limits: narrower ones
    than the robot's own. contact_energy: for contact tasks.
    """

    backends: ClassVar[tuple[str, ...]] = (SIM,)
    simulated_vendors: ClassVar[tuple[str, ...]] = ()
    takes_any_task: ClassVar[bool] = False

    name: str
    control_rate_hz: float = 10.0
    tick_rate_hz: float = 0.0
    lock_step: bool = True
    cameras: tuple[str, ...] = ()
    view_cameras: tuple[str, ...] = ()
    limits: AxisLimits = AxisLimits()
    contact_energy: ContactEnergy = ContactEnergy()

    def positive(self) -> tuple[str, ...]:
        return ("control_rate_hz",)

    @classmethod
    def presets(cls) -> Mapping[str, RobotConfig]:
        """Choices of `robot=...`, by name."""
        raise NotImplementedError

    @classmethod
    def tasks(cls) -> tuple[TaskConfig, ...]:
        """Choices of `task=...` that this kind of robot can do."""
        raise NotImplementedError

    @property
    def default_task(self) -> str:
        """The task of this preset where none is chosen."""
        return self.tasks()[0].name

    def simulated(self, setting: Setting) -> SimulatedRobot:
        """The simulated robot: back-end `sim`, and the world behind a vendor-side simulator."""
        raise NotImplementedError

    def driver(self, backend: str, setting: Setting) -> Robot:
        """The driver for a vendor's interface."""
        raise NotImplementedError

    def vendor_simulator(self, backend: str, setting: Setting) -> VendorSimulator:
        """The vendor's side of that interface, simulated."""
        raise NotImplementedError

    def safe_state(self, backend: str, setting: Setting) -> SafeState | None:
        """What brings the vendor's side into its safe state; None where it does so alone."""
        return None

    def expert(self, spec: RobotSpec) -> Expert:
        """The scripted demonstrator of the spec's task."""
        raise ConfigError(f"there is no scripted expert for task '{spec.task}'; collect by teleoperation")

    # ---- for the robots' own files ----

    def rates(self, own_tick_rate_hz: float) -> Rates:
        """Control and tick rate as keyword arguments."""
        return {"control_rate_hz": self.control_rate_hz, "tick_rate_hz": self.tick_rate_hz or own_tick_rate_hz}

    def camera_arguments(self) -> Cameras:
        """Recorded and view cameras as keyword arguments of a simulated robot."""
        from hardware.sim.rendering import CameraConfig

        views = tuple(camera for camera in self.view_cameras if camera not in self.cameras)
        return {
            "cameras": tuple(CameraConfig(name=camera) for camera in self.cameras),
            "view_cameras": tuple(CameraConfig(name=camera, width=VIEW_PX, height=VIEW_PX) for camera in views),
        }

    def no_backend(self, backend: str) -> ConfigError:
        return ConfigError(f"{self.name} has no backend '{backend}'; choose one of {', '.join(self.backends)}")


def expert_of(experts: Mapping[str, Callable[[RobotSpec], Expert]], spec: RobotSpec) -> Expert:
    """The task's expert; ConfigError names the tasks that have one."""
    if spec.task not in experts:
        raise ConfigError(f"there is no scripted expert for task '{spec.task}'; experts exist for {', '.join(experts)}")
    return experts[spec.task](spec)
