"""`robot-stack teleop`: the operator's page, before the robots of one or several runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from robot_stack.apps.cameras import camera_settings
from robot_stack.apps.keys import OPERATOR_KEY, ROBOT_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.skeletons import skeleton_of
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import StackConfig
from robot_stack.core.clock import NS_PER_S
from robot_stack.core.errors import RobotStackError
from robot_stack.edge.watch import EdgeStatus, read_status
from robot_stack.learner.metrics import MetricsLine, read_metrics
from robot_stack.teleop.config import CameraSource, RobotStatus, TeleopConfig, TeleopRobot
from robot_stack.teleop.devices.settings import device_settings
from robot_stack.teleop.server import TeleopServer

READ_EVERY_S = 1.0
CURVE_POINTS = 120
POLL_S = 0.2


def run_teleop(overrides: Sequence[str], keep_running: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """Serve the page until told to end. New tokens are shown once, on standard output."""
    config = compose_config(overrides)
    robots = robots_of(config, overrides)
    server = TeleopServer(
        teleop_config(config, robots), {name: StatusReader(robot).read for name, robot in robots.items()}
    )
    with server:
        for user, token in server.new_tokens.items():
            sys.stdout.write(f"token of '{user}', shown this once: {token}\n")
        sys.stdout.write(f"the operator's page is at {server.url}\n")
        sys.stdout.flush()
        while keep_running():
            sleep(POLL_S)


def robots_of(config: StackConfig, overrides: Sequence[str]) -> dict[str, StackConfig]:
    """Each tab's configuration, by the name on the tab."""
    if not config.teleop.robots:
        return {config.robot.name: config}
    return {name: compose_config((*overrides, *own.split())) for name, own in config.teleop.robots.items()}


def teleop_config(config: StackConfig, robots: dict[str, StackConfig]) -> TeleopConfig:
    settings = config.teleop
    return TeleopConfig(
        robots=tuple(_robot(name, robot) for name, robot in robots.items()),
        directory=settings.directory,
        host=settings.host,
        port=settings.port,
        host_names=settings.host_names,
        tls=settings.tls,
        camera_rate_hz=settings.camera_rate_hz,
        devices=tuple(device_settings(name, given) for name, given in settings.devices.items()),
    )


def _robot(name: str, config: StackConfig) -> TeleopRobot:
    layout, network = RunLayout.of(config), config.network
    ensure_keys(layout)
    return TeleopRobot(
        name=name,
        seat_address=network.seat_address,
        seat_state_address=network.seat_state_address,
        robot_address=network.robot_address,
        state_address=network.state_address,
        keys_directory=str(layout.keys),
        cameras=_cameras(config),
        skeleton=skeleton_of(config),
        operator_key=OPERATOR_KEY,
        edge_key=layout.edge_name,
        robot_key=ROBOT_KEY,
    )


def _cameras(config: StackConfig) -> tuple[CameraSource, ...]:
    """Camera processes, and in simulation the one that the robot server renders for people to look at."""
    found = {
        name: CameraSource(name=name, address=camera.server.address) for name, camera in camera_settings(config).items()
    }
    rendered = (*config.robot.cameras, *config.robot.view_cameras) if config.backend == "sim" else ()
    for name in rendered:
        found.setdefault(name, CameraSource(name=name))
    return tuple(found.values())


class StatusReader:
    """What a run's folder says of its edge and its learner, read once a second at most."""

    def __init__(self, config: StackConfig) -> None:
        self._layout = RunLayout.of(config)
        self._next_s = 0.0
        self._status: RobotStatus | None = None

    def read(self) -> RobotStatus | None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + READ_EVERY_S
            try:
                self._status = self._read()
            except RobotStackError:
                self._status = None
        return self._status

    def _read(self) -> RobotStatus:
        lines = read_metrics(self._layout.metrics)
        status = _of_edge(read_status(self._layout.edge / "status.json"))
        return status if not lines else replace(status, **_of_learner(lines))


def _of_edge(status: EdgeStatus | None) -> RobotStatus:
    if status is None:
        return RobotStatus()
    gauges = status.gauges
    return RobotStatus(
        age_s=(time.monotonic_ns() - status.stamp_ns) / NS_PER_S,
        alarms=tuple(alarm.message for alarm in status.alarms),
        steps_kept=status.steps_kept,
        steps_waiting=status.steps_waiting,
        steps_dropped=status.steps_dropped,
        spool_bytes=status.spool_bytes,
        spool_capacity_bytes=status.spool_capacity_bytes,
        disk_free_bytes=status.disk_free_bytes,
        jitter_ms=gauges.period_jitter_ms.p99,
        inference_ms=(gauges.inference_ms.p50, gauges.inference_ms.p99),
        observation_age_ms=max((spread.p50 for spread in gauges.age_ms.values()), default=-1.0),
    )


def _of_learner(lines: Sequence[MetricsLine]) -> dict[str, object]:
    newest = lines[-CURVE_POINTS:]
    names = list(newest[-1].metrics)[:4]
    curves = {name: tuple(line.metrics[name] for line in newest if name in line.metrics) for name in names}
    return {"updates": newest[-1].updates, "weights_version": newest[-1].weights_version, "curves": curves}
