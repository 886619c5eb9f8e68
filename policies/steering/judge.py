"""Networks that judge chunks, on disk: folders like those of policies, checked in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from policies.common.store import check_shapes, load_policy, save_policy
from policies.steering.config import CountConfig, CriticConfig, JudgeConfig
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.specs import PolicySpec

N = TypeVar("N", CriticConfig, CountConfig)


@dataclass(frozen=True, slots=True)
class StoredJudge(Generic[N]):
    """What a folder holds; `net` has the kind that was asked for."""

    config: JudgeConfig
    net: N
    weights: dict[str, Array]
    origin: str

    @property
    def inputs(self) -> int:
        return len(self.config.statistics.mean)

    def fill(self, network: nn.Module) -> None:
        """Put the weights into the network; PolicyError if names or shapes differ."""
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        check_shapes(self.weights, expected, self.origin)
        network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in self.weights.items()})


def save_judge(directory: Path, kind: str, spec: PolicySpec, config: JudgeConfig, network: nn.Module) -> None:
    """Write the folder; StorageError if it exists."""
    weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    save_policy(directory, kind=kind, spec=spec, config=config, weights=weights)


def load_judge(directory: Path, kind: str, spec: PolicySpec, net: type[N]) -> StoredJudge[N]:
    """PolicyError if it is damaged, of another kind, or was trained for a policy that reads or writes other things."""
    manifest, weights = load_policy(directory, kind, JudgeConfig)
    if not isinstance(manifest.config.net, net):
        raise PolicyError(f"{directory} holds a network of {type(manifest.config.net).__name__}, not {net.__name__}")
    trained = (manifest.spec.task, manifest.spec.horizon, manifest.spec.action, manifest.spec.observation)
    if trained != (spec.task, spec.horizon, spec.action, spec.observation):
        raise PolicyError(
            f"{directory} judges chunks of policy '{manifest.spec.name}', whose task, horizon or features are not "
            f"those of '{spec.name}'; train it for this policy"
        )
    return StoredJudge(manifest.config, manifest.config.net, weights, str(directory))
