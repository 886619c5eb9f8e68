"""One robot of a cluster on the node that holds it; nothing here knows Ray, and nothing here needs torch."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.apps.build import has_simulated_vendor
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import set_up_logging
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import StorageError
from robot_stack.learner.cluster.nodes import Here

logger = logging.getLogger(__name__)

WATCH_PERIOD_S = 0.2
_READ_BY_EDGE = ("keys", "policy", "robot.json", "demonstrations", "acceleration")


class RobotSettings(Struct, frozen=True, kw_only=True):
    """`overrides`: the robot's configuration, that of the run included. `directory`: where this node keeps what is the
    robot's own (`cluster.robot_directory`), '' for the run's folder."""

    name: str
    overrides: tuple[str, ...]
    directory: str


class FollowLearner(Struct, frozen=True, kw_only=True):
    """To a robot: where the learner is now."""

    address: str


def make_robot(settings: bytes, here: Here) -> RobotService:
    set_up_logging(False)
    return RobotService(msgspec.json.decode(settings, type=RobotSettings), here)


class RobotService:
    """Robot server and edge of one robot, under the usual supervisor; the edge follows the learner to its node."""

    def __init__(self, settings: RobotSettings, here: Here) -> None:
        self._settings, self._here = settings, here
        self._wanted = self._followed = ""
        self._done = False

    def run(self, keep_running: Callable[[], bool]) -> None:
        run_at_normal_priority()
        settings, overrides = self._settings, self._settings.overrides
        config = compose_config(overrides)
        if settings.directory:
            here = Path(settings.directory) / settings.name
            show_run_to_robot(RunLayout.of(config), here / config.run, self._here.address)
            overrides = (*overrides, f"runs_directory={here}")
        logs = RunLayout.of(compose_config(overrides)).logs / settings.name
        with Supervisor(logs, announce=logger.warning) as robot:
            for name in (*(("vendor-sim",) if has_simulated_vendor(config) else ()), "robot-server"):
                robot.start(name, robot_stack_command(name, *overrides))
            while keep_running() and not self._done:
                self._run_edge(robot, logs, overrides, keep_running)

    def _run_edge(
        self, robot: Supervisor, logs: Path, overrides: Sequence[str], keep_running: Callable[[], bool]
    ) -> None:
        """One edge, for as long as the learner stays where it is."""
        self._followed = self._wanted
        with ExitStack() as stack:
            edge = stack.enter_context(Supervisor(logs, announce=logger.warning)) if self._followed else None
            if edge is not None:
                there = f"network.learner_address={self._followed}"
                edge.start("edge", robot_stack_command("edge", *overrides, there))
            while keep_running() and not self._done and self._wanted == self._followed:
                robot.watch()
                if edge is not None:
                    edge.watch()
                    self._done = edge.finished("edge")
                time.sleep(WATCH_PERIOD_S)

    def answer(self, request: bytes) -> bytes:
        self._wanted = msgspec.msgpack.decode(request, type=FollowLearner).address
        return b""

    def describe(self) -> str:
        """The learner that the edge was told of."""
        return self._wanted


def run_at_normal_priority() -> None:
    """Ray makes its workers nice (15), which a control loop must not inherit: undone where the system allows it."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice <= 0:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # of this thread, whose children the robot's processes are
    except PermissionError:
        logger.warning(
            "the robot's processes run at nice %d and will miss their ticks on a busy machine; start this node with "
            "RAY_worker_niceness=0 ray start ...",
            nice,
        )


def show_run_to_robot(run: RunLayout, local: Path, node: str) -> None:
    """A robot's own folder of the run: links to what it reads, beside its own spool and logs.

    Where the run's folder is not to be seen from this node, keys and policy have to lie in `local` already.
    """
    local.mkdir(parents=True, exist_ok=True)
    for name in _READ_BY_EDGE:
        target, link = (run.root / name).absolute(), local / name
        if target.exists() and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    missing = [name for name in ("keys", "policy", "robot.json") if not (local / name).exists()]
    if missing:
        raise StorageError(
            f"node {node} does not see the run's folder {run.root.absolute()}, and {local} has no "
            f"{', '.join(missing)}; mount the folder there, or copy them"
        )
