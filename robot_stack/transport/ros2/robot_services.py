"""The std_srvs/Trigger services of the ROS 2 node, and the lifecycle transitions a person asks it for.

All of them use the operator's key. Nobody authenticates a caller in ROS 2, so nothing here lets a robot move further
than the settings say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from robot_stack.core.errors import CommandRefusedError, RobotStackError
from robot_stack.core.messages import (
    AcquireLease,
    GetDiagnostics,
    GetState,
    Lifecycle,
    ReleaseLease,
    ResetEpisode,
    RobotDiagnostics,
    RobotState,
    StopLevel,
    StopRobot,
    Transition,
)
from robot_stack.transport.ros2.config import Ros2NodeConfig
from robot_stack.transport.ros2.robot_connection import RobotConnection

logger = logging.getLogger(__name__)


class RobotServices:
    """What a person can ask for. Every method returns what was done, in words, or raises RobotStackError."""

    def __init__(self, connection: RobotConnection, settings: Ros2NodeConfig) -> None:
        self._connection = connection
        self._settings = settings

    def offer(self, node: Any) -> None:
        """Create the services on the node."""
        from std_srvs.srv import Trigger

        offered: dict[str, Callable[[], str]] = {
            "stop": lambda: self._stop(StopLevel.HOLD),
            "release": lambda: self._stop(StopLevel.RELEASE),
            "emergency_stop": lambda: self._stop(StopLevel.EMERGENCY),
            "home": self.home,
            "clear_fault": self.clear_fault,
        }
        for name, action in offered.items():
            node.create_service(Trigger, name, _answering(name, action))

    def transition(self, target: Lifecycle) -> None:
        """A lifecycle transition asked of the node."""
        if target is Lifecycle.ACTIVE and not self._settings.allow_activation:
            raise CommandRefusedError(
                "person",
                "activating from ROS 2 is switched off: a person activates the robot beside it (robot-stack operate "
                "activate), or sets ros2_node.allow_activation=true",
            )
        self._connection.operate(Transition(session="", target=target))
        self._newest_state()

    def clear_fault(self) -> str:
        info = self._connection.info
        if not self._settings.allow_activation and (info is None or not info.spec.simulated):
            raise CommandRefusedError(
                "person",
                "clearing a fault from ROS 2 is switched off: a person looks at the robot and clears it beside it "
                "(robot-stack operate clear-fault), or sets ros2_node.allow_activation=true",
            )
        state = self._newest_state()
        if state.lifecycle is not Lifecycle.FAULT:
            raise CommandRefusedError("lifecycle", f"there is no fault to clear: the robot is {state.lifecycle.value}")
        self._connection.operate(Transition(session="", target=Lifecycle.INACTIVE))
        self._newest_state()
        return f"cleared: {state.fault}"

    def home(self) -> str:
        """Put a simulated robot, active and in nobody's hands, back to its start pose and scene."""
        info = self._connection.info
        if info is None:
            raise CommandRefusedError("unreachable", self._connection.problem)
        if not info.spec.simulated:
            raise CommandRefusedError("person", f"{info.spec.name} is no simulation: a person brings it to its start")
        state = self._newest_state()
        if state.lifecycle is not Lifecycle.ACTIVE:
            raise CommandRefusedError("lifecycle", f"{info.spec.name} is {state.lifecycle.value}; activate it first")
        diagnostics = self._connection.operate(GetDiagnostics())
        if not isinstance(diagnostics, RobotDiagnostics) or diagnostics.lease_session:
            holder = diagnostics.lease_session if isinstance(diagnostics, RobotDiagnostics) else "unknown"
            raise CommandRefusedError(
                "no_lease", f"somebody commands {info.spec.name} (session {holder}): stop it first"
            )
        session = f"ros2-{uuid4().hex}"
        self._connection.operate(AcquireLease(session=session))
        try:
            self._connection.operate(ResetEpisode(session=session, seed=max(0, state.episode_seed)))
        finally:
            self._connection.operate(ReleaseLease(session=session))
        return f"{info.spec.name} is in its start pose, episode seed {max(0, state.episode_seed)}"

    def _stop(self, level: StopLevel) -> str:
        self._connection.operate(StopRobot(reason=f"ROS 2 service ({level.value})", level=level))
        return f"the robot server was told to stop: {level.value}"

    def _newest_state(self) -> RobotState:
        """The server's state now; older ones that are still on their way are ignored from here on."""
        state = self._connection.operate(GetState())
        if not isinstance(state, RobotState):
            raise CommandRefusedError("answer", f"the robot server answered with {type(state).__name__}")
        self._connection.take(state)
        return state


def _answering(name: str, action: Callable[[], str]) -> Callable[[Any, Any], Any]:
    """A service callback: the action's words, or why it was refused."""

    def answer(request: Any, response: Any) -> Any:
        try:
            response.message = action()
            response.success = True
        except RobotStackError as error:
            response.message = str(error)
            response.success = False
        logger.info("service '%s': %s", name, response.message)
        return response

    return answer
