"""What the ROS 2 launch files are composed of: their arguments, and one process of the stack.

The files in `launch/` say which processes belong together; this module turns their arguments into the same command
lines that a person types. Ports come from the service table. The packages `launch` and `launch_ros` come with a ROS 2
installation and are imported when a launch file asks for one of their actions.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from robot_stack.core.errors import ConfigError, MissingDependencyError, SpecMismatchError
from robot_stack.transport.services import SERVICES

RESTART_PAUSE_S = 2.0
END_PATIENCE_S = 15.0
"""After Ctrl-C: a learner writes its checkpoint, an edge sends what its spool still holds."""
_NO_USE = {0, ConfigError.exit_code, SpecMismatchError.exit_code, MissingDependencyError.exit_code}
_GROUPS = ("robot", "backend", "vendor", "task", "run")
_ADDRESSES = {
    "robot.request": "network.robot_address",
    "robot.state": "network.state_address",
    "learner.request": "network.learner_address",
    "policy.request": "network.policy_address",
    "scene.request": "network.scene_address",
    "scene.state": "network.scene_state_address",
    "seat.request": "network.seat_address",
    "seat.state": "network.seat_state_address",
}
_PAGE_PORT = 70
"""Of the operator's page, above the port base."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A launch argument; `choices` is empty where any text will do."""

    default: str
    description: str
    choices: tuple[str, ...] = ()


_SWITCH = ("true", "false")
ARGUMENTS: Mapping[str, Argument] = {
    "robot": Argument("franka", "franka, g1, stretch, or another choice of robot=... in the configuration"),
    "backend": Argument("sim", "how the robot is reached", ("sim", "ros2", "dds", "fci", "body")),
    "vendor": Argument("simulated", "who is at the other end of a vendor's interface", ("hardware", "simulated")),
    "task": Argument("", "task of the run; empty for the robot's first"),
    "run": Argument("demo", "name of the run: its keys, steps and weights"),
    "port_base": Argument(
        str(SERVICES["robot.request"].default_port), "first TCP port; every robot of a machine needs its own hundred"
    ),
    "config": Argument("", "more KEY=VALUE overrides for all processes, separated by spaces"),
    "namespace": Argument("", "ROS 2 namespace above robot_stack/; one per robot"),
    "cameras": Argument("", "names of the cameras to start, separated by commas; config:= says what they are"),
    "ros2_node": Argument("true", "show the robot to ROS 2", _SWITCH),
    "edge": Argument("false", "run the run's policy on the robot", _SWITCH),
    "learner": Argument("false", "run the learner on this machine", _SWITCH),
    "teleop": Argument("false", "serve the operator's page, and let people take over from the policy", _SWITCH),
}


def command_line(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The command `robot-stack <words> <overrides>`: the console script if it is on the PATH, else the module in this
    Python."""
    script = shutil.which("robot-stack")
    program = [script] if script else [sys.executable, "-m", "robot_stack.apps.cli"]
    return [*program, *words, *overrides]


def overrides_of(given: Mapping[str, str]) -> list[str]:
    """The overrides that these values of the launch arguments stand for; the same for all processes.

    Time never stands still here: ROS 2 works on the wall clock.
    """
    groups = [f"{name}={given[name]}" for name in _GROUPS if given.get(name)]
    port_base = int(given["port_base"])
    addresses = [f"{key}={_address(service, port_base)}" for service, key in _ADDRESSES.items()]
    for index, camera in enumerate(camera_names(given)):
        address = _address("camera.frame", port_base + index)
        addresses += [f"cameras.{camera}.address={address}", f"ros2_node.cameras.{camera}={address}"]
    seat = [f"teleop.port={port_base + _PAGE_PORT}"]
    if given.get("teleop") == "true":
        seat.append("edge.operator=seat")
    return [*groups, "robot.lock_step=false", *addresses, *seat, *shlex.split(given["config"])]


@lru_cache
def _make_keys(overrides: tuple[str, ...]) -> None:
    """The run's keys, before processes that start at the same moment would all make them. ConfigError if an override
    is wrong: then nothing is started."""
    from robot_stack.apps.keys import ensure_keys
    from robot_stack.apps.layout import RunLayout
    from robot_stack.config.compose import compose_config

    ensure_keys(RunLayout.of(compose_config(overrides)))


def camera_names(given: Mapping[str, str]) -> list[str]:
    """The cameras that the argument `cameras` names, in its order."""
    return [name.strip() for name in given.get("cameras", "").split(",") if name.strip()]


def _address(service: str, port_base: int) -> str:
    """On loopback, with the ports' places relative to each other as in the service table."""
    return f"tcp://127.0.0.1:{port_base + SERVICES[service].default_port - SERVICES['robot.request'].default_port}"


# ---- launch actions ---------------------------------------------------------------------------------------------


def declared(*names: str) -> list[Any]:
    """The declarations of these arguments, at the head of a launch file."""
    from launch.actions import DeclareLaunchArgument

    return [
        DeclareLaunchArgument(
            name,
            default_value=ARGUMENTS[name].default,
            description=ARGUMENTS[name].description,
            choices=list(ARGUMENTS[name].choices) or None,
        )
        for name in names
    ]


def stack_process(*words: str, more: Sequence[Sequence[Any]] = ()) -> Any:
    """One process, `robot-stack <words>`, which is started again if it dies.

    Not so after it ended with success, or said that its configuration or installation is wrong: that needs a person.
    `more`: overrides of this process alone, each a list of strings and substitutions.
    """
    from launch.actions import OpaqueFunction

    def start(context: Any) -> list[Any]:
        overrides = [_performed(context, one) for one in more]
        return [_stack_process(words, context.launch_configurations, overrides)]

    return OpaqueFunction(function=start)


def camera_processes() -> Any:
    """One process for each name in the argument `cameras`."""
    from launch.actions import OpaqueFunction

    def start(context: Any) -> list[Any]:
        given = context.launch_configurations
        return [_stack_process(("camera", "--name", name), given) for name in camera_names(given)]

    return OpaqueFunction(function=start)


def included(file: Path, condition: Any = None) -> Any:
    """Another launch file of this folder, with the arguments of this one."""
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    return IncludeLaunchDescription(PythonLaunchDescriptionSource(str(file)), condition=condition)


def switched_on(argument: str) -> Any:
    """The condition that a `true|false` argument is true."""
    from launch.conditions import IfCondition
    from launch.substitutions import LaunchConfiguration

    return IfCondition(LaunchConfiguration(argument))


def vendor_is_simulated() -> Any:
    """The condition that somebody has to play the vendor's side."""
    from launch.conditions import IfCondition
    from launch.substitutions import LaunchConfiguration, PythonExpression

    backend, vendor = LaunchConfiguration("backend"), LaunchConfiguration("vendor")
    return IfCondition(PythonExpression(["'", backend, "' != 'sim' and '", vendor, "' == 'simulated'"]))


def _performed(context: Any, words: Sequence[Any]) -> str:
    from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions

    return str(perform_substitutions(context, normalize_to_list_of_substitutions(words)))


def _stack_process(words: Sequence[str], given: Mapping[str, str], more: Sequence[str] = ()) -> Any:
    overrides = overrides_of(given)
    _make_keys(tuple(overrides))
    return _process("-".join((words[0], *words[2:])), command_line(words, [*overrides, *more]))


def _process(name: str, command: list[str]) -> Any:
    from launch.actions import ExecuteProcess, TimerAction

    def again(event: Any, context: Any) -> list[Any] | None:
        if context.is_shutdown or event.returncode in _NO_USE:
            return None
        return [TimerAction(period=RESTART_PAUSE_S, actions=[_process(name, command)])]

    patience = str(END_PATIENCE_S)
    return ExecuteProcess(cmd=command, name=name, output="screen", sigterm_timeout=patience, on_exit=again)
