"""The operator's seat on the edge: what a person at a screen wants, turned into an `Operator` of the control loop.

Two threads meet here. The control loop asks at every step what the person does; the seat's server (`seat_server.py`)
brings what they want. Only the newest wish counts, until its deadline: nothing is queued, so nothing old can run after
a connection comes back. Whatever runs out, is let go or is lost, the robot stands still.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from uuid import uuid4

from msgspec.structs import replace

from robot_stack.core.clock import s_to_ns
from robot_stack.core.messages import Features, FloatArray, Observation, RobotState, Source, Verdict
from robot_stack.core.seat import MAX_VALID_S, Drive, EpisodeRef, Intent, Phase, SeatInfo, SeatState
from robot_stack.core.specs import IMAGES, RobotSpec
from robot_stack.edge.control_loop import EpisodeId, LoopStep
from robot_stack.edge.handling import Handling
from robot_stack.edge.operator import Intervention, Rule
from robot_stack.edge.rewind import Way
from robot_stack.edge.takeover import TakeOver

SILENCE_S = 2.0
"""The seat is free again when its holder was silent for so long."""
BACK_STEPS = 10
"""The suggested place to rewind to lies so many control steps of way behind, at least."""

_SOURCES = {Phase.RECOVERING: Source.HUMAN_RECOVERY, Phase.CORRECTING: Source.HUMAN_CORRECTION}


class SeatLease:
    """Who has the seat. Not thread-safe; the seat holds its lock around it."""

    def __init__(self) -> None:
        self.holder = self.session = ""
        self._heard_ns = 0

    def take(self, holder: str, now_ns: int, *, by_force: bool) -> str:
        """Why the seat is not free, in words, or '': then `session` is new."""
        self.expire(now_ns)
        if self.session and not by_force:
            return f"{self.holder} has the seat; ask them to leave it, or take it by force"
        self.holder, self.session, self._heard_ns = holder, uuid4().hex, now_ns
        return ""

    def keep(self, session: str, now_ns: int) -> bool:
        """A sign of life; False if that session does not have the seat."""
        self.expire(now_ns)
        if not session or session != self.session:
            return False
        self._heard_ns = now_ns
        return True

    def leave(self) -> None:
        self.holder = self.session = ""

    def expire(self, now_ns: int) -> None:
        if self.session and now_ns - self._heard_ns > SILENCE_S * 1e9:
            self.leave()


class Seat:
    """An `Operator` and a `StepObserver`; thread-safe.

    Args:
        familiarity: distance of an observation's features from the demonstrations (`Familiarity`); None: unknown.
        starts_paused: episodes begin with a person at the robot: demonstrations.
    """

    def __init__(
        self,
        spec: RobotSpec,
        rule: Rule,
        run: str,
        *,
        lock_step: bool,
        familiarity: Callable[[Features], float] | None = None,
        starts_paused: bool = False,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._lock = threading.RLock()
        self._spec, self._lock_step, self._now_ns = spec, lock_step, now_ns
        self._familiarity, self._starts_paused = familiarity, starts_paused
        self.handling = Handling(spec)
        self.info = SeatInfo(
            run=run,
            spec=spec,
            lock_step=lock_step,
            rule=rule,
            drivable=self.handling.drivable,
            rewinds=self.handling.rewinds,
        )
        self._way = Way(self.handling)
        self._takeover = TakeOver(rule)
        self.lease = SeatLease()
        self._drive: Drive | None = None
        self._last_seq = -1
        self._acting = Phase.BETWEEN
        self._last_source = Source.HUMAN_RECOVERY
        self._last: FloatArray | None = None
        self._planned: FloatArray | None = None
        self._recorder_session = ""
        self._state = SeatState(boot=uuid4().hex, seq=0, stamp_ns=now_ns(), phase=Phase.BETWEEN, holder="")

    # ---- the server's side -------------------------------------------------------------------------------------

    def take(self, holder: str, *, by_force: bool) -> str:
        """Why the seat cannot be had, in words, or ''. Taking it from somebody pauses the robot."""
        with self._lock:
            refusal = self.lease.take(holder, self._now_ns(), by_force=by_force)
            if not refusal:
                self._forget_drive()
            self._say(holder=self.lease.holder)
            return refusal

    def keep(self, session: str) -> bool:
        with self._lock:
            return self.lease.keep(session, self._now_ns())

    def leave(self, session: str) -> bool:
        """Give the seat back; the robot stands still if it was being driven."""
        with self._lock:
            if not self.lease.keep(session, self._now_ns()):
                return False
            self.lease.leave()
            self._forget_drive()
            self._say(holder="")
            return True

    def drive(self, drive: Drive) -> str:
        """Follow what the person does now; why not, in words, or ''."""
        with self._lock:
            refusal = self._refusal(drive) or self._takeover.ask(drive.intent)
            if not refusal:
                self._drive = drive if drive.intent in (Intent.REWIND, Intent.RECOVER, Intent.CORRECT) else None
                if drive.intent is not Intent.REWIND:
                    self._way.stop()
            self._say(refusal=refusal, phase=self._takeover.phase)
            return refusal

    def _refusal(self, drive: Drive) -> str:
        now_ns = self._now_ns()
        if not self.lease.keep(drive.session, now_ns):
            return f"{self.lease.holder or 'nobody'} has the seat; take it first"
        if drive.seq <= self._last_seq:
            return f"command {drive.seq} came after {self._last_seq}: it is old, and dropped"
        self._last_seq = drive.seq
        if drive.deadline_ns <= now_ns:
            return f"the command was {(now_ns - drive.deadline_ns) / 1e6:.0f} ms too late"
        if drive.deadline_ns > now_ns + s_to_ns(MAX_VALID_S):
            return f"the deadline lies further ahead than {MAX_VALID_S * 1e3:.0f} ms: measure the clock again"
        if not 0.0 < drive.speed <= 1.0:
            return f"speed is {drive.speed}; allowed: above 0 to 1"
        if drive.intent is Intent.REWIND:
            index = drive.to_index if drive.to_index >= 0 else self._rewind_to()
            return self._way.aim(index)
        return self.handling.unknown(drive.moves)

    @property
    def phase(self) -> Phase:
        with self._lock:
            return self._takeover.phase

    def scene_ready(self) -> None:
        self._say(waits_for_scene=False)

    def wait_for_scene(self) -> None:
        self._say(waits_for_scene=True)

    @property
    def waits_for_scene(self) -> bool:
        return self._state.waits_for_scene

    def recorded_as(self, session: str) -> None:
        """The recorder's session: with it people's labels name an episode."""
        self._recorder_session = session

    def told(self, round_trip_ms: float) -> None:
        """Round trip of the newest command to the robot server."""
        self._say(round_trip_ms=round_trip_ms)

    def read(self) -> SeatState:
        """What is to be shown now."""
        with self._lock:
            now_ns = self._now_ns()
            self.lease.expire(now_ns)
            self._expire(now_ns)
            self._state = replace(
                self._state,
                seq=self._state.seq + 1,
                stamp_ns=now_ns,
                phase=self._takeover.phase,
                holder=self.lease.holder,
            )
            return self._state

    # ---- the control loop's side -------------------------------------------------------------------------------

    def begin(self, episode: EpisodeId) -> None:
        with self._lock:
            self._takeover.begin()
            if self._starts_paused:
                self._takeover.ask(Intent.HOLD)
            self._way.begin()
            self._forget_drive()
            self._last = None
            ref = EpisodeRef(
                run=self.info.run, robot=self._spec.name, session=self._recorder_session, episode=episode.number
            )
            self._say(episode=ref, index=0, max_steps=self._spec.max_episode_steps, person_steps=0)

    def stands_still(
        self, observation: Observation, state: RobotState, propose: Callable[[], FloatArray]
    ) -> FloatArray | None:
        """The action that stands still while a person holds the robot; None when the loop shall go on."""
        with self._lock:
            self._expire(self._now_ns())
            if self._takeover.phase is Phase.PAUSED and not self._takeover.over:
                if self._last is None:
                    self._last = propose().copy()  # tells the absolute elements: a gripper stays as it is wanted
                    self._pass(observation)
                self._saw(observation, state)
                still = self.handling.still(self._last_or_zero())
            else:
                self._acting = self._takeover.phase
                still = None
        if still is not None and self._lock_step:
            time.sleep(self._spec.control_period_s)  # simulated time would race ahead of the person
        return still

    def intervene(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
        with self._lock:
            if self._last is None:
                self._last = proposed.copy()
                self._pass(observation)
            self._saw(observation, state)
            if self._takeover.over:
                return Intervention(self.handling.still(self._last), self._last_source)
            source = _SOURCES.get(self._acting)
            if source is None:
                return None
            self._last_source = source
            whole = self._whole(observation.features)
            return Intervention(whole, source, None if self._lock_step else self)

    def part(self, share: float) -> FloatArray:
        """What the person does for `share` of a control step, from now on: the newest that is held, else nothing."""
        with self._lock:
            self._expire(self._now_ns())
            last = self._last_or_zero()
            drive = self._drive
            if drive is None or self._takeover.phase is not self._acting or self._takeover.over:
                return self.handling.still(last)
            if drive.intent is Intent.REWIND:
                planned = self._planned
                if planned is None:
                    return self.handling.still(last)
                relative = self.handling.relative
                action: FloatArray = (planned * (relative * share + ~relative)).astype(planned.dtype)
            else:
                action = self.handling.moved(last, drive.moves, share)
            self._last = action
            return action

    def summed(self, parts: list[FloatArray]) -> FloatArray:
        """What the parts of a control step did together (A,)."""
        return self.handling.summed(parts)

    def lets_go(self, observation: Observation, state: RobotState) -> bool:
        with self._lock:
            self._takeover.drove(self._acting)
            if not self._takeover.over:
                return False
            if self.info.rule == "hg_dagger" and not self._starts_paused:
                self._takeover.handed_back()
                self._forget_drive()
            return True

    def on_step(self, step: LoopStep) -> None:
        result = step.stepped.result
        with self._lock:
            self._last = step.action_asked.copy()
            rewinding = self._drive is not None and self._drive.intent is Intent.REWIND
            if not (rewinding and step.source is Source.HUMAN_RECOVERY):
                self._pass(step.following)
            over = step.terminated or step.truncated
            if over:
                self._takeover.end()
                self._forget_drive()
            task = step.stepped.state.task
            self._say(
                index=step.following.index,
                verdict=result.verdict.value,
                verdict_reason=result.message if result.verdict is not Verdict.ACCEPTED else "",
                commanded=result.sent,
                weights_version=step.weights_version,
                person_steps=self._state.person_steps + (step.source in _SOURCES.values()),
                last_episode=self._state.episode if over else self._state.last_episode,
                last_success=bool(task and task.success) if over else self._state.last_success,
            )
            self._saw(step.following, step.stepped.state)

    def failed(self) -> None:
        """The episode could not go on."""
        with self._lock:
            self._takeover.end()
            self._forget_drive()
            self._say(phase=Phase.BETWEEN)

    # ---- both --------------------------------------------------------------------------------------------------

    def _whole(self, features: Features) -> FloatArray:
        """The action (A,) of a whole control step."""
        last, drive = self._last_or_zero(), self._drive
        if drive is None:
            return self.handling.still(last)
        if drive.intent is not Intent.REWIND:
            return self.handling.moved(last, drive.moves, 1.0)
        self._planned = self._way.back(features, last, drive.speed)
        if self._planned is None:  # arrived: the robot stands still until the person goes on
            self._forget_drive()
            return self.handling.still(last)
        return self._planned

    def _expire(self, now_ns: int) -> None:
        drive = self._drive
        if drive is not None and now_ns >= drive.deadline_ns:
            self._forget_drive()

    def _forget_drive(self) -> None:
        self._drive = self._planned = None
        self._way.stop()
        self._takeover.let_go()

    def _last_or_zero(self) -> FloatArray:
        if self._last is None:
            lower, upper = self._spec.action.lower_array(), self._spec.action.upper_array()
            return ((lower + upper) / 2).astype(lower.dtype)
        return self._last

    def _pass(self, observation: Observation) -> None:
        familiarity = -1.0 if self._familiarity is None else self._familiarity(observation.features)
        self._way.add(observation.index, observation.features, self._last_or_zero(), familiarity)

    def _rewind_to(self) -> int:
        return self._way.suggested(BACK_STEPS)

    def _saw(self, observation: Observation, state: RobotState) -> None:
        passed = self._way.passed
        target = self._way.at(self._rewind_to())
        self._say(
            features={key: value for key, value in observation.features.items() if not key.startswith(IMAGES)},
            instruction=observation.instruction,
            lifecycle=state.lifecycle,
            fault=state.fault,
            held_back=state.held_back,
            stopping=state.stopping,
            rewind_to=-1 if target is None else target.index,
            best_familiarity=-1.0 if target is None else target.familiarity,
            familiarity=passed[-1].familiarity if passed else -1.0,
            way_steps=len(passed),
        )

    def _say(self, **changes: object) -> None:
        with self._lock:
            self._state = replace(self._state, **changes)
