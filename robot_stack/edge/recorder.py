"""The recorder: every control step becomes a `Step` and goes to a sink, at the edge the outbox, that does not block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from robot_stack.core.messages import Array, Features, FloatArray, Source, Step
from robot_stack.edge.control_loop import LoopStep


@dataclass(frozen=True, slots=True)
class RecordingId:
    """Which run and robot a recording belongs to."""

    run: str
    robot: str
    task: str


class Recorder:
    """Gives every step its identity (run, robot, session, seq). A restart is a new session, so nothing collides.

    Within an episode `segment` counts the changes of the source, from 0: a policy's stretch, a person's, the policy's
    again are segments 0, 1 and 2. The arrays of a step given to the sink never change afterwards.
    """

    def __init__(self, recording: RecordingId, sink: Callable[[Step], object]) -> None:
        self._recording = recording
        self._sink = sink
        self._session = uuid4().hex
        self._seq = 0
        self._segment = 0
        self._last: tuple[int, Source] | None = None

    @property
    def session(self) -> str:
        return self._session

    @property
    def recorded(self) -> int:
        """Steps given to the sink by this session."""
        return self._seq

    def on_step(self, step: LoopStep) -> None:
        task = step.stepped.state.task
        ended = step.terminated or step.truncated
        record = Step(
            run=self._recording.run,
            robot=self._recording.robot,
            task=self._recording.task,
            session=self._session,
            seq=self._seq,
            episode=step.episode.number,
            episode_seed=step.episode.seed,
            segment=self._segment_of(step),
            index=step.observation.index,
            stamp_ns=step.observation.stamp_ns,
            observation=_kept_features(step.observation.features),
            action_base=_kept(step.action_base),
            action_asked=_kept(step.action_asked),
            action_sent=_kept(step.stepped.result.sent),
            verdict=step.stepped.result.verdict,
            refusal=step.stepped.result.refusal,
            source=step.source,
            weights_version=step.weights_version,
            reward=task.reward if task else 0.0,
            success=task.success if task else False,
            terminated=step.terminated,
            truncated=step.truncated,
            late=step.stepped.late,
            final_observation=_kept_features(step.following.features) if ended else None,
            final_action_base=None if step.following_base is None else _kept(step.following_base),
            instruction=step.observation.instruction,
        )
        self._sink(record)
        self._seq += 1

    def _segment_of(self, step: LoopStep) -> int:
        before, self._last = self._last, (step.episode.number, step.source)
        if before is None or before[0] != step.episode.number:
            self._segment = 0
        elif before[1] is not step.source:
            self._segment += 1
        return self._segment


def _kept_features(features: Features) -> Features:
    return {name: _fixed(value) for name, value in features.items()}


def _kept(action: FloatArray) -> FloatArray:
    fixed: FloatArray = _fixed(action)
    return fixed


def _fixed(array: Array) -> Array:
    """The array itself if nobody can write to it (what came from a message), else a copy."""
    return np.array(array) if array.flags.writeable else array
