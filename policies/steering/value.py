"""How good a chunk is: a learned value of (observation, chunk), as V-GPS re-ranks by (arXiv 2410.13816)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from policies.common.ensemble_mlp import EnsembleMlp
from policies.steering.candidates import SampledPolicy
from policies.steering.config import CriticConfig, JudgeConfig
from policies.steering.features import ChunkFeatures, check_belongs, make_features
from policies.steering.judge import load_judge, save_judge
from robot_stack.core.messages import FloatArray, Observation

KIND = "chunk-critic"


class ChunkCritic(nn.Module):
    """Standardised features (B, F) -> values (members, B); starts at zero."""

    def __init__(self, config: CriticConfig, inputs: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mlp = EnsembleMlp(config.members, inputs, config.hidden, 1, last_scale=0.0, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        values: Tensor = self.mlp(features)[..., 0]
        return values


class ValueScore:
    """The mean of a critic's members; a `ChunkScore`."""

    def __init__(self, config: JudgeConfig, critic: ChunkCritic, features: ChunkFeatures) -> None:
        check_belongs(features, config.belongs_to, "this chunk critic")
        self.config, self._features = config, features
        self.critic = critic.eval().requires_grad_(False)

    @torch.inference_mode()
    def score(self, observation: Observation, chunks: FloatArray) -> FloatArray:
        features = self.config.statistics.normalize(self._features([observation], chunks))
        values: FloatArray = self.critic(torch.from_numpy(features)).mean(dim=0).numpy()
        return values

    def save(self, directory: Path, policy: SampledPolicy) -> None:
        """Write a folder like a policy's; StorageError if it exists."""
        save_judge(directory, KIND, policy.spec, self.config, self.critic)

    @classmethod
    def load(cls, directory: Path, policy: SampledPolicy) -> ValueScore:
        """The critic of a folder, verified, for that policy; PolicyError says what is wrong."""
        judge = load_judge(directory, KIND, policy.spec, CriticConfig)
        critic = ChunkCritic(judge.net, judge.inputs)
        judge.fill(critic)
        return cls(judge.config, critic, make_features(judge.config.features, policy))
