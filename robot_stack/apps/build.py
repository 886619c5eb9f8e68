"""From configuration to concrete objects: the only place that knows which class a name stands for."""

from __future__ import annotations

from hardware.sim.experts import Expert
from robot_stack.config.schema import FrankaSimConfig, GymnasiumConfig, StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import Robot
from robot_stack.core.specs import Feature, PolicySpec, RobotSpec

VIEW_PX = 256


def build_robot(config: StackConfig) -> Robot:
    """The driver that the configuration names. Nothing is opened yet."""
    robot, task = config.robot, config.task.name
    if isinstance(robot, GymnasiumConfig):
        from hardware.gymnasium.robot import GymnasiumRobot

        return GymnasiumRobot(
            robot.name,
            robot.env_id,
            task=task,
            observation_keys=tuple(robot.observation_keys.items()),
            control_rate_hz=robot.control_rate_hz,
            max_episode_steps=robot.max_episode_steps,
            env_kwargs=robot.env_kwargs,
            success_key=robot.success_key,
        )
    return _build_franka_sim(robot, task)


def _build_franka_sim(robot: FrankaSimConfig, task: str) -> Robot:
    from hardware.franka.sim import SimulatedFranka
    from hardware.sim.rendering import CameraConfig

    return SimulatedFranka(
        robot.name,
        task,
        action_space=robot.action_space,
        control_rate_hz=robot.control_rate_hz,
        tick_rate_hz=robot.tick_rate_hz,
        cameras=tuple(CameraConfig(name=camera) for camera in robot.cameras),
        view_cameras=tuple(
            CameraConfig(name=camera, width=VIEW_PX, height=VIEW_PX)
            for camera in robot.view_cameras
            if camera not in robot.cameras
        ),
    )


def base_spec(config: StackConfig, robot: RobotSpec) -> PolicySpec:
    """What a base policy for this robot and task reads and writes."""
    return PolicySpec(
        name=f"diffusion-{config.task.name}",
        task=config.task.name,
        horizon=config.policy.training.net.horizon,
        action=robot.action,
        observation=_features(config.task.features, robot),
    )


def residual_spec(config: StackConfig, robot: RobotSpec) -> PolicySpec:
    """The same for the residual policy, which acts on every single step."""
    return PolicySpec(
        name=f"residual-{config.task.name}",
        task=config.task.name,
        horizon=1,
        action=robot.action,
        observation=_features(config.task.features, robot),
    )


def _features(names: tuple[str, ...], robot: RobotSpec) -> dict[str, Feature]:
    missing = [name for name in names if name not in robot.observation]
    if missing:
        raise ConfigError(
            f"the task names {', '.join(missing)}, which {robot.name} does not offer; it offers "
            f"{', '.join(sorted(robot.observation))}"
        )
    return {name: robot.observation[name] for name in names}


def build_expert(config: StackConfig, spec: RobotSpec) -> Expert:
    """The scripted demonstrator of the task; it sees the simulator's truth, which policies never do."""
    if isinstance(config.robot, GymnasiumConfig):
        from hardware.gymnasium.experts import PandaPickCubeExpert, PushTExpert

        if config.task.name == "pusht":
            return PushTExpert()
        if config.task.name == "panda_pick_cube":
            return PandaPickCubeExpert()
        raise ConfigError(f"there is no scripted expert for task '{config.task.name}'; collect by teleoperation")
    from hardware.sim.experts import make_expert

    return make_expert(config.task.name, spec)
