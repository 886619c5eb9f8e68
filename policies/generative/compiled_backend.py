"""A whole sampler compiled by torch: fused kernels on the CPU, one CUDA graph on a GPU."""

from __future__ import annotations

import shutil

import torch

from policies.generative.backend import Arrays, Device, EagerBackend, check_against_eager, tensors
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import FloatArray


class CompiledBackend:
    """The unrolled sampler through torch.compile, for one row at a time; more rows go through eager PyTorch.

    The first chunk takes seconds to minutes, for compiling (it grows with the number of blocks that the schedule
    computes), and is checked against eager: let it be one that no robot waits for. ConfigError without a C++ compiler;
    PolicyError if the check fails.
    """

    def __init__(self, sampler: ChunkSampler, device: Device = "cpu") -> None:
        if device == "cpu" and shutil.which("g++") is None:
            raise ConfigError("backend=compiled needs the C++ compiler g++ on the CPU; install it or take backend=onnx")
        self._eager = EagerBackend(sampler, device)
        self._checked = False
        if device == "cuda":
            self._run = torch.compile(self._eager.module, fullgraph=True, dynamic=False, mode="reduce-overhead")
        else:
            # the weights do not change: let the compiler pack them
            self._run = torch.compile(self._eager.module, fullgraph=True, dynamic=False, options={"freezing": True})

    def sample(self, noise: FloatArray, step_noise: FloatArray | None, condition: Arrays) -> FloatArray:
        if len(noise) != 1:
            return self._eager.sample(noise, step_noise, condition)
        with torch.no_grad():
            chunks: FloatArray = self._run(*tensors(noise, step_noise, condition, self._eager.device)).cpu().numpy()
        if not self._checked:
            check_against_eager("compiled", chunks, self._eager.sample(noise, step_noise, condition))
            self._checked = True
        return chunks
