"""Partitions and bad links between edge and learner, and between edge and robot: short runs of the benchmark's rows.

They run in a process of their own, because they fork.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults.proxy import FAIR, PARTITIONED, Proxy, Weather
from robot_stack.apps.connections import free_network

ROOT = Path(__file__).parents[2]

ROW = """
import sys, tempfile
from pathlib import Path
import msgspec
from tqdm import tqdm
from benchmarks.faults import control, links
tqdm.monitor_interval = 0
with tempfile.TemporaryDirectory() as folder:
    row = {call}
    print(msgspec.json.encode(row).decode())
"""


def row(call: str, timeout_s: float = 150.0) -> dict[str, float | dict[str, int]]:
    command = [sys.executable, "-c", ROW.replace("{call}", call.replace("ROOT", 'Path(folder) / "row"'))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float | dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_steps(steps: object, at_least: int) -> None:
    assert isinstance(steps, dict)
    assert steps["recorded"] >= at_least
    assert steps["acked"] >= steps["recorded"]
    zeros = {name: steps[name] for name in ("lost", "recorded_lost", "duplicates", "corrupt")}
    assert not any(zeros.values()), zeros


def test_the_loop_goes_on_while_the_learner_is_cut_off_and_the_spool_catches_up() -> None:
    found = row("links.partition_learner(ROOT, 0, fair_s=1.0, partition_s=4.0)")
    assert found["steps_waiting"] >= 150  # of the 200 of the partition
    check_steps(found["steps"], at_least=200)
    # Waiting for the network would cost 250 periods at its first time-out; the machine's own share is the witness's.
    assert found["overruns"] <= found["witness_overruns"] + 20
    assert found["catch_up_s"] < 30.0


def test_nothing_acknowledged_is_lost_on_a_link_that_loses_a_third_and_is_slow() -> None:
    found = row("links.loss_learner(ROOT, 0, turns=1, weather_s=5.0)")
    check_steps(found["steps"], at_least=300)
    assert found["p99_change_ms"] - max(0.0, found["witness_p99_change_ms"]) < 500.0  # a time-out takes 5 s


def test_no_late_command_is_executed_on_a_link_that_loses_a_third_and_is_slow() -> None:
    found = row("control.slow_link(ROOT, 0, duration_s=9.0)")
    assert found["flooded"] >= 50
    assert found["executed"] >= 10  # those of the fair weather before
    assert found["flooded_executed_late"] == 0
    assert found["asked_executed_late"] == 0


def test_no_old_command_is_executed_after_short_partitions_of_the_command_link() -> None:
    found = row("control.reconnects(ROOT, 0, 20)")
    assert found["sent"] >= 200
    assert found["executed"] >= 40
    assert found["executed_old"] == 0
    assert found["stops"] >= 5


# ---- the proxy itself ---------------------------------------------------------------------------------------------


class Echo:
    """Sends back what it gets, from a thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            near = self._listener.accept()[0]
            threading.Thread(target=self._answer, args=(near,), daemon=True).start()

    @staticmethod
    def _answer(near: socket.socket) -> None:
        try:
            while data := near.recv(65536):
                near.sendall(data)
        except OSError:
            pass


@pytest.fixture
def proxied() -> Iterator[Callable[[], tuple[Proxy, socket.socket]]]:
    address = free_network().learner_address
    proxy = Proxy(address, Echo().address, seed=1)

    def connect() -> tuple[Proxy, socket.socket]:
        host, port = address.removeprefix("tcp://").split(":")
        link = socket.create_connection((host, int(port)))
        link.settimeout(10.0)
        return proxy, link

    with proxy:
        yield connect


def exchange(link: socket.socket, data: bytes) -> tuple[bytes, float]:
    """What came back, and after how long."""
    begun_s = time.monotonic()
    threading.Thread(target=link.sendall, args=(data,), daemon=True).start()
    back = b""
    while len(back) < len(data):
        back += link.recv(65536)
    return back, time.monotonic() - begun_s


def test_bytes_pass_the_proxy_whole_in_order_and_not_before_their_time(
    proxied: Callable[[], tuple[Proxy, socket.socket]],
) -> None:
    proxy, link = proxied()
    data = bytes(range(256)) * 2000
    assert exchange(link, data)[0] == data
    proxy.set(Weather(delay_s=0.1))
    back, took_s = exchange(link, b"x" * 1000)
    assert (back, took_s >= 0.2) == (b"x" * 1000, True)
    proxy.set(Weather(bandwidth_bytes_s=100_000.0))
    back, took_s = exchange(link, b"y" * 20_000)
    assert (back, took_s >= 0.2) == (b"y" * 20_000, True)


def test_loss_shows_as_delay_and_never_as_other_bytes(proxied: Callable[[], tuple[Proxy, socket.socket]]) -> None:
    proxy, link = proxied()
    proxy.set(Weather(delay_s=0.01, loss=0.5))
    back, took_s = exchange(link, b"z" * 50_000)
    assert back == b"z" * 50_000
    assert proxy.lost_segments > 5
    assert took_s > 0.2  # one retransmission at least


def test_a_partition_holds_everything_back_and_a_cut_resets(
    proxied: Callable[[], tuple[Proxy, socket.socket]],
) -> None:
    proxy, link = proxied()
    exchange(link, b"1")
    proxy.set(PARTITIONED)
    time.sleep(0.1)
    link.settimeout(0.3)
    link.sendall(b"2")
    with pytest.raises(TimeoutError):
        link.recv(1)
    proxy.set(FAIR)
    link.settimeout(5.0)
    assert link.recv(1) == b"2"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        link.recv(1)
