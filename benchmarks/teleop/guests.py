"""Other pages, in a process of their own: one that hangs, one that floods, ten that watch. Ends when it is killed."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from benchmarks.teleop.page import CAMERA, ROBOT, VALID_S, socket_address
from robot_stack.teleop.config import TeleopConfig
from robot_stack.teleop.pictures import HEADER

KINDS = ("hangs", "floods", "ten_watch")
VIEWERS = 10
FLOOD_TIMES = 5
HANGS_AFTER_S = 0.3
FLOOD_PERIOD_S = 0.01
READY = "ready"


def open_page(url: str, cookie: str) -> connect:
    return connect(
        socket_address(url),
        additional_headers={"Cookie": f"teleop={cookie}"},
        origin=Origin(url.rstrip("/")),
        compression=None,
    )


async def watch(socket: ClientConnection) -> None:
    await socket.send(json.dumps({"type": "watch", "robot": ROBOT, "cameras": [CAMERA]}))
    async for message in socket:
        if isinstance(message, bytes):
            number = HEADER.unpack_from(message)[4]
            await socket.send(json.dumps({"type": "ack", "camera": CAMERA, "number": number}))
        elif '"type":"state"' in message:
            await socket.send(json.dumps({"type": "ack", "number": json.loads(message)["number"]}))


async def view(url: str, cookie: str) -> None:
    async with open_page(url, cookie) as socket:
        await watch(socket)


async def flood(url: str, cookie: str) -> None:
    """Send five times what is allowed; come back as often as it is thrown out."""
    at_once = round(FLOOD_TIMES * TeleopConfig(robots=(), directory="").message_rate_hz * FLOOD_PERIOD_S)
    seq = 0
    while True:
        try:
            async with open_page(url, cookie) as socket:
                while True:
                    for _ in range(at_once):
                        seq += 1
                        await socket.send(_drive(seq))
                    await asyncio.sleep(FLOOD_PERIOD_S)
        except ConnectionClosed:
            continue


def _drive(seq: int) -> str:
    deadline_us = (time.monotonic_ns() + round(VALID_S * 1e9)) // 1000
    return json.dumps(
        {"type": "drive", "robot": ROBOT, "seq": seq, "deadline_us": deadline_us, "intent": "correct", "moves": {}}
    )


async def hang(url: str, cookie: str) -> None:
    """Watch for a moment, then the whole process stands still, with its socket open."""
    async with open_page(url, cookie) as socket:
        task = asyncio.create_task(watch(socket))
        await asyncio.sleep(HANGS_AFTER_S)
        print(READY, flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        await task


async def run(kind: str, url: str, cookie: str) -> None:
    if kind == "hangs":
        await hang(url, cookie)
        return
    print(READY, flush=True)
    if kind == "floods":
        await flood(url, cookie)
    await asyncio.gather(*(view(url, cookie) for _ in range(VIEWERS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("url")
    parser.add_argument("cookie")
    options = parser.parse_args()
    asyncio.run(run(options.kind, options.url, options.cookie))


if __name__ == "__main__":
    main()
