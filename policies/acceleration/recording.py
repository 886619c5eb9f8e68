"""What the blocks of a denoiser put out while chunks are sampled, condensed to what schedules are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from torch import Tensor

from policies.generative.backend import Arrays
from policies.generative.policy import GenerativePolicy
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray, Observation


class RecordingBlocks:
    """Computes every block and keeps its output of each call; a `Blocks`, for one chunk."""

    def __init__(self, blocks: int) -> None:
        self.outputs: list[list[Tensor]] = [[] for _ in range(blocks)]

    def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        output = compute()
        self.outputs[block].append(output)
        return output


@dataclass(frozen=True, slots=True)
class Recording:
    """Means over the recorded chunks of a solver with T calls.

    Attributes:
        blocks: names of the denoiser's blocks.
        similarity: (blocks, T, T) cosine of each block's output at one call and at another.
        errors: (blocks,) mean absolute difference of a block's output between two calls, over all pairs of calls.
        changes: (T,) how much what the first layer puts out has changed since the call before, relative to its size
            (mean absolute values); 0 at call 0. The first layer is where noisy actions and time meet, as in TeaCache's
            time-modulated input, and exists in every network.
    """

    blocks: tuple[str, ...]
    similarity: NDArray[np.float64]
    errors: NDArray[np.float64]
    changes: NDArray[np.float64]


def record(policy: GenerativePolicy, observations: Sequence[Observation]) -> Recording:
    """The recording of the chunks that the policy predicts for these observations, without caching, with the noise
    that it draws for each of them. PolicyError without observations.

    One chunk at a time: memory holds T outputs of every block for one row.
    """
    if not observations:
        raise PolicyError("calibration needs at least one observation; collect demonstrations first")
    sampler = ChunkSampler(policy.sampler.denoiser, policy.config.process, policy.config.solver)
    chunks = []
    for observation in observations:
        noise, step_noise = policy.noise([observation])
        chunks.append(record_chunk(sampler, noise, step_noise, policy.condition([observation])))
    return Recording(
        blocks=sampler.denoiser.block_names,
        similarity=np.mean([chunk.similarity for chunk in chunks], axis=0),
        errors=np.mean([chunk.errors for chunk in chunks], axis=0),
        changes=np.mean([chunk.changes for chunk in chunks], axis=0),
    )


@torch.inference_mode()
def record_chunk(
    sampler: ChunkSampler, noise: FloatArray, step_noise: FloatArray | None, condition: Arrays
) -> Recording:
    """The recording of one chunk; arguments as `Backend.sample` with one row."""
    names = sampler.denoiser.block_names
    blocks = RecordingBlocks(len(names))
    fresh = None if step_noise is None else torch.from_numpy(step_noise)
    context, clock = sampler.prepare(tuple(torch.from_numpy(part) for part in condition))
    noisy = previous = torch.from_numpy(noise)
    for index in range(len(sampler.calls)):
        clean = sampler.estimate(index, noisy, clock, context, blocks)
        noisy, previous = sampler.advance(index, noisy, clean, previous, fresh), clean
    outputs = [np.stack([output.numpy().ravel() for output in kept]).astype(np.float64) for kept in blocks.outputs]
    first_layer = [rows for name, rows in zip(names, outputs, strict=True) if _layer(name) == _layer(names[0])]
    return Recording(
        blocks=names,
        similarity=np.stack([cosine(rows) for rows in outputs]),
        errors=np.array([_mean_difference(rows) for rows in outputs]),
        changes=relative_changes(np.concatenate(first_layer, axis=1)),
    )


def cosine(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, T) cosine of every two of T rows; rows of zeros are alike, and like nothing else."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0.0)
    zero = lengths[:, 0] == 0.0
    similarity: NDArray[np.float64] = units @ units.T + np.outer(zero, zero)
    return similarity


def relative_changes(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) mean absolute change of each of T rows to the one before, relative to that one's mean absolute value."""
    changed = np.abs(np.diff(rows, axis=0)).sum(axis=1)
    size = np.abs(rows[:-1]).sum(axis=1)
    relative = np.divide(changed, size, out=(changed > 0.0).astype(np.float64), where=size > 0.0)
    return np.concatenate(([0.0], relative))


def _mean_difference(rows: NDArray[np.float64]) -> float:
    return float(pdist(rows, "cityblock").mean() / rows.shape[1]) if len(rows) > 1 else 0.0


def _layer(block: str) -> str:
    return block.partition(".")[0]
