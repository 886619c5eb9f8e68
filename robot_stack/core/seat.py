"""The operator's seat: the messages between whoever shows a robot to people (a teleop server) and the robot's edge.

The edge is the authority: it holds the seat's lease, the take-over's state, the clock that deadlines are judged by, and
the reasons of refusals. The other side shows them and passes on what people do.
"""

from __future__ import annotations

import enum

from msgspec import Struct

from robot_stack.core.messages import Done, Failed, Features, FloatArray, Hello, Lifecycle, Ping, Pong
from robot_stack.core.specs import RobotSpec


class Phase(enum.Enum):
    """Who moves the robot. BETWEEN: no episode is running. PAUSED: it stands still for a person, and nothing is
    recorded."""

    BETWEEN = "between"
    AUTONOMOUS = "autonomous"
    PAUSED = "paused"
    RECOVERING = "recovering"
    CORRECTING = "correcting"


class Intent(enum.Enum):
    """What a person wants of the robot.

    HOLD: stand still. REWIND: back along the recorded way. RECOVER, CORRECT: driven by hand, back to a state that the
    policy knows, or on with the task. RESUME: the policy goes on. FINISH: the intervention is over.
    """

    HOLD = "hold"
    REWIND = "rewind"
    RECOVER = "recover"
    CORRECT = "correct"
    RESUME = "resume"
    FINISH = "finish"


DRIVING = frozenset({Intent.REWIND, Intent.RECOVER, Intent.CORRECT})
"""What a person does for as long as they hold it; the others are said once."""


class TakeSeat(Struct, frozen=True, kw_only=True, tag=True):
    """Ask for the seat of a robot. One person has it; `by_force` takes it from whoever does, and what they were driving
    stands still."""

    holder: str
    by_force: bool = False


class SeatTaken(Struct, frozen=True, kw_only=True, tag=True):
    """The seat is the asker's until it is left, taken by force, or silent for longer than `silence_s`."""

    session: str
    silence_s: float


class KeepSeat(Struct, frozen=True, kw_only=True, tag=True):
    """A sign of life of the seat's holder; every `Drive` is one too."""

    session: str


class LeaveSeat(Struct, frozen=True, kw_only=True, tag=True):
    session: str


class Drive(Struct, frozen=True, kw_only=True, tag=True):
    """What the person does right now; it counts until `deadline_ns` or the next one, whichever comes first.

    Refused unless `session` has the seat, `seq` is larger than the last, and the edge's monotonic clock is before
    `deadline_ns`, which may lie `MAX_VALID_S` ahead at most. When it has run out, the robot stands still: dead-man.
    HOLD is followed whatever its deadline says. What is held while an episode begins, an intervention ends or a rewind
    arrives has done its work: it moves nothing until it was let go, by HOLD or by silence until its deadline.

    Attributes:
        moves: RECOVER and CORRECT: by name of the action's elements, -1 to 1 of what one control step may do. Relative
            elements that are not named stand still, absolute ones (a gripper) keep their last value.
        speed: REWIND: share of full speed, above 0 to 1.
        to_index: REWIND: the step of the episode to go back to; -1: where a rewind is on its way to, else the place
            that the edge suggests.
    """

    session: str
    seq: int
    deadline_ns: int
    intent: Intent
    moves: dict[str, float] = {}
    speed: float = 0.5
    to_index: int = -1


class Driven(Struct, frozen=True, kw_only=True, tag=True):
    """What became of a `Drive`. `refusal` says why it was not followed, in words, or ''."""

    seq: int
    phase: Phase
    refusal: str = ""


class EpisodeRef(Struct, frozen=True, kw_only=True):
    """An episode as its steps name it."""

    run: str
    robot: str
    session: str
    episode: int


class LabelEpisode(Struct, frozen=True, kw_only=True, tag=True):
    """What a person says of an episode. Nothing said is failure.

    Attributes:
        success: None leaves what was said before.
        reset_needed: the scene has to be set up by hand before the next episode, which waits for `SceneReady`.
        discard: the episode is not to be learned from.
    """

    session: str
    who: str
    episode: EpisodeRef
    success: bool | None = None
    reset_needed: bool = False
    discard: bool = False
    note: str = ""


class SceneReady(Struct, frozen=True, kw_only=True, tag=True):
    """The scene was set up by hand: the next episode may begin."""

    session: str


class GetSeat(Struct, frozen=True, kw_only=True, tag=True):
    """Ask for what changes seldom: see `SeatInfo`."""


class SeatInfo(Struct, frozen=True, kw_only=True, tag=True):
    """`drivable`: elements of the action that a person can move; `rewinds`: the robot can be driven back by itself;
    `rule`: rac, hg_dagger or demonstration."""

    run: str
    spec: RobotSpec
    lock_step: bool
    rule: str
    drivable: tuple[str, ...]
    rewinds: bool


class SeatState(Struct, frozen=True, kw_only=True, tag=True):
    """What the edge publishes after every control step, and while it waits.

    Attributes:
        boot, seq: of the edge's life, and a count in it.
        stamp_ns: the edge's monotonic clock.
        holder: who has the seat, '' for nobody. refusal: why the last `Drive` was not followed, or ''.
        features: of the newest observation, without images. commanded: the action sent last (A,), None before it.
        verdict, held_back, fault, lifecycle: the safety filter's last word and the robot's state.
        rewind_to: the step that REWIND leads to if none is named; -1 if there is none. index: the episode's step.
        way_steps: recorded places that lie behind.
        familiarity: distance of the present state from what the policy was trained on, 1 being the edge of it; -1:
            unknown. best_familiarity: of the place that rewinding leads to.
        waits_for_scene: no episode begins until `SceneReady`.
        episode: the one that runs; None between them. last_episode: the newest that is over.
        round_trip_ms: of the newest command to the robot server.
    """

    boot: str
    seq: int
    stamp_ns: int
    phase: Phase
    holder: str
    refusal: str = ""
    lifecycle: Lifecycle = Lifecycle.UNCONFIGURED
    fault: str = ""
    held_back: str = ""
    verdict: str = ""
    verdict_reason: str = ""
    stopping: bool = False
    episode: EpisodeRef | None = None
    last_episode: EpisodeRef | None = None
    last_success: bool = False
    index: int = 0
    max_steps: int = 0
    instruction: str = ""
    features: Features = {}
    commanded: FloatArray | None = None
    weights_version: int = 0
    rewind_to: int = -1
    way_steps: int = 0
    familiarity: float = -1.0
    best_familiarity: float = -1.0
    waits_for_scene: bool = False
    person_steps: int = 0
    round_trip_ms: float = -1.0


MAX_VALID_S = 0.5
"""How far ahead a deadline may lie."""

SeatRequest = Hello | Ping | GetSeat | TakeSeat | KeepSeat | LeaveSeat | Drive | LabelEpisode | SceneReady
SeatReply = Pong | Done | Failed | SeatInfo | SeatTaken | Driven
