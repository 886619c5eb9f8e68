"""The Franka Hand over ROS 2: the vendor's actions, the standard gripper action, or our topic for an adapter node."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from hardware.franka.config import FrankaRos2Config
from hardware.franka.gripper import GRASP_FORCE_N, SPEED_M_S, WidthGoals
from hardware.franka.limits import HAND_MAX_WIDTH_M
from hardware.franka.ros2_names import gripper_stop, gripper_target
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable


class HandInterface(Protocol):
    def offered(self) -> bool:
        """Whether somebody at the other end takes goals."""

    def go(self, width_m: float, *, closing: bool) -> None:
        """Send one goal and do not wait for it."""


class _WidthTopic:
    """Ours: the width as std_msgs/Float64MultiArray, for an adapter node. The simulator has it too."""

    def __init__(self, link: Ros2Link, config: FrankaRos2Config) -> None:
        from std_msgs.msg import Float64MultiArray

        self._type = Float64MultiArray
        self._publisher = link.node.create_publisher(Float64MultiArray, gripper_target(config), newest_reliable())

    def offered(self) -> bool:
        return bool(self._publisher.get_subscription_count() > 0)

    def go(self, width_m: float, *, closing: bool) -> None:
        self._publisher.publish(self._type(data=[width_m]))


class ActionGoals:
    """Sends goals of a ROS 2 action by its goal service alone: nobody here waits for results."""

    def __init__(self, link: Ros2Link, action: Any, name: str) -> None:
        self.goal_type = action.Goal
        self._request = action.Impl.SendGoalService.Request
        self._client = link.node.create_client(action.Impl.SendGoalService, f"{name}/_action/send_goal")

    def ready(self) -> bool:
        return bool(self._client.service_is_ready())

    def send(self, goal: Any) -> None:
        request = self._request()
        request.goal_id.uuid = np.frombuffer(os.urandom(16), dtype=np.uint8)
        request.goal = goal
        self._client.call_async(request)


class _FrankaActions:
    """The vendor's actions: `grasp` to close, with any width as success, and `move` to open."""

    def __init__(self, link: Ros2Link, config: FrankaRos2Config) -> None:
        actions = _actions("franka_msgs", "source the workspace of franka_ros2")
        self._move = ActionGoals(link, actions.Move, f"{config.gripper}/move")
        self._grasp = ActionGoals(link, actions.Grasp, f"{config.gripper}/grasp")

    def offered(self) -> bool:
        return self._move.ready() and self._grasp.ready()

    def go(self, width_m: float, *, closing: bool) -> None:
        if not closing:
            self._move.send(self._move.goal_type(width=width_m, speed=SPEED_M_S))
            return
        goal = self._grasp.goal_type(width=width_m, speed=SPEED_M_S, force=GRASP_FORCE_N)
        goal.epsilon.inner = goal.epsilon.outer = HAND_MAX_WIDTH_M
        self._grasp.send(goal)


class _GripperCommand:
    """control_msgs/GripperCommand; the vendor's node takes the position of one finger, half the width."""

    def __init__(self, link: Ros2Link, config: FrankaRos2Config) -> None:
        actions = _actions("control_msgs", "install ros-<distro>-control-msgs")
        self._goals = ActionGoals(link, actions.GripperCommand, f"{config.gripper}/gripper_action")

    def offered(self) -> bool:
        return self._goals.ready()

    def go(self, width_m: float, *, closing: bool) -> None:
        goal = self._goals.goal_type()
        goal.command.position = width_m / 2
        goal.command.max_effort = GRASP_FORCE_N
        self._goals.send(goal)


_INTERFACES: dict[str, Callable[[Ros2Link, FrankaRos2Config], HandInterface]] = {
    "topic": _WidthTopic,
    "franka_msgs": _FrankaActions,
    "control_msgs": _GripperCommand,
}


def _actions(package: str, advice: str) -> Any:
    """The package's module of actions; RobotError says where it comes from (it is not on PyPI)."""
    try:
        return importlib.import_module(f"{package}.action")
    except ImportError as error:
        raise RobotError(
            f"the ROS 2 package '{package}' is needed for gripper_interface={package} and is missing: {advice}"
        ) from error


class GripperLine:
    """Wanted widths in, few goals out."""

    def __init__(self, link: Ros2Link, config: FrankaRos2Config) -> None:
        from std_srvs.srv import Trigger

        self._interfaces = _make_interfaces(link, config)
        self._interface: HandInterface | None = None
        self._stop_request = Trigger.Request
        self._stop_client = link.node.create_client(Trigger, gripper_stop(config))
        self._goals = WidthGoals()

    @property
    def offers(self) -> str:
        """What was looked for, in words."""
        return ", ".join(self._interfaces)

    def find(self) -> bool:
        """Whether one of the interfaces is there; the first one is used from then on."""
        for interface in self._interfaces.values():
            if self._interface is None and interface.offered():
                self._interface = interface
        return self._interface is not None

    def start(self, measured_m: float) -> None:
        """The hand stays as it is until another width is wanted."""
        self._goals.start(measured_m)

    def want(self, width_m: float, now_ns: int) -> None:
        """Called at every tick with the filtered width."""
        goal = self._goals.next(width_m, now_ns)
        if goal is not None and self._interface is not None:
            self._interface.go(goal[0], closing=goal[1])

    def stop(self) -> None:
        """Ask the hand to stop, where its service is there; does not wait."""
        if self._stop_client.service_is_ready():
            self._stop_client.call_async(self._stop_request())


def _make_interfaces(link: Ros2Link, config: FrankaRos2Config) -> dict[str, HandInterface]:
    kind = config.gripper_interface
    if kind in _INTERFACES:
        return {kind: _INTERFACES[kind](link, config)}
    if kind != "auto":
        known = ", ".join(("auto", *_INTERFACES))
        raise ConfigError(f"the Franka has no gripper_interface '{kind}'; choose one of {known}")
    made: dict[str, HandInterface] = {}
    for name, make in _INTERFACES.items():
        try:
            made[name] = make(link, config)
        except RobotError:
            continue  # its messages are not installed here: nothing to talk to
    return made
