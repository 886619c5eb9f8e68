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
from robot_stack.core.errors import RobotError
from robot_stack.core.handling import Handling
from robot_stack.core.messages import Features, FloatArray, Observation, RobotState, Source, Verdict
from robot_stack.core.seat import (
    DRIVING,
    MAX_VALID_S,
    Drive,
    EpisodeRef,
    Intent,
    Phase,
    SeatInfo,
    SeatState,
    SeatTaken,
)
from robot_stack.core.specs import IMAGES, RobotSpec
from robot_stack.edge.control_loop import EpisodeId, LoopStep
from robot_stack.edge.operator import Intervention, Rule
from robot_stack.edge.rewind import Way
from robot_stack.edge.seat_lease import SILENCE_S, SeatLease
from robot_stack.edge.takeover import TakeOver

BACK_STEPS = 10
"""The suggested place to rewind to lies so many control steps of way behind, at least."""

_SOURCES = {Phase.RECOVERING: Source.HUMAN_RECOVERY, Phase.CORRECTING: Source.HUMAN_CORRECTION}


class Seat:
    """An `Operator` and a `StepObserver`; thread-safe.

    Args:
        rule: `demonstration`: episodes begin paused, with a person at the robot.
        familiarity: distance of an observation's features from the demonstrations (`Familiarity`); None: unknown.
        keep_running: once it says no, an episode that a person holds ends with a RobotError.
    """

    def __init__(
        self,
        spec: RobotSpec,
        rule: Rule,
        run: str,
        *,
        lock_step: bool,
        familiarity: Callable[[Features], float] | None = None,
        keep_running: Callable[[], bool] = lambda: True,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._keep_running = keep_running
        self._lock = threading.RLock()
        self._wanted = threading.Event()
        self._spec, self._lock_step, self._now_ns, self._sleep = spec, lock_step, now_ns, sleep
        self._familiarity = familiarity
        self.handling = Handling(spec)
        self.info = SeatInfo(
            run=run,
            spec=spec,
            lock_step=lock_step,
            rule=rule,
            drivable=self.handling.drivable,
            rewinds=self.handling.rewinds,
        )
        self._way = Way(self.handling, spec.control_period_s)
        self._takeover = TakeOver(rule)
        self._lease = SeatLease()
        self._drive: Drive | None = None
        self._held_until_ns = 0
        self._has_done_its_work = False
        self._last_source = Source.HUMAN_RECOVERY
        self._last: FloatArray | None = None
        self._planned: FloatArray | None = None
        self._rewinds = self._ran_out = False
        self._closed = ""
        self._recorder_session = ""
        self._state = SeatState(boot=uuid4().hex, seq=0, stamp_ns=now_ns(), phase=Phase.BETWEEN, holder="")

    # ---- the server's side -------------------------------------------------------------------------------------

    def take(self, holder: str, *, by_force: bool) -> SeatTaken | str:
        """The seat, or why it cannot be had, in words. What was driven before stands still."""
        with self._lock:
            refusal = self._lease.take(holder, self._now_ns(), by_force=by_force)
            if refusal:
                return refusal
            self._stand_still()
            self._held_until_ns = 0
            self._say(refusal="")
            return SeatTaken(session=self._lease.session, silence_s=SILENCE_S)

    def keep(self, session: str) -> bool:
        with self._lock:
            return self._lease.keep(session, self._now_ns())

    def leave(self, session: str) -> bool:
        """Give the seat back; the robot stands still if it was being driven."""
        with self._lock:
            if not self._lease.keep(session, self._now_ns()):
                return False
            self._lease.leave()
            self._stand_still()
            return True

    def drive(self, drive: Drive) -> tuple[str, Phase]:
        """Follow what the person does now; why not, in words, or '', and who moves the robot after it."""
        with self._lock:
            refusal = self._refusal(drive)
            if not refusal:
                self._follow(drive)
            self._say(refusal=refusal)
            return refusal, self._takeover.phase

    def _refusal(self, drive: Drive) -> str:
        now_ns = self._now_ns()
        if not self._lease.keep(drive.session, now_ns):
            return f"{self._lease.holder or 'nobody'} has the seat; take it first"
        if drive.seq <= self._lease.last_seq:
            return f"command {drive.seq} came after {self._lease.last_seq}: it is old, and dropped"
        self._lease.last_seq = drive.seq
        if drive.intent is Intent.HOLD:
            return self._takeover.refusal(Intent.HOLD)
        if drive.deadline_ns <= now_ns:
            return f"the command was {(now_ns - drive.deadline_ns) / 1e6:.0f} ms too late"
        if drive.deadline_ns > now_ns + s_to_ns(MAX_VALID_S):
            return f"the deadline lies further ahead than {MAX_VALID_S * 1e3:.0f} ms: measure the clock again"
        if drive.intent in DRIVING and self._is_spent(drive, now_ns):
            return "let go first: what was held until now has done its work"
        return self._takeover.refusal(drive.intent) or self._driving_refusal(drive)

    def _is_spent(self, drive: Drive, now_ns: int) -> bool:
        """Whether this belongs to something that was held without a break since it had done its work."""
        self._has_done_its_work &= now_ns < self._held_until_ns
        self._held_until_ns = drive.deadline_ns
        return self._has_done_its_work

    def _driving_refusal(self, drive: Drive) -> str:
        if drive.intent is not Intent.REWIND:
            return self.handling.unknown(drive.moves)
        if not 0.0 < drive.speed <= 1.0:
            return f"speed is {drive.speed}; allowed: above 0 to 1"
        if drive.to_index < -1:
            return f"step {drive.to_index} is none; name one of the way, or -1 for the suggested one"
        return self._way.refusal(self._rewinds_to(drive))

    def _rewinds_to(self, drive: Drive) -> int:
        if drive.to_index >= 0:
            return drive.to_index
        if self._way.target is not None:
            return self._way.target
        suggested = self._way.suggested(BACK_STEPS)
        return -1 if suggested is None else suggested.index

    def _follow(self, drive: Drive) -> None:
        if drive.intent is Intent.REWIND:
            self._way.aim(self._rewinds_to(drive))
        else:
            self._way.stop()
            self._planned = None
        self._takeover.ask(drive.intent)
        self._drive = drive if drive.intent in DRIVING else None
        if drive.intent is Intent.HOLD:
            self._held_until_ns = 0
        else:
            self._wanted.set()

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

    def tell(self, words: str) -> None:
        """Show this to whoever sits here, in the place of the last refusal."""
        self._say(refusal=words)

    def close(self, reason: str) -> None:
        """Nobody can be heard any more: the running episode ends with a RobotError, and none begins."""
        self._closed = reason

    @property
    def closed(self) -> str:
        """Why, or ''."""
        return self._closed

    def read(self) -> SeatState:
        """What is to be shown now."""
        with self._lock:
            now_ns = self._now_ns()
            self._lease.expire(now_ns)
            self._expire(now_ns)
            self._say(seq=self._state.seq + 1, stamp_ns=now_ns, phase=self._takeover.phase, holder=self._lease.holder)
            return self._state

    # ---- the control loop's side -------------------------------------------------------------------------------

    def begin(self, episode: EpisodeId) -> None:
        with self._lock:
            self._takeover.begin()
            self._way.begin()
            self._drive = self._planned = None
            self._has_done_its_work, self._ran_out = True, False
            self._last = None
            self._last_source = Source.HUMAN_RECOVERY
            ref = EpisodeRef(
                run=self.info.run, robot=self._spec.name, session=self._recorder_session, episode=episode.number
            )
            self._say(episode=ref, index=0, max_steps=self._spec.max_episode_steps, person_steps=0, commanded=None)

    def stands_still(
        self, observation: Observation, state: RobotState, propose: Callable[[], FloatArray]
    ) -> FloatArray | None:
        """The action that stands still while a person holds the robot; None when the loop shall go on."""
        if self._closed:
            raise RobotError(f"the operator's seat is closed: {self._closed}")
        if not self._keep_running():
            raise RobotError("this process is ending, and the episode with it")
        with self._lock:
            self._wanted.clear()
            self._expire(self._now_ns())
            if self._ran_out:  # the robot still runs after its goal: one more step of the same phase stops it
                return None
            if not self._takeover.standing:
                self._takeover.step_begins()
                return None
        self._began(observation, propose)
        with self._lock:
            self._saw(observation, state)
            still = self.handling.still(self._last_action())
        if self._lock_step:
            self._sleep(self._spec.control_period_s)  # simulated time would race ahead of the person
        return still

    def woken(self, timeout_s: float) -> bool:
        """Wait, for so long at most, until a person who had the robot stand still wants something else."""
        return self._wanted.wait(timeout_s)

    def intervene(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
        self._began(observation, lambda: proposed)
        if self._lock_step and self._takeover.acting in _SOURCES:
            self._sleep(self._spec.control_period_s)  # simulated time would race ahead of the person
        with self._lock:
            self._saw(observation, state)
            source = _SOURCES.get(self._takeover.acting)
            if source is None and not self._takeover.over:
                return None
            self._last_source = source or self._last_source
            if source is None or self._takeover.over:
                return Intervention(self.handling.still(self._last_action()), self._last_source)
            whole = self._whole(observation.features)
            return Intervention(whole, source, None if self._lock_step else self)

    def part(self, share: float) -> FloatArray | None:
        """What the person does for `share` of a control step, from now on: the newest that is held, else nothing.
        None, once, when it ran out."""
        with self._lock:
            self._expire(self._now_ns())
            if self._ran_out:
                self._ran_out = False
                return None
            last, drive = self._last_action(), self._drive
            if drive is None or self._takeover.phase is not self._takeover.acting or self._takeover.over:
                return self.handling.still(last)
            if drive.intent is not Intent.REWIND:
                action = self.handling.moved(last, drive.moves, share)
            elif self._planned is not None:
                action = self.handling.part_of(self._planned, share)
            else:
                return self.handling.still(last)
            self._last = action
            return action

    def summed(self, parts: list[FloatArray]) -> FloatArray:
        """What the parts of a control step did together (A,)."""
        return self.handling.summed(parts)

    def lets_go(self, observation: Observation, state: RobotState) -> bool:
        with self._lock:
            if not self._takeover.over:
                return False
            if self.info.rule == "hg_dagger":
                self._stand_still()
                self._has_done_its_work, self._ran_out = True, False
                self._takeover.handed_back()
            return True

    def on_step(self, step: LoopStep) -> None:
        result, over = step.stepped.result, step.terminated or step.truncated
        familiarity = self._familiarity_of(step.following)
        with self._lock:
            if result.verdict is not Verdict.REFUSED:
                self._last = step.action_asked.copy()
            if not (self._rewinds and step.source is Source.HUMAN_RECOVERY):
                self._way.add(step.following.index, step.following.features, self._last_action(), familiarity)
            self._rewinds = False
            task = step.stepped.state.task
            self._say(
                index=step.following.index,
                verdict=result.verdict.value,
                verdict_reason=result.message if result.verdict is not Verdict.ACCEPTED else "",
                commanded=result.sent,
                weights_version=step.weights_version,
                person_steps=self._state.person_steps + (step.source in _SOURCES.values()),
                round_trip_ms=step.stepped.round_trip_s * 1e3 if step.stepped.round_trip_s >= 0.0 else -1.0,
            )
            self._saw(step.following, step.stepped.state)
            if over:
                self._ended(success=bool(task and task.success))

    def failed(self) -> None:
        """The episode could not go on."""
        with self._lock:
            if self._takeover.phase is not Phase.BETWEEN:
                self._ended(success=False)

    # ---- both --------------------------------------------------------------------------------------------------

    def _began(self, observation: Observation, propose: Callable[[], FloatArray]) -> None:
        """At an episode's first step: what the policy would do tells the absolute elements (a gripper stays as it is
        wanted), and the way begins. Without the lock: a policy may take its time."""
        if self._last is not None:
            return
        proposed, familiarity = propose().copy(), self._familiarity_of(observation)
        with self._lock:
            self._last = proposed
            self._way.add(observation.index, observation.features, self._last, familiarity)

    def _ended(self, *, success: bool) -> None:
        self._stand_still()
        self._ran_out = False
        self._takeover.end()
        self._say(episode=None, last_episode=self._state.episode, last_success=success)

    def _whole(self, features: Features) -> FloatArray:
        """The action (A,) of a whole control step."""
        last, drive = self._last_action(), self._drive
        if drive is None or self._takeover.phase is not self._takeover.acting:
            return self.handling.still(last)
        if drive.intent is not Intent.REWIND:
            return self.handling.moved(last, drive.moves, 1.0)
        self._rewinds = True
        self._planned = self._way.back(features, last, drive.speed)
        if self._planned is None:  # arrived: the robot stands still until the person goes on
            self._stand_still()
            self._has_done_its_work = True
            return self.handling.still(last)
        return self._planned

    def _expire(self, now_ns: int) -> None:
        if self._drive is not None and now_ns >= self._drive.deadline_ns:
            self._stand_still()
            self._ran_out = not self._lock_step and self._takeover.acting in _SOURCES

    def _stand_still(self) -> None:
        """Nobody holds anything any more."""
        self._drive = self._planned = None
        self._way.stop()
        self._takeover.let_go()

    def _last_action(self) -> FloatArray:
        """What was asked for last (A,): it tells what the absolute elements are to stay at."""
        if self._last is None:
            raise RobotError(f"{self._spec.name}: nothing is known of the robot's goals before an episode's first step")
        return self._last

    def _familiarity_of(self, observation: Observation) -> float:
        return -1.0 if self._familiarity is None else self._familiarity(observation.features)

    def _saw(self, observation: Observation, state: RobotState) -> None:
        passed, target = self._way.passed, self._way.suggested(BACK_STEPS)
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
