"""From configuration to concrete objects."""

from __future__ import annotations

from hardware.sim.experts import Expert
from hardware.sim.vendor import VendorSimulator
from policies.common.features import image_features, vector_features
from robot_stack.config.robots import Setting
from robot_stack.config.robots.base import SIM
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import Robot, SafeState, SimulatedRobot
from robot_stack.core.specs import IMAGES, Feature, PolicySpec, RobotSpec
from robot_stack.learner.algorithms.settings import StepSettings
from robot_stack.learner.algorithms.settings.base import ALL_CAMERAS


def runs_in_lock_step(config: StackConfig) -> bool:
    """Only a world that is computed in the server's own process can stand still between commands."""
    return config.backend == SIM and config.robot.lock_step


def has_simulated_vendor(config: StackConfig) -> bool:
    """Whether a vendor-side simulator stands at the other end of a vendor's interface."""
    return config.backend != SIM and config.vendor == "simulated"


def build_robot(config: StackConfig) -> Robot:
    """The simulated robot, or the driver of the configured back-end. Nothing is opened yet."""
    _check_backend(config)
    setting = _setting(config)
    return config.robot.simulated(setting) if config.backend == SIM else config.robot.driver(config.backend, setting)


def build_simulated(config: StackConfig) -> SimulatedRobot:
    """The simulated robot, whatever the back-end: the world behind a vendor-side simulator."""
    return config.robot.simulated(_setting(config))


def build_vendor_simulator(config: StackConfig) -> VendorSimulator:
    """The vendor's side of the configured interface, with the simulated robot behind it."""
    _check_backend(config)
    if not has_simulated_vendor(config):
        raise ConfigError(f"backend={config.backend} vendor={config.vendor} has no vendor's side to simulate")
    return config.robot.vendor_simulator(config.backend, _setting(config))


def build_safe_state(config: StackConfig) -> SafeState | None:
    """What brings the vendor's side into its safe state when the robot server dies."""
    return config.robot.safe_state(config.backend, _setting(config))


def build_expert(config: StackConfig, spec: RobotSpec) -> Expert:
    """The scripted demonstrator of the task; it sees the simulator's truth, which policies never do."""
    return config.robot.expert(spec)


def _setting(config: StackConfig) -> Setting:
    return Setting(config.task.name, config.network.domain_id if has_simulated_vendor(config) else None)


def _check_backend(config: StackConfig) -> None:
    robot = config.robot
    if config.backend not in robot.backends:
        raise robot.no_backend(config.backend)
    if has_simulated_vendor(config) and config.backend not in robot.simulated_vendors:
        raise ConfigError(
            f"backend={config.backend} of {robot.name} has no vendor-side simulator, it needs the robot itself: say "
            f"vendor=hardware, or choose a backend that has one ({', '.join(robot.simulated_vendors) or 'none'})"
        )
    tasks = [task.name for task in robot.tasks()]
    if config.task.name not in tasks and not robot.takes_any_task:
        raise ConfigError(f"{robot.name} has no task '{config.task.name}'; choose one of {', '.join(tasks)}")


def base_spec(config: StackConfig, robot: RobotSpec) -> PolicySpec:
    """What a base policy for this robot and task reads and writes."""
    return PolicySpec(
        name=f"{config.policy.name}-{config.task.name}",
        task=config.task.name,
        horizon=config.policy.horizon,
        history=config.policy.history,
        action=robot.action,
        observation=_features(config.task.features, robot),
    )


def step_spec(config: StackConfig, robot: RobotSpec) -> PolicySpec:
    """The same for what practice trains to act on every single step: it reads vectors, and pictures where the
    algorithm's `images` ask for them. ConfigError for a camera that the robot has not."""
    features = _features(config.task.features, robot)
    return PolicySpec(
        name=f"step-{config.task.name}",
        task=config.task.name,
        horizon=1,
        action=robot.action,
        observation=vector_features(features) | _pictures(config, features, robot),
    )


def _pictures(config: StackConfig, features: dict[str, Feature], robot: RobotSpec) -> dict[str, Feature]:
    """The cameras that `algorithm.images` names; they need not be among the task's features."""
    images = config.algorithm.images if isinstance(config.algorithm, StepSettings) else ()
    offered = image_features(robot.observation)
    if images == (ALL_CAMERAS,):
        found = image_features(features)
        if not found:
            raise ConfigError(
                "algorithm.images is [all], and task.features names no camera; name one there "
                f"({IMAGES}NAME), or give algorithm.images=[NAME]"
            )
        return found
    missing = [name for name in images if IMAGES + name not in offered]
    if missing:
        cameras = ", ".join(name.removeprefix(IMAGES) for name in offered) or "none"
        raise ConfigError(
            f"algorithm.images names {', '.join(missing)}, and {robot.name} has no such camera; it has: {cameras}. "
            "Give it that camera (robot.cameras=[NAME], or cameras.NAME.driver=...), and collect demonstrations with it"
        )
    return {IMAGES + name: offered[IMAGES + name] for name in images}


def _features(names: tuple[str, ...], robot: RobotSpec) -> dict[str, Feature]:
    missing = [name for name in names if name not in robot.observation]
    if missing:
        raise ConfigError(
            f"the task names {', '.join(missing)}, which {robot.name} does not offer; it offers "
            f"{', '.join(sorted(robot.observation))}"
        )
    return {name: robot.observation[name] for name in names}
