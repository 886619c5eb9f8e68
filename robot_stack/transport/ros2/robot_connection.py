"""The ROS 2 node's connections to one robot server: it watches with one key and operates with another.

Used from one thread. No error of the server or of the link leaves `poll` and `refresh`: it is kept in `problem`, in
words, and the next call tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from robot_stack.core.clock import NS_PER_S
from robot_stack.core.errors import AuthenticationError, MessageError, RobotStackError, TransportError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    GetDiagnostics,
    Hello,
    Ping,
    Pong,
    RobotDiagnostics,
    RobotInfo,
    RobotReply,
    RobotRequest,
    RobotState,
)
from robot_stack.transport.client import RequestClient
from robot_stack.transport.ros2.conversions import RosTime
from robot_stack.transport.stream import Subscriber

WATCH_TIMEOUT_S = 0.3
OPERATE_TIMEOUT_S = 2.0
LOST_AFTER_S = 1.0
PEER = "ros2-node"


class RobotConnection:
    """What is known of the robot server, and asking it for something.

    Attributes:
        info: of the server's present boot; None while it is not known.
        state: the newest state, and `received_ns`, when it arrived (monotonic); -1 before the first.
        states: how many arrived.
        diagnostics: the newest answer of the present boot, or None.
        problem: what is wrong with the connection, in words, or ''.
    """

    def __init__(
        self,
        watcher: RequestClient[RobotReply],
        states: Subscriber[RobotState],
        operator: Callable[[], RequestClient[RobotReply]] | None,
        ros_time: RosTime,
    ) -> None:
        self._watcher = watcher
        self._states = states
        self._make_operator = operator
        self._operator: RequestClient[RobotReply] | None = None
        self._open = ExitStack()
        self._ros_time = ros_time
        self.info: RobotInfo | None = None
        self.state: RobotState | None = None
        self.received_ns = -1
        self.states = 0
        self.diagnostics: RobotDiagnostics | None = None
        self.problem = "no contact yet"

    def __enter__(self) -> RobotConnection:
        self._open.enter_context(self._watcher)
        self._open.enter_context(self._states)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._operator = None

    # ---- watching -----------------------------------------------------------------------------------------------

    @property
    def state_age_s(self) -> float:
        """Since the newest state arrived; infinite before the first."""
        return (time.monotonic_ns() - self.received_ns) / NS_PER_S if self.received_ns >= 0 else float("inf")

    @property
    def alive(self) -> bool:
        """States arrive, and the server's description is known."""
        return self.info is not None and self.state is not None and self.state_age_s < LOST_AFTER_S

    def poll(self, timeout_s: float) -> RobotState | None:
        """The newest state that was not returned yet; waits up to `timeout_s` for one."""
        try:
            state = self._states.newest(timeout_s)
        except (AuthenticationError, MessageError, TransportError) as error:
            self.problem = str(error)
            time.sleep(timeout_s)
            return None
        return state if state is not None and self.take(state) else None

    def take(self, state: RobotState) -> bool:
        """Keep a state, unless a newer one of the same boot is known already."""
        if self.state is not None and state.boot == self.state.boot and state.seq <= self.state.seq:
            return False
        if self.info is not None and state.boot != self.info.boot:
            self._forget()
        self.state = state
        self.received_ns = time.monotonic_ns()
        self.states += 1
        return True

    def refresh(self) -> None:
        """Ask the server who it is (once per boot), for its clock and for its diagnostics."""
        try:
            if self.info is None:
                self._greet()
            self._ping()
            diagnostics = self._watcher.request(GetDiagnostics(), WATCH_TIMEOUT_S)
        except RobotStackError as error:
            self.problem = str(error)
            if not self.alive:
                self._forget()
            return
        if isinstance(diagnostics, RobotDiagnostics):
            self.diagnostics = diagnostics
        self.problem = "" if self.alive else self._silence()

    def _greet(self) -> None:
        reply = self._watcher.greet(Hello(schema_version=SCHEMA_VERSION, peer=PEER), WATCH_TIMEOUT_S)
        if not isinstance(reply, RobotInfo):
            raise MessageError(f"the robot server answered a greeting with {type(reply).__name__}")
        self._ros_time.forget_server()
        self.info = reply

    def _ping(self) -> None:
        sent_ns = time.monotonic_ns()
        reply = self._watcher.request(Ping(), WATCH_TIMEOUT_S)
        if isinstance(reply, Pong):
            self._ros_time.ping(sent_ns, reply.stamp_ns, time.monotonic_ns())

    def _silence(self) -> str:
        if self.info is not None and self.info.lock_step:
            return "the server runs in lock-step and publishes no states; start it with robot.lock_step=false"
        return "the server answers, and no state arrives; is network.state_address right?"

    def _forget(self) -> None:
        self.info = None
        self.diagnostics = None

    # ---- operating ----------------------------------------------------------------------------------------------

    def operate(self, request: RobotRequest) -> RobotReply:
        """Send a request with the operator's key and return the answer.

        Raises:
            RobotStackError: no such key here, nobody answers, or the server refused; the message says which.
        """
        if self._operator is None:
            if self._make_operator is None:
                raise AuthenticationError(
                    "this ROS 2 node only watches: it was started without an operator's key; set ros2_node.operator_key"
                )
            self._operator = self._open.enter_context(self._make_operator())
        return self._operator.request(request, OPERATE_TIMEOUT_S)
