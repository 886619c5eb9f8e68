"""The launch files say what they are documented to say, and start what the command line knows."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from robot_stack.apps.cameras import camera_settings
from robot_stack.apps.cli import SUBCOMMANDS, _parse
from robot_stack.apps.connections import robot_client
from robot_stack.apps.keys import VIEWER_KEY, ensure_keys
from robot_stack.apps.launching import ARGUMENTS, command_line, overrides_of
from robot_stack.apps.layout import RunLayout
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import NetworkConfig, StackConfig
from robot_stack.core.errors import ConfigError, RobotStackError
from robot_stack.core.messages import GetState, Lifecycle, RobotState
from robot_stack.transport.services import SERVICES

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
FILES = sorted(LAUNCH.glob("*.launch.py"))
DEFAULTS = {name: argument.default for name, argument in ARGUMENTS.items()}
PATIENCE_S = 60.0


def _documented() -> dict[str, tuple[str, str]]:
    """Argument -> (default, taken by), from the table in docs/ros2.md."""
    text = (ROOT / "docs" / "ros2.md").read_text()
    table = text.split("| argument | default | taken by | meaning |")[1].split("\n\n")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows}


def _declared(file: Path) -> set[str]:
    """The arguments a launch file declares, read without running it."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    declaring = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "declared"]
    return {argument.value for call in declaring for argument in call.args if isinstance(argument, ast.Constant)}


# ---- without ROS 2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_declared_arguments_are_the_documented_ones(file: Path) -> None:
    name = file.name.removesuffix(".launch.py")
    documented = {argument for argument, (_, by) in _documented().items() if by == "all" or name in by.split(", ")}
    assert _declared(file) == documented
    functions = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions == ["generate_launch_description"]


def test_documented_defaults_are_the_real_ones() -> None:
    assert {name: default for name, (default, _) in _documented().items()} == DEFAULTS


def test_folders_named_like_ros_packages_are_no_packages() -> None:
    assert not [name for name in ("launch", "docker") if (ROOT / name / "__init__.py").exists()]


def test_ports_are_the_service_tables(tmp_path: Path) -> None:
    given = DEFAULTS | {"port_base": "9010"}
    config = _composed(command_line(("robot-server",), overrides_of(given)))
    assert _composed(command_line(("robot-server",), overrides_of(DEFAULTS))).network == NetworkConfig()
    moved = 9010 - SERVICES["robot.request"].default_port
    for service, address in (
        ("robot.request", config.network.robot_address),
        ("robot.state", config.network.state_address),
        ("learner.request", config.network.learner_address),
        ("policy.request", config.network.policy_address),
        ("scene.request", config.network.scene_address),
        ("scene.state", config.network.scene_state_address),
    ):
        assert address == f"tcp://127.0.0.1:{SERVICES[service].default_port + moved}"


def test_package_manifest_fits_the_package() -> None:
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{manifest.findtext("version")}"' in project
    assert f'name = "{(manifest.findtext("name") or "").replace("_", "-")}"' in project
    assert manifest.findtext("export/build_type") == "ament_python"
    assert re.fullmatch(r"[^@]+@[^@]+\.[a-z]+", manifest.find("maintainer").get("email", ""))  # type: ignore[union-attr]


def test_setup_installs_every_launch_file_and_colcon_can_read_it() -> None:
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml needs setuptools 77")
    code = (
        "import ast; from distutils.core import run_setup\n"
        "facts = run_setup('setup.py', script_args=['--version'], stop_after='config').__dict__\n"
        "ast.literal_eval(repr(facts['python_requires'])); print(facts['metadata'].name, facts['data_files'])"
    )
    code = "import setuptools; " + code
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name, _, data_files = done.stdout.strip().splitlines()[-1].partition(" ")
    installed = dict(ast.literal_eval(data_files))
    assert name == "robot-stack"
    assert installed["share/robot_stack/launch"] == [f"launch/{file.name}" for file in FILES]
    assert installed["share/ament_index/resource_index/packages"] == ["resource/robot_stack"]
    assert all((ROOT / path).is_file() for paths in installed.values() for path in paths)


# ---- with the packages launch and launch_ros --------------------------------------------------------------------


@pytest.fixture
def ros_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ROS 2's launch, and not our own folder of that name, which Python finds as an empty package.

    Keys are made below the working directory.
    """
    monkeypatch.chdir(tmp_path)
    try:
        import launch_ros

        import launch

        return launch.LaunchDescription and launch_ros and launch
    except (ImportError, AttributeError) as error:
        return pytest.skip(f"ROS 2's launch and launch_ros cannot be imported here: {error}")


def _commands(file: Path, **given: str) -> list[list[str]]:
    """The command lines that a launch file runs with these arguments, in order; nothing is started."""
    from launch.actions import ExecuteProcess
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    from launch.utilities import perform_substitutions

    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations.update(given)
    commands: list[list[str]] = []

    def visit(entity: Any) -> None:
        if isinstance(entity, ExecuteProcess):
            commands.append([perform_substitutions(context, word) for word in entity.cmd])
            return
        for child in entity.visit(context) or ():
            visit(child)

    visit(get_launch_description_from_python_launch_file(str(file)))
    return commands


def _words(command: Sequence[str]) -> list[str]:
    """What stands after the program."""
    return list(command[1:] if Path(command[0]).name == "robot-stack" else command[3:])


def _composed(command: Sequence[str]) -> StackConfig:
    """The configuration that this command line gives, through the command line's own parser."""
    return compose_config(_parse(_words(command)).overrides)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_runs_commands_that_exist(ros_launch: Any, file: Path) -> None:
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(file))
    declared = [entity.name for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    assert set(declared) == _declared(file)
    commands = _commands(file, cameras="front")
    assert commands
    for command in commands:
        if _words(command)[0] not in SUBCOMMANDS:
            pytest.skip(f"this release has no 'robot-stack {_words(command)[0]}'")
        assert _composed(command).robot.name == "franka_0"


@pytest.mark.parametrize(
    ("given", "started"),
    [
        ({}, ["robot-server", "ros2-node"]),
        ({"backend": "ros2"}, ["vendor-sim", "robot-server", "ros2-node"]),
        ({"backend": "ros2", "vendor": "hardware", "ros2_node": "false"}, ["robot-server"]),
        ({"robot": "g1", "backend": "dds", "edge": "true"}, ["vendor-sim", "robot-server", "ros2-node", "edge"]),
        ({"learner": "true", "cameras": "front, wrist"}, ["robot-server", "camera", "camera", "ros2-node", "learner"]),
        ({"teleop": "true"}, ["robot-server", "ros2-node", "teleop"]),
    ],
)
def test_bringup_composes_what_it_is_told(ros_launch: Any, given: dict[str, str], started: list[str]) -> None:
    commands = _commands(LAUNCH / "bringup.launch.py", **given)
    assert [_words(command)[0] for command in commands] == started
    cameras = [words[2] for words in map(_words, commands) if words[:2] == ["camera", "--name"]]
    assert cameras == [name.strip() for name in given.get("cameras", "").split(",") if name]


@pytest.mark.parametrize(
    ("robot", "backend", "task"),
    [("franka", "sim", "pick_cube"), ("franka", "ros2", ""), ("g1", "dds", ""), ("stretch", "ros2", "")],
)
def test_the_robot_server_gets_the_arguments(ros_launch: Any, robot: str, backend: str, task: str) -> None:
    extra = "robot.name=right seed=7"
    given = {"robot": robot, "backend": backend, "task": task, "run": "mine", "port_base": "7810", "config": extra}
    config = _composed(_commands(LAUNCH / "robot_server.launch.py", vendor="hardware", **given)[0])
    assert (config.robot.name, config.seed, config.run, config.backend) == ("right", 7, "mine", backend)
    assert config.vendor == "hardware"
    assert not config.robot.lock_step
    assert config.network.robot_address.endswith(":7810")
    assert task in ("", config.task.name)


def test_the_page_gets_its_own_port_and_the_edge_a_seat() -> None:
    config = compose_config(overrides_of(DEFAULTS | {"teleop": "true", "port_base": "7810"}))
    assert (config.edge.operator, config.teleop.port) == ("seat", 7880)
    assert config.network.seat_address.endswith(":7860") and config.network.seat_state_address.endswith(":7861")
    assert compose_config(overrides_of(DEFAULTS)).edge.operator == "none"


def test_namespaces_keep_robots_apart(ros_launch: Any) -> None:
    for namespace, expected in (("", "/robot_stack"), ("left", "left/robot_stack")):
        words = _words(_commands(LAUNCH / "ros2_node.launch.py", namespace=namespace)[0])
        assert compose_config(_parse(words).overrides).ros2_node.namespace == expected


def test_cameras_get_ports_and_are_shown(ros_launch: Any) -> None:
    extra = "cameras.wrist.driver=sim cameras.front.driver=sim"
    commands = _commands(LAUNCH / "bringup.launch.py", cameras="wrist, front", port_base="7810", config=extra)
    for config in map(_composed, commands):
        addresses = {name: settings.server.address for name, settings in camera_settings(config).items()}
        assert addresses == {"wrist": "tcp://127.0.0.1:7840", "front": "tcp://127.0.0.1:7841"}
        assert config.ros2_node.cameras == addresses


def test_a_wrong_override_starts_nothing(ros_launch: Any) -> None:
    with pytest.raises(ConfigError, match="no configuration key"):
        _commands(LAUNCH / "bringup.launch.py", config="learner.speed=9")


def test_a_wrong_choice_is_refused(ros_launch: Any) -> None:
    with pytest.raises(RuntimeError, match="backend"):
        _commands(LAUNCH / "bringup.launch.py", backend="telepathy")


_SERVICE = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
file, *given = sys.argv[1:]
arguments = [tuple(pair.split(":=", 1)) for pair in given]
source = PythonLaunchDescriptionSource(file)
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


def _state(config: StackConfig) -> RobotState:
    with robot_client(config.network, ensure_keys(RunLayout.of(config)), VIEWER_KEY) as client:
        state = client.request(GetState(), 1.0)
    assert isinstance(state, RobotState)
    return state


def _next_boot(config: StackConfig, before: str) -> RobotState:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(RobotStackError):
            state = _state(config)
            if state.boot != before and state.lifecycle is not Lifecycle.UNCONFIGURED:
                return state
        time.sleep(0.1)
    raise AssertionError(f"no robot server came up within {PATIENCE_S} s")


def _robot_server_pid(launch_pid: int) -> int:
    for process in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launch_pid and b"robot-server" in (process / "cmdline").read_bytes():
                return int(process.name)
    raise AssertionError("launch has no robot server among its children")


def test_a_killed_robot_server_comes_back_inactive(ros_launch: Any, tmp_path: Path) -> None:
    """The real thing: launch runs bringup, the robot server is killed, launch starts it again, Ctrl-C ends all."""
    port_base = 20_000 + (os.getpid() * 100) % 30_000
    extra = f"runs_directory={tmp_path} ros2_node.domain_id={10 + os.getpid() % 80}"
    given = {"run": "launched", "port_base": str(port_base), "config": extra}
    config = _composed(command_line(("robot-server",), overrides_of(DEFAULTS | given)))
    arguments = [f"{name}:={value}" for name, value in given.items()]
    with (tmp_path / "output").open("w+") as output:
        launch = subprocess.Popen(
            [sys.executable, "-c", _SERVICE, str(LAUNCH / "bringup.launch.py"), *arguments],
            cwd=tmp_path,
            env=os.environ | {"ROS_LOG_DIR": str(tmp_path)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            first = _next_boot(config, "")
            os.kill(_robot_server_pid(launch.pid), signal.SIGKILL)
            second = _next_boot(config, first.boot)
            assert second.lifecycle is Lifecycle.INACTIVE
        finally:
            os.killpg(launch.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                launch.wait(30.0)
            launch.kill()
        output.seek(0)
        words = output.read()
    assert launch.returncode == 0, words
    assert "Caught exception" not in words
    with pytest.raises(RobotStackError):
        _state(config)
