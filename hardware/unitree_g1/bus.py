"""What the G1's driver needs of the robot's network, whichever middleware carries it.

Messages go through as CDR bytes (see `codec`, `rpc`): both middlewares take and give them without decoding.
"""

from __future__ import annotations

from typing import Protocol

LOW_STATE_TOPIC = "rt/lowstate"
ARM_COMMAND_TOPIC = "rt/arm_sdk"
# Answers are few, but several may come between two ticks.
SERVICE_DEPTH = 8


def hand_command_topic(side: str) -> str:
    return f"rt/dex3/{side}/cmd"


def hand_state_topic(side: str) -> str:
    return f"rt/dex3/{side}/state"


def request_topic(service: str) -> str:
    return f"rt/api/{service}/request"


def response_topic(service: str) -> str:
    return f"rt/api/{service}/response"


class G1Bus(Protocol):
    """One connection, on the side of whoever commands the robot. Nothing blocks after `open`.

    Call `take_low_state` at every tick: where a node has to work for its messages, it does so there.
    """

    def open(self) -> None:
        """RobotError or MissingDependencyError says what is missing."""

    def close(self) -> None: ...

    def take_low_state(self) -> bytes | None:
        """The newest state, if one arrived since the last call."""

    def take_hand_state(self, side: str) -> bytes | None: ...

    def send_arm_command(self, cdr: bytes) -> None: ...

    def send_hand_command(self, side: str, cdr: bytes) -> None: ...

    def send_request(self, service: str, cdr: bytes) -> None: ...

    def take_responses(self, service: str) -> list[bytes]:
        """Every response that arrived since the last call, others' included."""
