"""What a generative policy is built from, apart from its code: reading a configuration loads no torch."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from policies.acceleration.schedule import CacheSchedule
from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.vla.config import VlaConfig
from robot_stack.core.errors import ConfigError

NetConfig = TransformerConfig | UNetConfig | ExpertConfig | VlaConfig


class DiffusionChain(Struct, frozen=True, kw_only=True, tag="diffusion"):
    """Noising by a chain of `train_steps` (squared cosine); the network estimates the noise or the clean actions.

    Nichol and Dhariwal, 2021; Chi et al., Diffusion Policy, RSS 2023.
    """

    train_steps: int = 100
    prediction: Literal["epsilon", "sample"] = "epsilon"

    def __post_init__(self) -> None:
        if self.train_steps < 1:
            raise ConfigError(f"process.train_steps is {self.train_steps}; allowed: 1 or more")


class FlowPath(Struct, frozen=True, kw_only=True, tag="flow"):
    """Straight path from noise (t = 0) to actions (t = 1); the network estimates the velocity, actions minus noise.

    Training draws 1 - t from Beta(`time_alpha`, `time_beta`): (1.5, 1) looks at noisy times more often, (1, 1) at all
    alike. Lipman et al., 2023; Black et al., pi0, 2024 (whose t runs the other way).

    `objective`: flow; or, for few steps, with a network that is told how far a step goes: shortcut (Frans et al., 2024;
    1, 2, 4, ... 128 steps) or consistency (distilled from a trained flow, which is the teacher; Prasad et al., 2024).
    """

    time_alpha: float = 1.5
    time_beta: float = 1.0
    objective: Literal["flow", "shortcut", "consistency"] = "flow"

    def __post_init__(self) -> None:
        for name in ("time_alpha", "time_beta"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"process.{name} is {getattr(self, name)}; allowed: above 0")


Process = DiffusionChain | FlowPath

_DIFFUSION_SOLVERS = ("ddpm", "ddim", "dpmpp")
_FLOW_SOLVERS = ("euler", "heun")
_SHORTCUT_STEPS = tuple(2**halving for halving in range(8))  # the strides that policies/flow/shortcut.py trains


class SolverConfig(Struct, frozen=True, kw_only=True):
    """How a chunk is sampled. ddpm: the chain itself, with noise at every step. ddim: deterministic, any number of
    steps. dpmpp: DPM-Solver++(2M). euler, heun: of a flow; heun calls the network twice for each step but the last."""

    kind: Literal["ddpm", "ddim", "dpmpp", "euler", "heun"] = "ddim"
    steps: int = 10

    def check(self, process: Process) -> None:
        """ConfigError unless this solver can sample from that process."""
        allowed = _DIFFUSION_SOLVERS if isinstance(process, DiffusionChain) else _FLOW_SOLVERS
        if self.kind not in allowed:
            raise ConfigError(f"solver.kind is {self.kind}; allowed for this policy: {', '.join(allowed)}")
        if self.steps < 1:
            raise ConfigError(f"solver.steps is {self.steps}; allowed: 1 or more")
        if isinstance(process, FlowPath) and process.objective != "flow":
            self._check_long_steps(process)
        if isinstance(process, DiffusionChain):
            if self.steps > process.train_steps:
                raise ConfigError(f"solver.steps is {self.steps}; allowed: up to train_steps, {process.train_steps}")
            if self.kind == "ddpm" and self.steps != process.train_steps:
                raise ConfigError(
                    f"solver.steps is {self.steps}; ddpm takes all {process.train_steps} of train_steps: use ddim or "
                    "dpmpp for fewer"
                )

    def _check_long_steps(self, process: FlowPath) -> None:
        if self.kind != "euler":
            raise ConfigError(f"solver.kind is {self.kind}; allowed for a {process.objective} model: euler")
        if process.objective == "shortcut" and self.steps not in _SHORTCUT_STEPS:
            raise ConfigError(f"solver.steps is {self.steps}; allowed for a shortcut model: 1, 2, 4, 8, ... 128")


class GenerativeConfig(Struct, frozen=True, kw_only=True):
    """Everything beside the weights that a prediction depends on; saved with them.

    `observation` normalises the concatenated vector features of the spec; `vocabulary`: words that instructions may be
    made of, of a policy that reads them. `schedule`: which blocks are kept from call to call; None computes them all.
    """

    net: NetConfig
    process: Process
    solver: SolverConfig
    observation: MinMaxNormalizer
    action: MinMaxNormalizer
    vocabulary: tuple[str, ...] = ()
    schedule: CacheSchedule | None = None

    def __post_init__(self) -> None:
        long_steps = isinstance(self.process, FlowPath) and self.process.objective != "flow"
        told = isinstance(self.net, ExpertConfig) and self.net.step_conditioned
        if long_steps != told:
            raise ConfigError(
                f"net.step_conditioned is {told}; allowed: True with process.objective shortcut or consistency (and an "
                "expert as the net), False otherwise"
            )
