"""The G1's locomotion and motion-switcher services, as far as an arm's driver may use them.

Walking is asked for with a duration, which is the vendor's only dead-man's switch: the robot stops by itself when
nobody asks again. The form without an end, which the vendor's own client sends as a day and more, is refused here.
"""

from __future__ import annotations

import json
import math

from hardware.unitree_g1.rpc import MOTION_SWITCHER, SPORT, Call, RequestLink, Response, ServiceCaller
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import RobotError

CHECK_MODE = 1001
GET_FSM_ID = 7001
SET_FSM_ID = 7101
SET_VELOCITY = 7105

FSM_ZERO_TORQUE = 0
FSM_DAMP = 1
FSM_WALK = 500

MAX_SPEED_M_S = 0.3
MAX_TURN_RAD_S = 0.3
MAX_DURATION_S = 0.5

DAMP_TRIES = 10
DAMP_PERIOD_S = 0.1
FSM_PERIOD_S = 0.25
OWNER_PERIOD_S = 1.0
# After so many questions without an answer a service is lost.
LOST_AFTER = 4


def velocity_parameter(forward_m_s: float, left_m_s: float, turn_rad_s: float, duration_s: float) -> dict[str, object]:
    """Parameter of SET_VELOCITY, each speed clipped to its maximum. RobotError for a duration over `MAX_DURATION_S`,
    none, or anything that is not finite."""
    values = (forward_m_s, left_m_s, turn_rad_s, duration_s)
    if not all(math.isfinite(value) for value in values) or not 0.0 < duration_s <= MAX_DURATION_S:
        raise RobotError(
            f"the G1's base was asked to move with (forward, left, turn, duration) = {values}; all must be finite, and "
            f"the duration above 0 and at most {MAX_DURATION_S} s: repeat short requests to go on walking"
        )
    forward, left = (min(max(speed, -MAX_SPEED_M_S), MAX_SPEED_M_S) for speed in (forward_m_s, left_m_s))
    turn = min(max(turn_rad_s, -MAX_TURN_RAD_S), MAX_TURN_RAD_S)
    return {"velocity": [forward, left, turn], "duration": duration_s}


def integer_answer(response: Response) -> int | None:
    """`{"data": n}` of the state-machine queries; None where it says no such thing."""
    value = _json_object(response.data).get("data")
    return value if isinstance(value, int) else None


def motion_owner(response: Response) -> str:
    """Name of the motion service that drives the motors now; '' if none does."""
    return str(_json_object(response.data).get("name", ""))


def _json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


class _Watch:
    """Asks a service the same question again and again. `answer`: the newest; `unanswered`: how often in a row none
    came."""

    def __init__(self, caller: ServiceCaller, api_id: int, period_s: float) -> None:
        self._caller = caller
        self._api_id = api_id
        self._period_ns = s_to_ns(period_s)
        self._asked_ns: int | None = None
        self._call: Call | None = None
        self.answer: Response | None = None
        self.unanswered = 0

    def poll(self, now_ns: int) -> None:
        if self._call is not None and self._call.done:
            response, self._call = self._call.response, None
            if response is not None and response.code == 0:
                self.answer, self.unanswered = response, 0
            else:
                self.unanswered += 1
        due = self._asked_ns is None or now_ns - self._asked_ns >= self._period_ns
        if self._call is None and due:
            self._asked_ns = now_ns
            self._call = self._caller.call(self._api_id, {}, now_ns)


class Loco:
    """Sends without waiting; `poll` at every tick takes the answers and asks again for state and owner."""

    def __init__(self, link: RequestLink) -> None:
        self._sport = ServiceCaller(link, SPORT)
        self._switcher = ServiceCaller(link, MOTION_SWITCHER)
        self._fsm = _Watch(self._sport, GET_FSM_ID, FSM_PERIOD_S)
        self._owner = _Watch(self._switcher, CHECK_MODE, OWNER_PERIOD_S)
        self._damp: Call | None = None
        self._damped_ns: int | None = None

    @property
    def fsm_id(self) -> int | None:
        """State of the robot's own state machine; None until it is known."""
        return integer_answer(self._fsm.answer) if self._fsm.answer is not None else None

    @property
    def owner(self) -> str | None:
        """The motion service that drives the motors, '' if none does; None until it is known."""
        return motion_owner(self._owner.answer) if self._owner.answer is not None else None

    @property
    def silent_service(self) -> str:
        """A service that stopped answering, or ''."""
        if self._fsm.unanswered >= LOST_AFTER:
            return SPORT
        return MOTION_SWITCHER if self._owner.unanswered >= LOST_AFTER else ""

    @property
    def damped(self) -> bool:
        """The robot's state machine holds no pose any more, whoever told it to."""
        return self.fsm_id in (FSM_ZERO_TORQUE, FSM_DAMP)

    @property
    def asking_to_damp(self) -> bool:
        """A request for damping is under way."""
        return self._damp is not None and not self._damp.done

    def poll(self, now_ns: int) -> None:
        self._sport.poll(now_ns)
        self._switcher.poll(now_ns)
        self._fsm.poll(now_ns)
        self._owner.poll(now_ns)

    def damp(self, now_ns: int) -> None:
        """Ask for damping until it is answered. May be called at every tick: it asks again only after the last
        request has ended, and a while later."""
        if self.asking_to_damp:
            return
        if self._damped_ns is None or now_ns - self._damped_ns >= s_to_ns(DAMP_PERIOD_S):
            self._damped_ns = now_ns
            self._damp = self._sport.call(SET_FSM_ID, {"data": FSM_DAMP}, now_ns, tries=DAMP_TRIES)

    def move(self, forward_m_s: float, left_m_s: float, turn_rad_s: float, duration_s: float, now_ns: int) -> Call:
        """See `velocity_parameter`."""
        parameter = velocity_parameter(forward_m_s, left_m_s, turn_rad_s, duration_s)
        return self._sport.call(SET_VELOCITY, parameter, now_ns)

    def stand_still(self, now_ns: int) -> Call:
        return self.move(0.0, 0.0, 0.0, MAX_DURATION_S, now_ns)
