"""The safe state of a Stretch behind stretch_ros2's driver node: base at rest, joints where they are, streaming off.

The vendor's side holds the last streamed pose by itself and its base stops 0.5 s after the last velocity command; this
stops both at once and closes the door that the dead robot server left open. It presses no run-stop, which would cut
the motors of whatever the robot is doing, and never arms anything.
"""

from __future__ import annotations

from hardware.stretch import ros2_names as names
from hardware.stretch.config import StretchRos2Config
from hardware.stretch.ros2_node import StretchNode
from robot_stack.core.errors import RobotError
from robot_stack.core.protocols import SafeState

NODE_NAME = "robot_stack_safe_state"
ANSWER_TIMEOUT_S = 0.3
ATTEMPTS = 16


class StretchRos2SafeState(SafeState):
    """A `SafeState`: silent until `make_safe`. Its clients are matched in `connect`, so that the first effect is not
    held up by discovery."""

    def __init__(self, config: StretchRos2Config) -> None:
        self._node = StretchNode(NODE_NAME, config, listens=False)

    def connect(self) -> None:
        """UnreachableError names the topics and services of the driver node that are missing."""
        self._node.open()
        try:
            self._node.wait_until_ready()
        except Exception:
            self._node.close()
            raise

    def watch(self) -> None:
        self._node.spin()

    def make_safe(self) -> None:
        """Connects first where that has not been done. RobotError if the driver node does not answer within 5 s."""
        if not self._node.is_open:
            self.connect()
        for attempt in range(1, ATTEMPTS + 1):
            self._node.send_base_velocity(0.0, 0.0)
            asked = [self._node.ask(names.STOP_THE_ROBOT), self._node.ask(names.DEACTIVATE_STREAMING)]
            try:
                self._node.wait_for_answers(asked, ANSWER_TIMEOUT_S)
                return
            except RobotError:
                if attempt == ATTEMPTS:
                    raise

    def close(self) -> None:
        self._node.close()
