"""The G1's DDS link at its own rates: `python -m benchmarks.g1_dds [--quick] [--seed N]`.

Two processes on the loopback interface. One stands for the robot: a LowState every 2 ms. The other stands for the
driver: at every 2 ms it takes the newest state, checks it, and sends a LowCmd that carries its tick. Both run on a
fixed grid like the real ones, so an echo waits up to one period for the driver's next turn. Then, in one process, our
codec against CycloneDDS's stock serialisation of the same messages, as medians over interleaved rounds. The last line
is one JSON object. Absolute figures belong to this machine, the ratios travel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from hardware.unitree_g1 import messages
from hardware.unitree_g1.bus import ARM_COMMAND_TOPIC, LOW_STATE_TOPIC
from hardware.unitree_g1.codec import MOTORS, LowCommand, LowState
from hardware.unitree_g1.dds import DdsLink, stock_type
from robot_stack.core.clock import Pacer

RATE_HZ = 500.0
PERIOD_S = 1.0 / RATE_HZ
# The robot looks for commands this long after each state, so often. What comes later waits for the next period.
LOOKING_S = 0.6 * PERIOD_S
BETWEEN_LOOKS_S = 0.1 * PERIOD_S
WARM_UP_S = 1.0
DEPTH = 256


class Counter:
    """Counts messages by the running number they carry; what is missing in between is lost."""

    def __init__(self) -> None:
        self.received = 0
        self.lost = 0
        self._last: int | None = None

    def take(self, number: int) -> None:
        if self._last is not None:
            self.lost += number - self._last - 1
        self._last = number
        self.received += 1


def spread(values: list[float], unit: float, digits: int = 1) -> dict[str, float]:
    """p50, p99 and maximum, in units."""
    p50, p99, highest = np.percentile(values, [50, 99, 100]) / unit
    return {"p50": round(float(p50), digits), "p99": round(float(p99), digits), "max": round(float(highest), digits)}


def period_errors(pacer: Pacer) -> dict[str, float]:
    """How far the loop's periods were from 2 ms, in us."""
    return spread([abs(period_s - PERIOD_S) for period_s in pacer.periods_s()], 1e-6)


def run_driver(domain_id: int, seconds: float) -> dict[str, object]:
    """Answers every 2 ms with a command that carries the newest state's tick, and its own number."""
    link = DdsLink(domain_id, "lo")
    states = link.reader(LOW_STATE_TOPIC, messages.LOW_STATE, DEPTH)
    commands = link.writer(ARM_COMMAND_TOPIC, messages.LOW_COMMAND)
    command, counter, damaged = LowCommand(), Counter(), 0
    work_s: list[float] = []
    pacer = Pacer(PERIOD_S, history=10**6)
    for number in range(round((seconds + 2 * WARM_UP_S) * RATE_HZ)):
        pacer.wait()
        started = time.perf_counter()
        for cdr in states.take():
            state = LowState(cdr)
            damaged += not state.crc_is_good()
            counter.take(state.tick)
            command.motor["q"] = state.motor["q"]
            command.record["reserve"][0] = state.tick
        command.record["reserve"][1] = number
        commands.write(command.seal())
        work_s.append(time.perf_counter() - started)
    return {
        "states_received": counter.received,
        "states_lost": counter.lost,
        "states_damaged": damaged,
        "command_period_error_us": period_errors(pacer),
        "turn_us": spread(work_s, 1e-6),
        "overruns": pacer.overruns,
    }


def run_robot(domain_id: int, seconds: float, seed: int) -> dict[str, object]:
    """Publishes states every 2 ms, looks for commands all the while, and measures the echo of every tick."""
    link = DdsLink(domain_id, "lo")
    states = link.writer(LOW_STATE_TOPIC, messages.LOW_STATE)
    commands = link.reader(ARM_COMMAND_TOPIC, messages.LOW_COMMAND, DEPTH)
    rng = np.random.default_rng(seed)
    state, counter, damaged = LowState(), Counter(), 0
    sent_s: dict[int, float] = {}
    echo_s: list[float] = []
    pacer = Pacer(PERIOD_S, history=10**6)
    for tick in range(1, round(seconds * RATE_HZ) + 1):
        pacer.wait()
        state.motor["q"] = rng.normal(0.0, 1.0, MOTORS)
        state.record["tick"] = tick
        cdr = state.seal()
        sent_s[tick] = started = time.perf_counter()
        states.write(cdr)
        while (left_s := started + LOOKING_S - time.perf_counter()) > 0.0:
            time.sleep(min(left_s, BETWEEN_LOOKS_S))
            for received in commands.take():
                command = LowCommand(received)
                damaged += not command.crc_is_good()
                counter.take(int(command.record["reserve"][1]))
                echoed_s = sent_s.pop(int(command.record["reserve"][0]), None)
                if echoed_s is not None:
                    echo_s.append(time.perf_counter() - echoed_s)
    elapsed_s = sum(pacer.periods_s())
    return {
        "state_rate_hz": round((pacer.ticks - 1) / elapsed_s, 2),
        "state_period_error_us": period_errors(pacer),
        "command_rate_hz": round((counter.received - 1) / elapsed_s, 2),
        "commands_lost": counter.lost,
        "commands_damaged": damaged,
        "echo_ms": spread(echo_s, 1e-3, 3),
        "robot_overruns": pacer.overruns,
    }


def timed_us(action: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - started) / repeats * 1e6


def measure_codec(seed: int, rounds: int) -> dict[str, float]:
    """us per message: a LowCmd from arrays to bytes, a LowState from bytes to arrays, ours and the stock way."""
    rng = np.random.default_rng(seed)
    q, dq = rng.normal(0.0, 1.0, (2, MOTORS)).astype(np.float32)
    command, state = LowCommand(), LowState()
    state.motor["q"], state.motor["dq"] = q, dq
    state_cdr = state.seal()
    stock_command = stock_type(messages.LOW_COMMAND).deserialize(bytes(command.cdr))
    stock_state = stock_type(messages.LOW_STATE)

    def encode() -> bytes:
        command.motor["q"], command.motor["dq"] = q, dq
        return bytes(command.cdr)

    def encode_stock() -> bytes:
        for motor, position, velocity in zip(stock_command.motor_cmd, q.tolist(), dq.tolist(), strict=True):
            motor.q, motor.dq = position, velocity
        return bytes(stock_command.serialize())

    def decode() -> object:
        motor = LowState(state_cdr).motor
        return motor["q"].astype(np.float64), motor["dq"].astype(np.float64)

    def decode_stock() -> object:
        motors = stock_state.deserialize(state_cdr).motor_state
        return np.array([motor.q for motor in motors]), np.array([motor.dq for motor in motors])

    actions: dict[str, tuple[Callable[[], object], int]] = {
        "encode_command_us": (encode, 500),
        "encode_command_stock_us": (encode_stock, 20),
        "decode_state_us": (decode, 500),
        "decode_state_stock_us": (decode_stock, 20),
        "crc_command_us": (command.expected_crc, 500),
        "crc_state_us": (state.expected_crc, 500),
    }
    samples: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, (action, repeats) in actions.items():
            samples[name].append(timed_us(action, repeats))
    result = {name: round(statistics.median(values), 2) for name, values in samples.items()}
    result["encode_stock_over_ours"] = round(result["encode_command_stock_us"] / result["encode_command_us"], 1)
    result["decode_stock_over_ours"] = round(result["decode_state_stock_us"] / result["decode_state_us"], 1)
    return result


def measure_link(seconds: float, seed: int) -> dict[str, object]:
    domain_id = 100 + os.getpid() % 100
    command = [sys.executable, "-m", "benchmarks.g1_dds", "--driver", str(domain_id), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        time.sleep(WARM_UP_S)
        robot = run_robot(domain_id, seconds, seed)
        answer, _ = driver.communicate(timeout=60.0)
    return robot | json.loads(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 s instead of 60 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="of the link; 0: as --quick says")
    parser.add_argument("--driver", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = options.seconds or (10.0 if options.quick else 60.0)
    if options.driver >= 0:
        print(json.dumps(run_driver(options.driver, seconds)))
        return
    link = measure_link(seconds, options.seed)
    codec = measure_codec(options.seed, 10 if options.quick else 50)
    for name, figure in (link | codec).items():
        print(f"{name}: {figure}")
    print(json.dumps({"benchmark": "g1_dds", "seed": options.seed, "seconds": seconds, **link, **codec}))


if __name__ == "__main__":
    main()
