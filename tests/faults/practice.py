"""Practice of a small run under a supervisor, with kills on the way: shared by the fault tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from robot_stack.apps.connections import learner_client
from robot_stack.apps.keys import VIEWER_KEY
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.core.errors import TransportError
from robot_stack.core.messages import GetProgress, LearnerProgress
from robot_stack.transport.keys import KeyStore
from tests.system.conftest import SmallRun

Kill = tuple[int, str]
"""(when so many steps are durable, this process is killed)"""


def practise(
    run: SmallRun, overrides: Sequence[str], kills: Sequence[Kill], timeout_s: float = 180.0
) -> dict[str, int]:
    """Run robot server, learner and edge to the end of the practice; the restarts of each."""
    todo = list(kills)
    deadline = time.monotonic() + timeout_s
    keys = KeyStore(run.root / "keys")
    with (
        Supervisor(run.root / "logs", announce=print) as supervisor,
        learner_client(run.network, keys, VIEWER_KEY) as client,
    ):
        for name in ("robot-server", "learner", "edge"):
            supervisor.start(name, robot_stack_command(name, *run.overrides(*overrides)))
        while time.monotonic() < deadline:
            supervisor.watch()
            try:
                progress = client.request(GetProgress(), timeout_s=1.0)
            except TransportError:
                continue
            assert isinstance(progress, LearnerProgress)
            if todo and progress.durable_steps >= todo[0][0]:
                os.kill(supervisor.pid(todo.pop(0)[1]), signal.SIGKILL)
            if progress.finished and supervisor.finished("edge"):
                assert not todo, f"the run ended before these kills: {todo}"
                return supervisor.restarts()
            time.sleep(0.02)
    raise AssertionError(f"the practice did not end within {timeout_s:.0f} s; logs are in {run.root / 'logs'}")
