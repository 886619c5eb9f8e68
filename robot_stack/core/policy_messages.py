"""What a policy server is asked and answers. See `robot_stack.core.messages`."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.messages import ActionChunk, Failed, FloatArray, Hello, Observation
from robot_stack.core.specs import PolicySpec


class PredictChunk(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Ask for the chunk of one observation, with what the policy reads: features, earlier steps, instruction.

    `fingerprint` names the policy's spec that the asker drives its robot by (`PolicyInfo.fingerprint`); `robot` the
    robot, so that the server knows how many there are. `planned`, `delay_steps`, `execute_steps`: what a chunk that
    goes on from planned actions is told (`GuidedChunkPolicy.predict_guided`); None for one from noise alone.
    """

    fingerprint: str
    robot: str
    observation: Observation
    planned: FloatArray | None = None
    delay_steps: int = 0
    execute_steps: int = 0


class PolicyInfo(Struct, frozen=True, kw_only=True, tag=True):
    """What a policy server serves, told once its policy is warm. `predict_s`: how long one prediction takes there.
    `example_instruction`: words that the policy knows, '' if it reads none."""

    schema_version: int
    boot: str
    fingerprint: str
    spec: PolicySpec
    predict_s: float
    example_instruction: str = ""


class PredictedChunk(Struct, frozen=True, kw_only=True, tag=True):
    """The answer to `PredictChunk`. `batch`: chunks that were computed at once."""

    chunk: ActionChunk
    batch: int = 1


PolicyRequest = Hello | PredictChunk
PolicyReply = PolicyInfo | PredictedChunk | Failed
