"""The records that cross process borders and reach the disk: typed, frozen, schema-versioned.

Arrays are numpy arrays; `robot_stack.core.codec` sends them as raw frames beside a small msgpack header. Those of
vendor-side simulators are in `scene_messages`, those of policy servers in `policy_messages`, those of the operator's
seat in `seat`. Change `SCHEMA_VERSION` whenever a message of any of them changes, and `STEP_SCHEMA_VERSION` too when
that is `Step`, which lies on disks: peers and files of another version are refused with a clear error.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from robot_stack.core.direction import Direction
from robot_stack.core.specs import RobotSpec

SCHEMA_VERSION = 5
STEP_SCHEMA_VERSION = 3
MAX_BATCH_RECORDS = 65_536  # a count above costs the learner a tenth of a second before it can refuse

Array = NDArray[Any]
FloatArray = NDArray[np.float32]
Features = dict[str, NDArray[Any]]


class Lifecycle(enum.Enum):
    """ROS 2 lifecycle names. Commands are taken in ACTIVE only; FAULT is left only by a person."""

    UNCONFIGURED = "unconfigured"
    INACTIVE = "inactive"
    ACTIVE = "active"
    FAULT = "fault"


class Verdict(enum.Enum):
    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    REFUSED = "refused"


class Refusal(enum.Enum):
    """Why a command did not reach the driver."""

    NOT_ACTIVE = "not_active"
    NO_LEASE = "no_lease"
    REPEATED = "repeated"
    STALE = "stale"
    WRONG_SHAPE = "wrong_shape"
    NOT_FINITE = "not_finite"
    OUT_OF_BOUNDS = "out_of_bounds"
    STOPPING = "stopping"
    DRIVER = "driver"


class StopLevel(enum.Enum):
    """How hard to stop. HOLD: fastest allowed ramp to rest, then hold there, still active. RELEASE: the same, then
    give authority back and become inactive. EMERGENCY: the vendor's own hard stop (damp, run-stop); latches a fault.
    None of them is a certified safety function."""

    HOLD = "hold"
    RELEASE = "release"
    EMERGENCY = "emergency"


class Source(enum.Enum):
    """Who chose an action."""

    POLICY = "policy"
    EXPERT = "expert"
    HUMAN_RECOVERY = "human_recovery"
    HUMAN_CORRECTION = "human_correction"


HUMAN_SOURCES = frozenset({Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION})


class TaskStatus(Struct, frozen=True, kw_only=True):
    """The task's own verdict on the last control step. `terminated`: the episode ended by itself."""

    reward: float
    success: bool
    terminated: bool
    truncated: bool = False


class RobotState(Struct, frozen=True, kw_only=True, tag=True):
    """What a robot server publishes.

    `stamp_ns` is the server's monotonic clock at capture; `seq` counts published states of this boot;
    `ground_truth` is filled by simulated robots only and is never recorded as an observation. `moving`: the setpoint
    changes; `stopping`: the stop ramp has begun and no command is followed; `held_back`: what the filter is holding
    the robot back from right now (`workspace`, `self_collision`, ...), or ''. `instruction`: what the episode asks
    for, in words; '' where the robot's side asks for nothing.
    """

    boot: str
    seq: int
    stamp_ns: int
    lifecycle: Lifecycle
    features: Features
    task: TaskStatus | None = None
    ground_truth: Features | None = None
    episode_seed: int = -1
    last_command_seq: int = -1
    moving: bool = False
    stopping: bool = False
    held_back: str = ""
    fault: str = ""
    instruction: str = ""


class Observation(Struct, frozen=True, kw_only=True):
    """Samples aligned to one reference time.

    `age_ns` gives each field's age at the moment of use. `episode_seed` and `index` (step in the episode) make a
    policy's random numbers a pure function of the observation, so a rollout can be repeated bit for bit. `past`:
    features of the steps before, oldest first, as many as the policy reads and the episode has. `instruction`: what
    to do, in words.
    """

    id: int
    stamp_ns: int
    features: Features
    age_ns: dict[str, int]
    episode_seed: int = 0
    index: int = 0
    past: tuple[Features, ...] = ()
    instruction: str = ""


class ActionChunk(Struct, frozen=True, kw_only=True):
    """Actions (H, A) for the control steps `index .. index + H - 1` of the episode, from one observation."""

    observation_id: int
    index: int
    weights_version: int
    actions: FloatArray


class Step(Struct, frozen=True, kw_only=True):
    """One recorded control step. (run, robot, session, seq) is its identity: it counts exactly once.

    `action_base` is what the policy (or expert) proposed, `action_asked` what was sent to the robot server (with
    residual and exploration), `action_sent` what the safety filter let through. `final_*` are stored on the last
    step of an episode: the observation after the action, and the base action there (for bootstrapping a time-out).
    `instruction`: what the policy was asked to do, in words.
    """

    run: str
    robot: str
    task: str
    session: str
    seq: int
    episode: int
    episode_seed: int
    segment: int
    index: int
    stamp_ns: int
    observation: Features
    action_base: FloatArray
    action_asked: FloatArray
    action_sent: FloatArray
    verdict: Verdict
    refusal: Refusal | None
    source: Source
    weights_version: int
    reward: float
    success: bool
    terminated: bool
    truncated: bool
    late: bool = False
    final_observation: Features | None = None
    final_action_base: FloatArray | None = None
    instruction: str = ""


# ---- robot server: requests and replies -------------------------------------------------------------------------


class Hello(Struct, frozen=True, kw_only=True, tag=True):
    """`robot`: what an edge has to offer, once it knows; a learner refuses a robot whose steps do not fit."""

    schema_version: int
    peer: str
    robot: RobotSpec | None = None


class RobotInfo(Struct, frozen=True, kw_only=True, tag=True):
    schema_version: int
    boot: str
    lock_step: bool
    spec: RobotSpec


class Ping(Struct, frozen=True, kw_only=True, tag=True):
    pass


class Pong(Struct, frozen=True, kw_only=True, tag=True):
    stamp_ns: int


class AcquireLease(Struct, frozen=True, kw_only=True, tag=True):
    """Ask for the control lease under a fresh session name; held while commands or `renew` arrive."""

    session: str


class ReleaseLease(Struct, frozen=True, kw_only=True, tag=True):
    session: str


class Transition(Struct, frozen=True, kw_only=True, tag=True):
    """Ask for a lifecycle state. FAULT -> INACTIVE is the person's clearing of a fault."""

    session: str
    target: Lifecycle


class StopRobot(Struct, frozen=True, kw_only=True, tag=True):
    """Stop at once; anybody with the operator role may ask, lease or not."""

    reason: str
    level: StopLevel = StopLevel.HOLD


class ResetEpisode(Struct, frozen=True, kw_only=True, tag=True):
    """Begin an episode: a simulated robot sets up its scene from `seed`, a real one begins where it is.

    `here`: nothing is set up. Scene and robot stay as they are, and the episode goes in this direction; refused with
    `moving` until the robot rests.
    """

    session: str
    seed: int
    here: Direction | None = None


class GetState(Struct, frozen=True, kw_only=True, tag=True):
    """Ask for the newest state; `cameras` lists cameras to render or grab with it."""

    cameras: tuple[str, ...] = ()


class GetDiagnostics(Struct, frozen=True, kw_only=True, tag=True):
    pass


class RobotDiagnostics(Struct, frozen=True, kw_only=True, tag=True):
    """How a robot server fares: measured period of its loop, age of the driver's newest sample, counts since boot.

    Jitter is the distance of a period from the wanted one, over the last few thousand periods.
    `refusals` counts refused commands by reason, `held_back` ticks at which the filter held back, by cause.
    """

    boot: str
    lifecycle: Lifecycle
    fault: str
    ticks: int
    overruns: int
    period_p50_s: float
    jitter_p50_s: float
    jitter_p99_s: float
    jitter_max_s: float
    sample_age_s: float
    stops: int
    refusals: dict[str, int]
    held_back: dict[str, int]
    lease_session: str


class Command(Struct, frozen=True, kw_only=True, tag=True):
    """One action for one control step, in the units of the robot's action feature.

    Refused unless session holds the lease, seq is larger than the last, and the server's clock is before
    `deadline_ns` (server's monotonic clock).
    """

    session: str
    seq: int
    deadline_ns: int
    action: FloatArray


class CommandResult(Struct, frozen=True, kw_only=True, tag=True):
    """`sent` is what the driver was given, in the units of the action; `state` is set in lock-step only."""

    seq: int
    verdict: Verdict
    refusal: Refusal | None
    message: str
    sent: FloatArray
    state: RobotState | None = None


class Done(Struct, frozen=True, kw_only=True, tag=True):
    pass


class Failed(Struct, frozen=True, kw_only=True, tag=True):
    """A request that was refused or failed: enumerated reason where there is one, and words for a person."""

    reason: str
    message: str


RobotRequest = (
    Hello
    | Ping
    | AcquireLease
    | ReleaseLease
    | Transition
    | StopRobot
    | ResetEpisode
    | GetState
    | GetDiagnostics
    | Command
)

RobotReply = RobotInfo | Pong | Done | Failed | RobotState | RobotDiagnostics | CommandResult


# ---- cameras ----------------------------------------------------------------------------------------------------


class CameraFrame(Struct, frozen=True, kw_only=True, tag=True):
    """What a camera process publishes; `stamp_ns` is its host's monotonic clock. `fault`: in words if it hangs."""

    boot: str
    camera: str
    stamp_ns: int
    device_time_ns: int
    number: int
    image: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16] | None = None
    fault: str = ""


# ---- learner: requests and replies ------------------------------------------------------------------------------


class StepBatch(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Packed `Step` records as they lie in the spool, in order."""

    records: Annotated[list[bytes], Meta(max_length=MAX_BATCH_RECORDS)]


class StepAck(Struct, frozen=True, kw_only=True, tag=True):
    """Every record of the batch is durable at the learner (or was already: `duplicates`)."""

    records: int
    duplicates: int


class GetProgress(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    pass


class Staleness(Struct, frozen=True, kw_only=True):
    """Of a robot's last `steps` steps, when they were learned from: how many versions of the weights were published
    since the one that acted, and how long ago that one was published (-1: unknown)."""

    steps: int = 0
    versions_median: float = 0.0
    versions_p95: float = 0.0
    versions_max: int = 0
    age_median_s: float = -1.0
    age_p95_s: float = -1.0
    age_max_s: float = -1.0


class RobotFeed(Struct, frozen=True, kw_only=True):
    """What the learner knows of a robot that feeds it.

    `edge`: whose key its steps came with, '' if nothing came since the learner's start; `heard_s`: seconds since that
    edge asked for anything, -1 if it never did. `steps` are durable, `waiting` of them not trained through yet.
    """

    edge: str = ""
    heard_s: float = -1.0
    steps: int = 0
    waiting: int = 0
    staleness: Staleness = Staleness()


class LearnerProgress(Struct, frozen=True, kw_only=True, tag=True):
    """Where the learner is: durable steps, steps it has trained through, updates, newest weights.

    `robots`: the same for every robot, by name. `waiting_share`: of the last minute, in which there was nothing to
    learn from.
    """

    durable_steps: int
    trained_steps: int
    updates: int
    weights_version: int
    target_steps: int
    finished: bool
    metrics: dict[str, float]
    robots: dict[str, RobotFeed] = {}
    waiting_share: float = 0.0


class WeightEncoding(enum.Enum):
    """How weights travel. FULL: the exact tensors. DELTA: the exact tensors, sent as the difference to a snapshot that
    the asker holds. FLOAT16: float32 tensors rounded to float16, which loses precision."""

    FULL = "full"
    FLOAT16 = "float16"
    DELTA = "delta"


class WeightSnapshot(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Announces weights: fetch chunks for `size` bytes, check the hash, then load. `kind` names the loader.

    `sha256` and `size` are those of the content, a safetensors file: of the exact tensors (FULL and DELTA: the hash is
    checked after decoding), or of the rounded ones (FLOAT16). `base_sha256` names the content that a DELTA builds on.
    """

    version: int
    kind: str
    sha256: str
    size: int
    trained_steps: int
    encoding: WeightEncoding = WeightEncoding.FULL
    base_sha256: str = ""

    def identity(self) -> str:
        """What stands inside the content too, under the hash: so a changed version or kind is noticed."""
        precision = "float16" if self.encoding is WeightEncoding.FLOAT16 else "exact"
        return f"{self.kind} {precision} {self.version:012d} {self.trained_steps:012d}"


class GetWeights(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Ask for the newest snapshot (`version` -1), or for the chunk of a known one at `offset` of its content.

    `sha256` names the snapshot that is being fetched; if the learner no longer has it, the answer is the newest one
    from its beginning. With DELTA, `base_sha256` names the content that the asker holds; if the learner does not have
    that, it answers with FULL.
    """

    version: int = -1
    offset: int = 0
    sha256: str = ""
    encoding: WeightEncoding = WeightEncoding.FULL
    base_sha256: str = ""


class WeightChunk(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Part of a snapshot, from `offset` of its content on. `sha256` is that of `data` where `data` is not the content
    itself (DELTA); elsewhere the snapshot's hash covers the same bytes, and it is empty."""

    snapshot: WeightSnapshot
    offset: int
    data: bytes
    sha256: str = ""


LearnerRequest = Hello | StepBatch | GetProgress | GetWeights
LearnerReply = Done | StepAck | LearnerProgress | WeightChunk | Failed
