"""The keeper: a small process beside the robot server that makes the vendor's side safe when the server dies.

It starts the server as its child and keeps a silent connection of its own to the vendor's side. A server that ends in
order has left its robot safe. One that is killed has not: then the keeper acts, within 200 ms, and ends too. It arms
nothing, and neither does whoever starts both again: a new server begins inactive.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from robot_stack.apps.supervisor import end_with_parent, robot_stack_command
from robot_stack.core.errors import RobotStackError
from robot_stack.core.protocols import SafeState

logger = logging.getLogger(__name__)

WATCH_PERIOD_S = 0.01
SERVER_WAS_KILLED = 75  # above the codes of errors that a restart does not help against
END_PATIENCE_S = 10.0
RETRY_S = 0.5


def keep_robot_server(safe_state: SafeState, overrides: Sequence[str], keep_running: Callable[[], bool]) -> int:
    """Run a robot server until told to end; its exit code, or `SERVER_WAS_KILLED` after the safe state is reached."""
    server = subprocess.Popen(
        robot_stack_command("robot-server", "--unkept", *overrides),
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call; no other thread runs here
    )
    try:
        _connect(safe_state, lambda: keep_running() and server.poll() is None)
        while keep_running() and server.poll() is None:
            safe_state.watch()
            time.sleep(WATCH_PERIOD_S)
        code = _end(server) if server.poll() is None else server.returncode
        if code >= 0:
            return code
        logger.error("the robot server was killed (signal %d): making the vendor's side safe", -code)
        began_s = time.monotonic()
        safe_state.make_safe()
        logger.error(
            "the vendor's side is safe after %.0f ms; look at the robot before you activate it again",
            (time.monotonic() - began_s) * 1e3,
        )
        return SERVER_WAS_KILLED
    finally:
        if server.poll() is None:
            _end(server)
        safe_state.close()


def _connect(safe_state: SafeState, keep_trying: Callable[[], bool]) -> None:
    """Connect while the server does the same: whichever finds nobody says so, and the server gives up first."""
    while keep_trying():
        try:
            safe_state.connect()
            return
        except RobotStackError as error:
            logger.warning("the keeper is not connected to the vendor's side yet: %s", error)
            time.sleep(RETRY_S)


def _end(server: subprocess.Popen[bytes]) -> int:
    """Ask the server to end, which leaves its robot safe; wait for it."""
    server.send_signal(signal.SIGTERM)
    try:
        return server.wait(END_PATIENCE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()
