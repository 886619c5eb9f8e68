"""The G1's own services as the simulated robot answers them: locomotion's state machine and the motion switcher."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hardware.unitree_g1.loco import (
    CHECK_MODE,
    FSM_DAMP,
    FSM_WALK,
    FSM_ZERO_TORQUE,
    GET_FSM_ID,
    SET_FSM_ID,
    SET_VELOCITY,
)
from hardware.unitree_g1.rpc import MOTION_SWITCHER, Request, Response

SELECT_MODE = 1002
RELEASE_MODE = 1003
MOTION_SERVICE = "ai"

UNKNOWN_FUNCTION = 3203
BAD_PARAMETER = 3204

# In these states it holds no pose.
LIMP = (FSM_ZERO_TORQUE, FSM_DAMP)


@dataclass(slots=True)
class BaseVelocity:
    """m/s, m/s, rad/s; in force until the simulated time `until_s`."""

    forward_m_s: float = 0.0
    left_m_s: float = 0.0
    turn_rad_s: float = 0.0
    until_s: float = 0.0


class SimulatedServices:
    """`fsm_id`: the locomotion's state. `owner`: the motion service that drives the motors, '' if none does.

    As on the robot, a walking request is not checked: any speed and any duration is taken.
    """

    def __init__(self) -> None:
        self.fsm_id = FSM_WALK
        self.owner = MOTION_SERVICE
        self._velocity = BaseVelocity()

    @property
    def limp(self) -> bool:
        """The robot holds no pose and follows no arm_sdk."""
        return self.fsm_id in LIMP

    def velocity(self, time_s: float) -> tuple[float, float, float]:
        """What the base is told to do at that time: forward, left (m/s), turn (rad/s)."""
        velocity = self._velocity
        if time_s >= velocity.until_s or self.limp:
            return (0.0, 0.0, 0.0)
        return (velocity.forward_m_s, velocity.left_m_s, velocity.turn_rad_s)

    def answer(self, service: str, request: Request, time_s: float) -> Response:
        try:
            parameter = json.loads(request.parameter or "{}")
            code, data = self._call(service, request.api_id, parameter, time_s)
        except (ValueError, KeyError, TypeError):
            code, data = BAD_PARAMETER, ""
        return Response(id=request.id, api_id=request.api_id, code=code, data=data)

    def _call(self, service: str, api_id: int, parameter: dict[str, object], time_s: float) -> tuple[int, str]:
        if service == MOTION_SWITCHER:
            return self._switch(api_id, parameter)
        if api_id == GET_FSM_ID:
            return 0, json.dumps({"data": self.fsm_id})
        if api_id == SET_FSM_ID:
            self.fsm_id = int(str(parameter["data"]))
            return 0, ""
        if api_id == SET_VELOCITY:
            forward, left, turn = (float(speed) for speed in _numbers(parameter["velocity"]))
            duration_s = float(str(parameter.get("duration", 1.0)))
            self._velocity = BaseVelocity(forward, left, turn, time_s + duration_s)
            return 0, ""
        return UNKNOWN_FUNCTION, ""

    def _switch(self, api_id: int, parameter: dict[str, object]) -> tuple[int, str]:
        if api_id == CHECK_MODE:
            return 0, json.dumps({"form": "0", "name": self.owner})
        if api_id == SELECT_MODE:
            self.owner = str(parameter["name"])
            return 0, ""
        if api_id == RELEASE_MODE:
            self.owner = ""
            return 0, ""
        return UNKNOWN_FUNCTION, ""


def _numbers(value: object) -> list[float]:
    if not isinstance(value, list):
        raise TypeError("a list of numbers is needed")
    return [float(each) for each in value]
