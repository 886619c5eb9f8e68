"""One rclpy node that its owner's thread drives: nothing happens between two calls of `spin`.

Every link has an rclpy context of its own, so several may live in one process, each in its own domain.
Subscriptions keep the newest message only; a driver reads it when it needs it, with the time it arrived.

The message packages come with ROS 2 on a robot PC, or from PyPI (`ros-sensor-msgs`, ...). Where rclpy is missing,
opening a link says what to install.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from robot_stack.core.errors import MissingDependencyError, RobotError, UnreachableError

MessageT = TypeVar("MessageT")

LOOPBACK_ONLY = "LOCALHOST"
WHOLE_SUBNET = "SUBNET"
MAX_CALLBACKS_PER_SPIN = 64
"""Of one topic or service, so that a flood on one cannot hold up its owner's loop."""


def require_rclpy() -> Any:
    """The module rclpy; MissingDependencyError says how to get it."""
    try:
        import rclpy
    except ImportError as error:
        raise MissingDependencyError(
            "rclpy", "ros", "ROS 2 (on a robot PC: source /opt/ros/<distro>/setup.bash)"
        ) from error
    return rclpy


class Newest(Generic[MessageT]):
    """The newest message of one topic. `received_ns`: host monotonic time of its arrival, -1 before the first."""

    def __init__(self) -> None:
        self.message: MessageT | None = None
        self.received_ns = -1
        self.count = 0

    def take(self, message: MessageT) -> None:
        self.message = message
        self.received_ns = time.monotonic_ns()
        self.count += 1

    def clear(self) -> None:
        """Forget the message, so that only one that arrives from now on counts."""
        self.message = None
        self.received_ns = -1


class Ros2Link:
    """A node and its executor. Use as a context manager, or `open` and `close`.

    Args:
        node_name, namespace: of the node; relative topic names are below the namespace.
        domain_id: DDS domain, or None for the environment's ROS_DOMAIN_ID.
        loopback_only: talk to processes of this machine only. ROS 2 has no keys of its own (use SROS2 for that), so
            a wider range is a decision that the configuration makes.
    """

    def __init__(
        self, node_name: str, namespace: str = "", *, domain_id: int | None = None, loopback_only: bool = True
    ) -> None:
        self._node_name = node_name
        self._namespace = namespace
        self._domain_id = domain_id
        self._loopback_only = loopback_only
        self._context: Any = None
        self._executor: Any = None
        self._node: Any = None

    def __enter__(self) -> Ros2Link:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def node(self) -> Any:
        """The rclpy node, for what this class does not offer."""
        if self._node is None:
            raise RobotError(f"the ROS 2 node '{self._node_name}' is not open")
        return self._node

    def open(self, node_class: Any = None) -> None:
        """Create context and node; `node_class` instead of rclpy.node.Node for a lifecycle node."""
        if self._node is not None:
            return
        rclpy = require_rclpy()
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node
        from rclpy.signals import SignalHandlerOptions

        # rclpy offers no other way to choose the discovery range than this variable, read when a context begins.
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = LOOPBACK_ONLY if self._loopback_only else WHOLE_SUBNET
        self._context = rclpy.Context()
        rclpy.init(
            args=[], context=self._context, domain_id=self._domain_id, signal_handler_options=SignalHandlerOptions.NO
        )
        make = node_class or Node
        self._node = make(self._node_name, namespace=self._namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def close(self) -> None:
        """Destroy node and context; harmless if there is none."""
        if self._node is None:
            return
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()
        self._node = self._executor = self._context = None

    def spin(self, timeout_s: float = 0.0) -> None:
        """Take what has arrived; wait up to `timeout_s` for the first of it.

        Callbacks are plain functions of the message. rclpy's executor builds a wait set of everything at every call,
        ten times the price of asking each entity, so it runs only to wait, and for timers.
        """
        taken = self._take_ready()
        if any(True for _ in self.node.timers) or (timeout_s > 0.0 and not taken):
            self._run_executor(0.0 if taken else timeout_s)

    def _take_ready(self) -> bool:
        """Messages of every topic, answers to our calls, requests to our services; True if there was anything."""
        taken = [_drain(_take_message, subscription) for subscription in tuple(self.node.subscriptions)]
        taken += [_drain(_take_answer, client) for client in tuple(self.node.clients)]
        taken += [_drain(_take_request, service) for service in tuple(self.node.services)]
        return any(taken)

    def _run_executor(self, timeout_s: float) -> None:
        from rclpy.executors import TimeoutException

        for _ in range(MAX_CALLBACKS_PER_SPIN):
            try:
                handler, _entity, _node = self._executor.wait_for_ready_callbacks(timeout_sec=timeout_s)
            except TimeoutException:
                return
            handler()
            if handler.exception() is not None:
                raise handler.exception()
            timeout_s = 0.0

    def subscribe_newest(self, message_type: type[MessageT], topic: str, qos: Any) -> Newest[MessageT]:
        """Subscribe; the returned object is updated by `spin`."""
        newest: Newest[MessageT] = Newest()
        self.node.create_subscription(message_type, topic, newest.take, qos)
        return newest

    def call(self, service_type: Any, name: str, request: Any, timeout_s: float) -> Any:
        """Call a service and wait for its answer while spinning. UnreachableError if none comes; blocks, so only for
        opening, closing and what a person asks for."""
        client = self.node.create_client(service_type, name)
        full_name = self.node.resolve_service_name(name)
        deadline = time.monotonic() + timeout_s
        try:
            while not client.service_is_ready():
                self._until(deadline, f"no ROS 2 service '{full_name}' after {timeout_s:g} s; is its node running?")
            future = client.call_async(request)
            while not future.done():
                self._until(deadline, f"the ROS 2 service '{full_name}' did not answer within {timeout_s:g} s")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def wait_for(self, newest: Newest[MessageT], topic: str, timeout_s: float) -> MessageT:
        """Spin until the topic has brought a message; UnreachableError names the topic if none comes."""
        deadline = time.monotonic() + timeout_s
        while newest.message is None:
            self._until(
                deadline, f"nothing arrived on the ROS 2 topic '{topic}' within {timeout_s:g} s; is its node running?"
            )
        return newest.message

    def _until(self, deadline: float, otherwise: str) -> None:
        if time.monotonic() > deadline:
            raise UnreachableError(otherwise)
        self.spin(0.01)


# What rclpy's executor does with an entity that its wait set reports ready, without the wait set.


def _drain(take: Callable[[Any], bool], entity: Any) -> bool:
    for taken in range(MAX_CALLBACKS_PER_SPIN):
        if not take(entity):
            return taken > 0
    return True


def _take_message(subscription: Any) -> bool:
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
    if taken is None:
        return False
    subscription.callback(taken[0])
    return True


def _take_answer(client: Any) -> bool:
    with client.handle:
        header, answer = client.handle.take_response(client.srv_type.Response)
    if header is None:
        return False
    try:
        future = client.get_pending_request(header.request_id.sequence_number)
    except KeyError:  # nobody waits for it any more
        return True
    future.set_result(answer)
    return True


def _take_request(service: Any) -> bool:
    with service.handle:
        request, header = service.handle.service_take_request(service.srv_type.Request)
    if header is None:
        return False
    service.send_response(service.callback(request, service.srv_type.Response()), header)
    return True
