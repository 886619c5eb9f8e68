"""A teleop server in a process of its own, to be killed: `python -m tests.faults.teleop_process CONFIG`, as JSON."""

from __future__ import annotations

import json
import signal
import sys

import msgspec

from robot_stack.teleop.config import TeleopConfig
from robot_stack.teleop.server import TeleopServer


def main() -> None:
    config = msgspec.json.decode(sys.argv[1], type=TeleopConfig)
    with TeleopServer(config) as server:
        print(json.dumps({"url": server.url, "tokens": server.new_tokens}), flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
