"""`robot-stack operate`: what a person does to a robot by hand, with the operator's key."""

from __future__ import annotations

import sys

from robot_stack.apps.connections import robot_client
from robot_stack.apps.keys import OPERATOR_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import StackConfig
from robot_stack.core.messages import GetState, Lifecycle, RobotState, StopLevel, StopRobot, Transition

TIMEOUT_S = 2.0
STOPS = {"stop": StopLevel.HOLD, "release": StopLevel.RELEASE, "emergency-stop": StopLevel.EMERGENCY}


def operate(config: StackConfig, action: str) -> int:
    """Do it and print the robot's state afterwards."""
    keys = ensure_keys(RunLayout.of(config))
    with robot_client(config.network, keys, OPERATOR_KEY) as client:
        if action in STOPS:
            client.request(StopRobot(reason=f"robot-stack operate {action}", level=STOPS[action]), TIMEOUT_S)
        else:
            target = Lifecycle.ACTIVE if action == "activate" else Lifecycle.INACTIVE
            client.request(Transition(session="", target=target), TIMEOUT_S)
        state = client.request(GetState(), TIMEOUT_S)
    if isinstance(state, RobotState):
        fault = f", fault: {state.fault}" if state.fault else ""
        sys.stdout.write(f"{config.robot.name} is {state.lifecycle.value}{fault}\n")
    return 0
