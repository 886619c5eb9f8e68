"""The processes that are measured: robot server, edge, teleop server, and guests."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.teleop.page import log_in
from benchmarks.teleop.taps import Records, read_tap
from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.keys import OPERATOR_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import NetworkConfig
from robot_stack.core.seat import SeatReply, SeatState
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Subscriber

START_S = 90.0
CAMERA_RATE_HZ = 15.0
_URL = re.compile(r"page is at (\S+)")
_TOKEN = re.compile(r"token of '(\w+)', shown this once: (\S+)")


@dataclass(frozen=True, slots=True)
class Site:
    """A simulated Franka on the wall clock, its edge, and a teleop server, all running."""

    root: Path
    network: NetworkConfig
    keys: KeyStore
    edge_key: str
    url: str
    cookie: str

    def robot_records(self) -> Records:
        return read_tap(self.root / "robot.tap")

    def edge_records(self) -> Records:
        return read_tap(self.root / "edge.tap")

    def seat_client(self) -> RequestClient[SeatReply]:
        """Straight to the edge, without a teleop server."""
        return RequestClient(
            SERVICES["seat.request"], self.network.seat_address, self.keys, OPERATOR_KEY, self.edge_key, SeatReply
        )

    @contextmanager
    def guests(self, kind: str) -> Iterator[None]:
        """Other pages of that kind, or none for ''."""
        if not kind:
            yield
            return
        command = [sys.executable, "-m", "benchmarks.teleop.guests", kind, self.url, self.cookie]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            if process.stdout is None or not process.stdout.readline():
                raise SystemExit(f"the guests ({kind}) did not begin")
            yield
        finally:
            process.kill()
            process.wait()


@contextmanager
def running_site(root: Path, seed: int) -> Iterator[Site]:
    """Everything started and moving; all of it ends with the block."""
    network = free_network()
    overrides = [
        "robot=franka",
        "task=peg_insertion",
        "run=teleop",
        f"seed={seed}",
        f"runs_directory={root}",
        "robot.lock_step=false",
        *network_overrides(network),
    ]
    layout = RunLayout.of(compose_config(overrides))
    keys = ensure_keys(layout)
    with Supervisor(root / "logs", announce=lambda _: None) as supervisor:
        for side in ("robot", "edge"):
            module = f"benchmarks.teleop.{side}_side"
            supervisor.start(side, [sys.executable, "-m", module, str(root / f"{side}.tap"), *overrides])
        teleop = [*overrides, "teleop.port=0", f"teleop.directory={root / 'gui'}"]
        supervisor.start("teleop", robot_stack_command("teleop", f"teleop.camera_rate_hz={CAMERA_RATE_HZ}", *teleop))
        log = root / "logs" / "teleop.log"
        _wait(lambda: _URL.search(log.read_text()) is not None, supervisor, "the teleop server")
        words = log.read_text()
        url, tokens = _URL.findall(words)[0], dict(_TOKEN.findall(words))
        seat_state: Subscriber[SeatState] = Subscriber(
            SERVICES["seat.state"], network.seat_state_address, keys, OPERATOR_KEY, layout.edge_name, SeatState
        )
        with seat_state:
            _wait(lambda: _begun(seat_state), supervisor, "the edge's first episode")
        yield Site(root, network, keys, layout.edge_name, url, log_in(url, tokens["operator"]))


def _begun(states: Subscriber[SeatState]) -> bool:
    state = states.newest(0.1)
    return state is not None and bool(state.features)


def _wait(found: Callable[[], bool], supervisor: Supervisor, what: str) -> None:
    until_s = time.monotonic() + START_S
    while not found():
        supervisor.watch()
        if time.monotonic() > until_s:
            raise SystemExit(f"waited {START_S:.0f} s for {what}")
        time.sleep(0.05)
