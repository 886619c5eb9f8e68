"""How familiar a chunk is: pseudo-counts of a Coin-Flip Network, as TACO selects by (arXiv 2512.02834).

Every recorded item flips `flips` fair coins once; a network learns to predict them. Where n items look the same it can
do no better than the mean of their coins, whose mean square is 1/n: from its output f follows n = flips / |f|^2.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.steering.candidates import SampledPolicy
from policies.steering.config import CountConfig, JudgeConfig
from policies.steering.features import ChunkFeatures, check_belongs, make_features
from policies.steering.judge import load_judge, save_judge
from robot_stack.core.messages import FloatArray, Observation

KIND = "chunk-counts"


class CoinFlipNetwork(nn.Module):
    """Standardised features (B, F) -> coins (B, flips): a trained network plus a frozen, standardised random one.

    Away from the data the random prior keeps the output's mean square near 1, a count of one. Its statistics are those
    over the training data (`fit_prior`).
    """

    prior_mean: Tensor
    prior_std: Tensor

    def __init__(self, config: CountConfig, inputs: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trained = _Tower(config, inputs)
            self.prior = _Tower(config, inputs).eval().requires_grad_(False)
        self._gain = config.gain
        self.register_buffer("prior_mean", torch.zeros(config.flips))
        self.register_buffer("prior_std", torch.ones(config.flips))

    def forward(self, features: Tensor) -> Tensor:
        value = self._gain * features
        coins: Tensor = self.trained(value) + (self.prior(value) - self.prior_mean) / self.prior_std
        return coins

    @torch.no_grad()
    def fit_prior(self, features: Tensor) -> None:
        """Standardise the prior over all training features (N, F)."""
        output = self.prior.eval()(self._gain * features)
        self.prior_mean.copy_(output.mean(dim=0))
        self.prior_std.copy_(output.std(dim=0, correction=0).clamp_min(1e-3))

    def train(self, mode: bool = True) -> CoinFlipNetwork:
        super().train(mode)
        self.prior.eval()
        return self


class _Tower(nn.Module):
    def __init__(self, config: CountConfig, inputs: int) -> None:
        super().__init__()
        self.entry = nn.Linear(inputs, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.width),
                nn.Linear(config.width, 4 * config.width),
                nn.GELU(),
                nn.Dropout(config.dropout),
                nn.Linear(4 * config.width, config.width),
            )
            for _ in range(config.blocks)
        )
        self.exit = nn.Linear(config.width, config.flips)

    def forward(self, value: Tensor) -> Tensor:
        value = self.norm(functional.gelu(self.entry(value)))
        for block in self.blocks:
            value = value + block(value)
        coins: Tensor = self.exit(value)
        return coins


class CountScore:
    """Pseudo-counts as a `ChunkScore`: with temperature 0 the most familiar chunk is executed."""

    def __init__(self, config: JudgeConfig, network: CoinFlipNetwork, features: ChunkFeatures) -> None:
        check_belongs(features, config.belongs_to, "this coin-flip network")
        self.config, self._features = config, features
        self.network = network.eval().requires_grad_(False)

    def score(self, observation: Observation, chunks: FloatArray) -> FloatArray:
        return self.pseudo_count(self._features([observation], chunks))

    @torch.inference_mode()
    def pseudo_count(self, features: FloatArray) -> FloatArray:
        """How often something like these features (N, F) was recorded: (N,), above 0."""
        coins = self.network(torch.from_numpy(self.config.statistics.normalize(features)))
        counts: FloatArray = (1.0 / coins.square().mean(dim=-1).clamp_min(1e-12)).numpy()
        return counts

    def save(self, directory: Path, policy: SampledPolicy) -> None:
        """Write a folder like a policy's; StorageError if it exists."""
        save_judge(directory, KIND, policy.spec, self.config, self.network)

    @classmethod
    def load(cls, directory: Path, policy: SampledPolicy) -> CountScore:
        """The network of a folder, verified, for that policy; PolicyError says what is wrong."""
        judge = load_judge(directory, KIND, policy.spec, CountConfig)
        network = CoinFlipNetwork(judge.net, judge.inputs)
        judge.fill(network)
        return cls(judge.config, network, make_features(judge.config.features, policy))
