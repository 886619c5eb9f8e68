"""How the networks that judge chunks are trained; they read arrays, wherever those come from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from policies.common.normalization import fit_standardizer
from policies.steering.config import CountConfig, CriticConfig, JudgeConfig
from policies.steering.counts import CoinFlipNetwork, CountScore
from policies.steering.features import ChunkFeatures
from policies.steering.value import ChunkCritic, ValueScore
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray


def success_returns(lengths: NDArray[np.int64], successes: NDArray[np.bool_], discount: float) -> list[FloatArray]:
    """For every step of every episode the return of a reward of 1 at the end of a success: discount^(steps left)."""
    return [
        (float(success) * discount ** np.arange(length - 1, -1, -1)).astype(np.float32)
        for length, success in zip(lengths.tolist(), successes.tolist(), strict=True)
    ]


def train_value(
    data: FloatArray,
    returns: FloatArray,
    features: ChunkFeatures,
    config: CriticConfig,
    *,
    steps: int = 2_000,
    batch: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> ValueScore:
    """Monte-Carlo regression of the returns (N,) on features (N, F) of the chunks that were executed.

    V-GPS learns by Cal-QL; with success at the end of an episode as the only reward and chunks of the policy that is
    steered, the return itself is an unbiased target and needs no bootstrapping.
    """
    _check_rows(data, returns)
    statistics = fit_standardizer(data)
    judge = JudgeConfig(net=config, features=features.kind, statistics=statistics, belongs_to=features.belongs_to)
    critic = ChunkCritic(config, data.shape[1], seed)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=learning_rate, weight_decay=1e-4)
    inputs, targets = torch.from_numpy(statistics.normalize(data)), torch.from_numpy(returns.astype(np.float32))
    for rows in _batches(len(data), batch, steps, seed):
        loss = (critic(inputs[rows]) - targets[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ValueScore(judge, critic, features)


def train_counts(
    data: FloatArray,
    features: ChunkFeatures,
    config: CountConfig,
    *,
    steps: int = 2_000,
    batch: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> CountScore:
    """A Coin-Flip Network on features (N, F) of recorded chunks; the coins of an item depend on `seed` and its row."""
    _check_rows(data, data)
    statistics = fit_standardizer(data)
    judge = JudgeConfig(net=config, features=features.kind, statistics=statistics, belongs_to=features.belongs_to)
    network = CoinFlipNetwork(config, data.shape[1], seed).train()
    inputs = torch.from_numpy(statistics.normalize(data))
    coins = torch.from_numpy(flip_coins(len(data), config.flips, seed))
    network.fit_prior(inputs)
    optimizer = torch.optim.Adam(network.trained.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for rows in _batches(len(data), batch, steps, seed):
        loss = functional.mse_loss(network(inputs[rows]), coins[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return CountScore(judge, network, features)


def flip_coins(items: int, flips: int, seed: int) -> FloatArray:
    """Fair coins -1 or 1 (items, flips), fixed once and for all."""
    coins = np.random.default_rng((seed, items)).integers(0, 2, (items, flips))
    return (2 * coins - 1).astype(np.float32)


def _batches(rows: int, batch: int, steps: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if rows <= batch:
        return [torch.arange(rows)] * steps
    return [torch.randint(rows, (batch,), generator=generator) for _ in range(steps)]


def _check_rows(data: FloatArray, targets: FloatArray) -> None:
    if data.ndim != 2 or len(data) != len(targets) or len(data) < 2 or not np.isfinite(targets).all():
        raise PolicyError(
            f"features {data.shape} and targets {targets.shape} of chunks; needed: (N, F) and as many finite targets, "
            "N of 2 or more"
        )
