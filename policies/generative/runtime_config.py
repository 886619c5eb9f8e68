"""Where a policy runs, for the configuration: reading it loads no torch."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class RuntimeConfig(Struct, frozen=True, kw_only=True):
    """Back-end of a policy, threads of one prediction, and device.

    eager: PyTorch, ready at once. compiled: the whole sampler by torch.compile (with CUDA graphs on `cuda`); compiling
    takes minutes for many solver steps. onnx: the whole sampler as one graph in ONNX Runtime, on the CPU: the fastest
    there; building it takes seconds to minutes, and is kept for the next start. auto: onnx on the CPU where it is
    installed, else eager.
    """

    backend: Literal["auto", "eager", "compiled", "onnx"] = "eager"
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"runtime.threads is {self.threads}; allowed: 1 or more")
        if self.backend == "onnx" and self.device != "cpu":
            raise ConfigError("runtime.device is cuda; allowed with backend=onnx: cpu (take backend=compiled for cuda)")
