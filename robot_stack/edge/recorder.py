"""The recorder: every control step becomes a packed `Step` in a durable sink before the next one is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from robot_stack.core.codec import pack
from robot_stack.core.messages import Step
from robot_stack.edge.control_loop import LoopStep


@dataclass(frozen=True, slots=True)
class RecordingId:
    """Which run and robot a recording belongs to."""

    run: str
    robot: str
    task: str


class Recorder:
    """Gives every step its identity (run, robot, session, seq). A restart is a new session, so nothing collides."""

    def __init__(self, recording: RecordingId, sink: Callable[[bytes], object]) -> None:
        self._recording = recording
        self._sink = sink
        self._session = uuid4().hex
        self._seq = 0

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
            segment=0,
            index=step.observation.index,
            stamp_ns=step.observation.stamp_ns,
            observation=step.observation.features,
            action_base=step.action_base,
            action_asked=step.action_asked,
            action_sent=step.stepped.result.sent,
            verdict=step.stepped.result.verdict,
            refusal=step.stepped.result.refusal,
            source=step.source,
            weights_version=step.weights_version,
            reward=task.reward if task else 0.0,
            success=task.success if task else False,
            terminated=step.terminated,
            truncated=step.truncated,
            late=step.stepped.late,
            final_observation=step.following.features if ended else None,
            final_action_base=step.following_base,
        )
        self._sink(pack(record))
        self._seq += 1
