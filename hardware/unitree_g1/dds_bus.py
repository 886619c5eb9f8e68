"""The G1's network over DDS, as the robot itself speaks it. Tried against our simulator only, never on hardware."""

from __future__ import annotations

from hardware.unitree_g1 import messages
from hardware.unitree_g1.bus import (
    ARM_COMMAND_TOPIC,
    LOW_STATE_TOPIC,
    SERVICE_DEPTH,
    G1Bus,
    hand_command_topic,
    hand_state_topic,
    request_topic,
    response_topic,
)
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.dds import DdsLink, RawReader, RawWriter
from hardware.unitree_g1.joints import SIDES
from hardware.unitree_g1.rpc import SERVICES
from robot_stack.core.errors import RobotError


class DdsBus(G1Bus):
    """Writers of `rt/arm_sdk`, hand commands and requests; readers of `rt/lowstate`, hand states and responses.

    `watch_commands`: also read `rt/arm_sdk`, for whoever must know what another process last commanded.
    """

    def __init__(self, config: G1BusConfig, *, watch_commands: bool = False) -> None:
        self._config = config
        self._watch_commands = watch_commands
        self._link: DdsLink | None = None
        self._writers: dict[str, RawWriter] = {}
        self._readers: dict[str, RawReader] = {}

    def open(self) -> None:
        if self._link is not None:
            return
        self._link = link = DdsLink(self._config.domain_id, self._config.interface)
        self._writers[ARM_COMMAND_TOPIC] = link.writer(ARM_COMMAND_TOPIC, messages.LOW_COMMAND)
        self._readers[LOW_STATE_TOPIC] = link.reader(LOW_STATE_TOPIC, messages.LOW_STATE)
        if self._watch_commands:
            self._readers[ARM_COMMAND_TOPIC] = link.reader(ARM_COMMAND_TOPIC, messages.LOW_COMMAND)
        for service in SERVICES:
            request, response = request_topic(service), response_topic(service)
            self._writers[request] = link.writer(request, messages.REQUEST, SERVICE_DEPTH)
            self._readers[response] = link.reader(response, messages.RESPONSE, SERVICE_DEPTH)
        for side in SIDES if self._config.hands != "none" else ():
            command, state = hand_command_topic(side), hand_state_topic(side)
            self._writers[command] = link.writer(command, messages.HAND_COMMAND)
            self._readers[state] = link.reader(state, messages.HAND_STATE)

    def close(self) -> None:
        self._writers.clear()
        self._readers.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    def take_low_state(self) -> bytes | None:
        return self._newest(LOW_STATE_TOPIC)

    def take_arm_command(self) -> bytes | None:
        """The newest command of any process; needs `watch_commands`."""
        return self._newest(ARM_COMMAND_TOPIC)

    def take_hand_state(self, side: str) -> bytes | None:
        return self._newest(hand_state_topic(side))

    def send_arm_command(self, cdr: bytes) -> None:
        self._writer(ARM_COMMAND_TOPIC).write(cdr)

    def send_hand_command(self, side: str, cdr: bytes) -> None:
        self._writer(hand_command_topic(side)).write(cdr)

    def send_request(self, service: str, cdr: bytes) -> None:
        self._writer(request_topic(service)).write(cdr)

    def take_responses(self, service: str) -> list[bytes]:
        return self._reader(response_topic(service)).take()

    def _newest(self, topic: str) -> bytes | None:
        samples = self._reader(topic).take()
        return samples[-1] if samples else None

    def _writer(self, topic: str) -> RawWriter:
        if topic not in self._writers:
            raise self._closed(topic)
        return self._writers[topic]

    def _reader(self, topic: str) -> RawReader:
        if topic not in self._readers:
            raise self._closed(topic)
        return self._readers[topic]

    def _closed(self, topic: str) -> RobotError:
        return RobotError(f"the G1's DDS topic '{topic}' is not open; call open() first")
