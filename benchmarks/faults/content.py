"""Steps whose every byte follows from their identity (session, seq): a mix-up, a loss or damage cannot hide."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import (
    CommandResult,
    Features,
    FloatArray,
    Lifecycle,
    Observation,
    RobotState,
    Source,
    Step,
    TaskStatus,
    Verdict,
)
from robot_stack.core.specs import IMAGES, STATE
from robot_stack.edge.control_loop import EpisodeId, LoopStep
from robot_stack.edge.recorder import RecordingId
from robot_stack.edge.remote_robot import Stepped

RECORDING = RecordingId(run="faults", robot="robot_0", task="none")
EPISODE_STEPS = 40
IMAGE_EVERY_EPISODES = 4
IMAGE_SHAPE = (24, 32, 3)
PERIOD_NS = 20_000_000
_BOOT = "boot"


def loop_step(session: str, seq: int) -> LoopStep:
    """The control step that this identity stands for. Every fourth episode has images; time-outs and ends alternate."""
    episode, index = divmod(seq, EPISODE_STEPS)
    ended = index == EPISODE_STEPS - 1
    terminated = ended and episode % 2 == 0
    truncated = ended and not terminated
    base, asked, sent = (_floats(session, seq, name, 7) for name in ("base", "asked", "sent"))
    result = CommandResult(seq=seq, verdict=Verdict.ACCEPTED, refusal=None, message="", sent=sent)
    task = TaskStatus(reward=seq % 7 / 7, success=terminated, terminated=terminated, truncated=truncated)
    state = RobotState(
        boot=_BOOT, seq=seq, stamp_ns=seq * PERIOD_NS, lifecycle=Lifecycle.ACTIVE, features={}, task=task
    )
    return LoopStep(
        episode=EpisodeId(episode, seed=episode + 1),
        observation=_observation(session, seq, episode, index),
        action_base=base,
        action_asked=asked,
        stepped=Stepped(result, state, age_ns=0, late=seq % 11 == 0),
        source=Source.POLICY,
        weights_version=seq // 100,
        terminated=terminated,
        truncated=truncated,
        following=_observation(session, seq + 1, episode, index + 1),
        following_base=_floats(session, seq, "following", 7) if truncated else None,
    )


def problem_of(step: Step) -> str:
    """What differs between a stored step and the one that its identity stands for; '' if nothing does."""
    wanted = loop_step(step.session, step.seq)
    ended = wanted.terminated or wanted.truncated
    task = wanted.stepped.state.task
    expected = msgspec.structs.replace(
        step,
        run=RECORDING.run,
        robot=RECORDING.robot,
        task=RECORDING.task,
        episode=wanted.episode.number,
        episode_seed=wanted.episode.seed,
        segment=0,
        index=wanted.observation.index,
        stamp_ns=wanted.observation.stamp_ns,
        observation=wanted.observation.features,
        action_base=wanted.action_base,
        action_asked=wanted.action_asked,
        action_sent=wanted.stepped.result.sent,
        verdict=wanted.stepped.result.verdict,
        refusal=None,
        source=wanted.source,
        weights_version=wanted.weights_version,
        reward=task.reward if task else 0.0,
        success=bool(task and task.success),
        terminated=wanted.terminated,
        truncated=wanted.truncated,
        late=wanted.stepped.late,
        final_observation=wanted.following.features if ended else None,
        final_action_base=wanted.following_base,
    )
    names = [name for name in step.__struct_fields__ if not _same(getattr(step, name), getattr(expected, name))]
    return f"{step.session} {step.seq}: {', '.join(names)}" if names else ""


def _observation(session: str, seq: int, episode: int, index: int) -> Observation:
    features: Features = {STATE: _floats(session, seq, "state", 10)}
    if episode % IMAGE_EVERY_EPISODES == 0:
        features[IMAGES + "wrist"] = _bytes(session, seq, "image", int(np.prod(IMAGE_SHAPE))).reshape(IMAGE_SHAPE)
    return Observation(
        id=seq, stamp_ns=seq * PERIOD_NS, features=features, age_ns={}, episode_seed=episode + 1, index=index
    )


def _floats(session: str, seq: int, name: str, count: int) -> FloatArray:
    return _bytes(session, seq, name, count).astype(np.float32) / np.float32(255)


def _bytes(session: str, seq: int, name: str, count: int) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.shake_128(f"{session}/{seq}/{name}".encode()).digest(count), np.uint8)


def _same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other
