"""From the configured runtime to a back-end."""

from __future__ import annotations

import copy
import importlib.util
import logging
from pathlib import Path

import torch

from policies.generative.backend import Arrays, Backend, EagerBackend
from policies.generative.policy import MakeBackend
from policies.generative.runtime_config import RuntimeConfig
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import ConfigError

logger = logging.getLogger(__name__)


def backend_maker(config: RuntimeConfig, cache: Path) -> MakeBackend | None:
    """What makes the configured back-end for a policy's sampler; None where the policy's own, eager one will do.

    `cache`: folder for graphs that took long to build. ConfigError without the device that was asked for.
    The number of torch's threads is set for the whole process, at once.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device is cuda, and torch finds no CUDA device here; allowed: cpu")
    torch.set_num_threads(config.threads)
    backend = _automatic(config) if config.backend == "auto" else config.backend
    if backend == "eager" and config.device == "cpu":
        return None

    def make(sampler: ChunkSampler, _: Arrays) -> Backend:
        if config.device != "cpu":
            sampler = copy.deepcopy(sampler)  # the policy's own stays on the CPU
        if backend == "onnx":
            from policies.generative.onnx_backend import OnnxBackend

            return OnnxBackend(sampler, cache, config.threads)
        if backend == "compiled":
            from policies.generative.compiled_backend import CompiledBackend

            return CompiledBackend(sampler, config.device)
        return EagerBackend(sampler, config.device)

    return make


def _automatic(config: RuntimeConfig) -> str:
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
    if config.device == "cpu" and not installed:
        logger.info("chunks are computed in PyTorch; ONNX Runtime is some times faster: pip install robot_stack[fast]")
    return "onnx" if config.device == "cpu" and installed else "eager"
