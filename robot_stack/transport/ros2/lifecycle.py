"""A ROS 2 lifecycle node that shows the robot server's lifecycle, and passes a person's transitions on to it.

    robot server          lifecycle node
    nobody answers        unconfigured
    unconfigured          unconfigured
    inactive              inactive
    active                active
    fault                 inactive, and an error in /diagnostics

`show` moves the node to where the server is. A transition that somebody asks the node for goes to the server first,
and fails where the server refuses. `shutdown` ends the node, never the server.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from robot_stack.core.errors import RobotError, RobotStackError
from robot_stack.core.messages import Lifecycle
from robot_stack.transport.ros2.link import require_rclpy

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = "unconfigured", "inactive", "active", "finalized"
_SHOWN_AS = {
    Lifecycle.UNCONFIGURED: UNCONFIGURED,
    Lifecycle.INACTIVE: INACTIVE,
    Lifecycle.ACTIVE: ACTIVE,
    Lifecycle.FAULT: INACTIVE,
}
_ORDER = (UNCONFIGURED, INACTIVE, ACTIVE)

AskServer = Callable[[Lifecycle], None]


def lifecycle_node(ask_server: AskServer) -> Callable[..., Any]:
    """What `Ros2Link.open` makes its node with; the node is a `MirrorNode`.

    Args:
        ask_server: carries a person's transition out, and raises RobotStackError, in words, if it cannot.
    """
    require_rclpy()
    from rclpy.lifecycle import LifecycleNode

    node_class = type("LifecycleMirrorNode", (MirrorNode, LifecycleNode), {})
    return partial(node_class, ask_server)


class MirrorNode:
    """What is ours of the node. rclpy's LifecycleNode, the other base class, exists only where rclpy is installed.

    The names of `on_...` and `trigger_...` are rclpy's, the same from Humble on.

    Attributes:
        shown: label of the node's lifecycle state.
    """

    trigger_configure: Callable[[], Any]
    trigger_activate: Callable[[], Any]
    trigger_deactivate: Callable[[], Any]
    trigger_cleanup: Callable[[], Any]
    get_logger: Callable[[], Any]

    def __init__(self, ask_server: AskServer, name: str, **options: Any) -> None:
        self.shown = UNCONFIGURED
        self._ask_server = ask_server
        self._mirroring = False
        make: Any = super().__init__
        make(name, **options)

    def show(self, lifecycle: Lifecycle) -> None:
        """Move to the state that stands for the server's."""
        goal = _SHOWN_AS[lifecycle]
        self._mirroring = True
        try:
            while self.shown not in (goal, FINALIZED):
                before = self.shown
                self._step_towards(goal)
                if self.shown == before:
                    return
        finally:
            self._mirroring = False

    def _step_towards(self, goal: str) -> None:
        up = _ORDER.index(goal) > _ORDER.index(self.shown)
        if self.shown == UNCONFIGURED:
            self.trigger_configure()
        elif self.shown == ACTIVE:
            self.trigger_deactivate()
        elif up:
            self.trigger_activate()
        else:
            self.trigger_cleanup()

    def on_configure(self, state: Any) -> Any:
        return self._arrive(INACTIVE, Lifecycle.INACTIVE)

    def on_activate(self, state: Any) -> Any:
        return self._arrive(ACTIVE, Lifecycle.ACTIVE)

    def on_deactivate(self, state: Any) -> Any:
        return self._arrive(INACTIVE, Lifecycle.INACTIVE)

    def on_cleanup(self, state: Any) -> Any:
        return self._arrive(UNCONFIGURED, Lifecycle.UNCONFIGURED)

    def on_shutdown(self, state: Any) -> Any:
        return self._move(FINALIZED)

    def on_error(self, state: Any) -> Any:
        return self._move(UNCONFIGURED)

    def _arrive(self, label: str, lifecycle: Lifecycle) -> Any:
        if not self._mirroring:
            try:
                self._person_asks(lifecycle)
            except RobotStackError as error:
                self.get_logger().error(f"refused: {error}")
                return self._move(self.shown, refused=True)
        return self._move(label)

    def _move(self, label: str, *, refused: bool = False) -> Any:
        from rclpy.lifecycle import TransitionCallbackReturn

        self.shown = label
        return TransitionCallbackReturn.FAILURE if refused else TransitionCallbackReturn.SUCCESS

    def _person_asks(self, lifecycle: Lifecycle) -> None:
        if self.shown == UNCONFIGURED or lifecycle is Lifecycle.UNCONFIGURED:
            raise RobotError(
                "the robot server is configured by its own start and end, not from ROS 2: robot-stack robot-server"
            )
        self._ask_server(lifecycle)
