"""The small interfaces that the parts of the stack meet each other through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.core.direction import Direction
from robot_stack.core.messages import ActionChunk, Array, Features, FloatArray, Observation, Step, TaskStatus
from robot_stack.core.specs import PolicySpec, RobotSpec

Setpoint = NDArray[np.float64]


class VelocityEnvelope(Struct, frozen=True, kw_only=True):
    """A velocity limit that shrinks towards the position limits, axis by axis:

    highest = max(0, -offset + sqrt(2 * deceleration * (upper - position))), and mirrored towards `lower`.
    Form of the vendor's specification of the Franka Research 3. Infinite `deceleration`: no such limit on that axis.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    offset: tuple[float, ...]
    deceleration: tuple[float, ...]


class SetpointLimits(Struct, frozen=True, kw_only=True):
    """Limits of a driver's native command vector (S,), in its own units and their time derivatives.

    `names` carry the unit (`fr3_joint1_rad`). Velocity, acceleration and jerk may be inf where the driver has none;
    an empty `max_jerk` is inf on every axis.
    """

    names: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    max_velocity: tuple[float, ...]
    max_acceleration: tuple[float, ...]
    max_jerk: tuple[float, ...] = ()
    envelope: VelocityEnvelope | None = None


class Clearance(Struct, frozen=True, kw_only=True):
    """Where a setpoint puts the robot: guarded points (P, 3) in m, base frame, and the smallest distance in m
    between any two of its parts that may meet."""

    points_m: NDArray[np.float64]
    self_distance_m: float


class RobotGeometry(Protocol):
    """What the safety filter checks beside the limits of the axes. Answers are pure functions of the setpoint."""

    @property
    def box_lower_m(self) -> NDArray[np.float64]:
        """(3,): lower corner of the box that every guarded point stays in, base frame."""

    @property
    def box_upper_m(self) -> NDArray[np.float64]: ...

    @property
    def min_self_distance_m(self) -> float: ...

    def look(self, setpoint: Setpoint) -> Clearance:
        """Forward kinematics and distances at a setpoint (S,)."""


class Reading(Struct, frozen=True, kw_only=True):
    """One sample of a robot: capture time (host monotonic clock), features of its spec, a fault in words or ''."""

    stamp_ns: int
    features: Features
    fault: str = ""


class Robot(Protocol):
    """A driver. The robot server owns it, alone and on one thread, and puts the safety filter before `send`.

    Life: constructor does no I/O -> `connect` -> (`read`, `resolve`, `engage`, `send`, `release`, `idle`)* -> `close`.
    `spec` and `limits` can be read before `connect`; after it they may be narrower, never wider. Nothing may block:
    a call that waits for the device holds up the stop. Drivers inherit from this class and get the empty bodies below
    for what their device has not.
    """

    @property
    def spec(self) -> RobotSpec: ...

    @property
    def limits(self) -> SetpointLimits: ...

    @property
    def geometry(self) -> RobotGeometry | None:
        """For the workspace box and self-collision; known after `connect`."""
        return None

    def connect(self) -> None:
        """Open the device and wait for its first state; RobotError says what is missing and what to do."""

    def close(self) -> None:
        """Leave the device in its safe state and release it; harmless if it was never opened."""

    def measured_setpoint(self) -> Setpoint:
        """Where the robot is now, (S,) in the units of `limits`: the first command equals it."""
        ...

    def resolve(self, action: FloatArray) -> Setpoint:
        """The goal (S,) that a checked action (A,) means from here; called once per accepted command.

        Inverse kinematics live here. Relative actions count from the last goal. Raises RobotError if there is none.
        """
        ...

    def engage(self) -> None:
        """The robot becomes active: begin to command the device from its measured state (ramp authority in `send`)."""
        return

    def send(self, setpoint: Setpoint) -> None:
        """Give a filtered setpoint (S,) to the device; called at every tick while active."""

    def release(self) -> None:
        """The robot is no longer active: begin to give authority back; `idle` goes on with it tick by tick."""
        return

    def idle(self) -> None:
        """Called at every tick while not active: keep-alives, ramps of authority down to nothing."""
        return

    def emergency_stop(self) -> None:
        """The hardest stop that the vendor offers in software (damp, run-stop). The guard latches a fault with it."""
        return

    def hold(self) -> None:
        """Forget the goal: later relative actions count from the measured state."""

    def read(self) -> Reading:
        """The newest sample, with its own capture time; never blocks for a new one."""
        ...

    def external_effort(self) -> Setpoint | None:
        """Estimated external force on every axis (S,), N m or N; None where the device does not tell."""
        return None


@runtime_checkable
class EpisodicRobot(Robot, Protocol):
    """A robot whose scene is set up, judged and known by software: simulated here or on the vendor's side."""

    def reset(self, seed: int) -> None:
        """Set up the scene of that seed with the robot at rest in its start pose."""

    def task_status(self) -> TaskStatus:
        """The task's own predicate on the present state."""

    def ground_truth(self) -> Features:
        """True quantities that no sensor gives; for scripted experts and tests, never recorded."""

    def instruction(self) -> str:
        """What this episode asks for, in words; '' where the task is always the same."""
        return ""


@runtime_checkable
class ReversibleRobot(EpisodicRobot, Protocol):
    """A robot whose scene may stay as it is when an episode begins, because its task can be undone."""

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those that the task has; none if it goes one way only. After `reset` the direction is FORWARD."""

    def begin_here(self, seed: int, direction: Direction) -> None:
        """An episode in that direction from the present scene and pose. `seed`: of what is drawn for every episode."""


@runtime_checkable
class Renderer(Protocol):
    """Something with simulated cameras."""

    @property
    def cameras(self) -> tuple[str, ...]: ...

    def render(self, camera: str) -> Array:
        """RGB image (height, width, 3) uint8 of that camera."""
        ...


@runtime_checkable
class SimulatedRobot(EpisodicRobot, Renderer, Protocol):
    """A robot whose world is computed here; its server may run it on the wall clock or in lock-step.

    The same seed gives the same scene, and the same commands the same states, bit for bit.
    """

    def advance(self, duration_s: float) -> None:
        """Move the world's time on."""


class SafeState(Protocol):
    """A connection to the vendor's side of its own, kept by the keeper process beside the robot server.

    It stays silent while the server lives. When the server dies, `make_safe` brings the vendor's side into its safe
    state, within 200 ms to the first effect. It never arms anything.
    """

    def connect(self) -> None:
        """Open the connection ahead of need; RobotError says what is missing."""

    def watch(self) -> None:
        """Called about every 10 ms while the server lives: keep the newest state of the vendor's side."""

    def make_safe(self) -> None:
        """Bring the vendor's side into its safe state; returns when it is there."""

    def close(self) -> None: ...


class CameraSpec(Struct, frozen=True, kw_only=True):
    """One camera: frames are uint8 RGB (height, width, 3); `has_depth`: also uint16 depth in mm (height, width)."""

    name: str
    model: str
    serial: str
    width: int
    height: int
    rate_hz: float
    has_depth: bool = False


class Frame(Struct, frozen=True, kw_only=True):
    """One picture.

    `stamp_ns`: capture time on the host's monotonic clock; `device_time_ns` and `number`: the device's own clock and
    frame counter. A camera that hangs repeats one of them.
    """

    stamp_ns: int
    device_time_ns: int
    number: int
    image: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16] | None = None


class Camera(Protocol):
    """A camera driver; a camera process of its own owns it, on one thread."""

    @property
    def spec(self) -> CameraSpec: ...

    def connect(self) -> None:
        """Open the device; RobotError says what is missing and what to do."""

    def grab(self, timeout_s: float) -> Frame | None:
        """The next frame, or None if none came in time."""

    def close(self) -> None: ...


class Policy(Protocol):
    """Anything that proposes actions: diffusion, flow, scripted expert, remote."""

    @property
    def spec(self) -> PolicySpec: ...

    def predict(self, observation: Observation) -> ActionChunk:
        """A chunk (H, A) in the action's own units, inside its bounds; a pure function of the observation."""


class ResidualPolicy(Protocol):
    """What acts at every step on top of a base policy's action: a small correction, or an actor of its own."""

    @property
    def version(self) -> int: ...

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        """The action to execute (A,), inside the action's bounds: of a residual, the base plus a bounded correction."""


@runtime_checkable
class ExploringPolicy(ResidualPolicy, Protocol):
    """A step policy that explores in a way of its own while it collects, as a stochastic actor does."""

    def explore(self, observation: Observation, action_base: FloatArray, rng: np.random.Generator) -> FloatArray:
        """An action (A,) to learn from, inside the action's bounds."""


@runtime_checkable
class GuidedChunkPolicy(Policy, Protocol):
    """A policy whose chunks can go on from what is already planned (real-time chunking, warm starts)."""

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        """A chunk as of `predict`; a pure function of its arguments.

        Args:
            previous: (K, A), K <= H: the actions planned for the steps from `observation.index` on.
            delay_steps: so many of them will have run before this chunk is there.
            execute_steps: a chunk is asked for after so many steps; so many of its last actions are free to differ.
        """
        ...


class Outcome(Struct, frozen=True, kw_only=True):
    """What a reward model judges: a recorded step, and what was seen after its action; None where nothing was."""

    step: Step
    after: Features | None


class Judgement(Struct, frozen=True, kw_only=True):
    """A verdict on the state after a step.

    `probability` of success, 0 to 1, and `reward` of the step if the verdict stands. `sure`: it needs no confirmation
    by the verdicts on the next steps, because it was not guessed from observations.
    """

    success: bool
    probability: float
    reward: float
    sure: bool = False


class RewardModel(Protocol):
    """Says of recorded steps whether the task was done. The same outcome always gets the same judgement."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Hash of everything that a judgement depends on beside the outcome."""

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        """One judgement for each outcome, none of which depends on the others; nothing seen is no success."""
        ...
