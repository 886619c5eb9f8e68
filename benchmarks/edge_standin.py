"""Drives a robot server with small motions until killed, or for N steps: `python -m benchmarks.edge_standin KEYS
ROBOT_ADDRESS STATE_ADDRESS [N]`. Prints one line per step: verdict, refusal, age of the state in ms."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from robot_stack.apps.connections import remote_robot
from robot_stack.config.schema import NetworkConfig
from robot_stack.transport.keys import KeyStore


def main() -> None:
    directory, robot_address, state_address, *rest = sys.argv[1:]
    steps = int(rest[0]) if rest else 10**9
    network = NetworkConfig(robot_address=robot_address, state_address=state_address)
    with remote_robot(network, KeyStore(Path(directory))) as robot:
        robot.connect(60.0)
        robot.arm(20.0)
        robot.reset(0)
        upper = robot.spec.action.upper_array()
        for index in range(steps):
            sign = 1.0 if (index // 5) % 2 == 0 else -1.0
            stepped = robot.step((0.4 * sign * upper).astype(np.float32))
            refusal = stepped.result.refusal.value if stepped.result.refusal else "-"
            print(stepped.result.verdict.value, refusal, f"{stepped.age_ns / 1e6:.1f}", flush=True)


if __name__ == "__main__":
    main()
