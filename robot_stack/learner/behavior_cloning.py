"""Behaviour cloning of a diffusion policy from demonstrations; if stopped, it continues when called again."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.common.normalization import fit_min_max
from policies.diffusion.config import DiffusionPolicyConfig
from policies.diffusion.policy import DiffusionPolicy, build_net
from policies.diffusion.schedule import ddpm_scheduler
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray
from robot_stack.core.specs import PolicySpec
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.bc_config import BcConfig
from robot_stack.learner.checkpoint import Checkpoint, CheckpointStore


@dataclass(frozen=True, slots=True)
class DemonstrationArrays:
    """Episodes one after the other.

    Attributes:
        observation: (T, D) float32, features flattened in the order of the policy's spec.
        action: (T, A) float32, the expert's intended action, without the noise it was executed with.
        episode_ends: (E,) int64, index one past each episode's last step, increasing, the last one T.
    """

    observation: FloatArray
    action: FloatArray
    episode_ends: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BcProgress:
    """Where the training is; `loss` is the mean since the last report."""

    step: int
    steps: int
    loss: float
    elapsed_s: float


class BcMeta(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint belongs to."""

    spec: PolicySpec
    config: BcConfig
    data_sha256: str


def train(
    data: DemonstrationArrays,
    spec: PolicySpec,
    config: BcConfig,
    *,
    progress: Callable[[BcProgress], None] | None = None,
    resume_dir: Path | None = None,
) -> DiffusionPolicy:
    """A policy trained on the demonstrations.

    With `resume_dir`, checkpoints are kept there and an interrupted training of the same data and settings continues
    from the last one with the result it would have had. PolicyError if the folder belongs to another training.
    """
    trainer = _Trainer(data, spec, config)
    store = CheckpointStore(resume_dir, keep=2) if resume_dir else None
    if store:
        store.open()
        trainer.resume(store.latest())
    started_s, losses = time.monotonic(), []
    while trainer.step < config.steps:
        losses.append(trainer.advance())
        due = trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps
        if store and due:
            store.save(trainer.step, trainer.state(), trainer.meta)
        if progress and (due or len(losses) == 50):
            progress(BcProgress(trainer.step, config.steps, float(np.mean(losses)), time.monotonic() - started_s))
            losses = []
    return trainer.policy()


class _Trainer:
    """Network, average, optimiser, learning-rate schedule and random generator of one training."""

    def __init__(self, data: DemonstrationArrays, spec: PolicySpec, config: BcConfig) -> None:
        _check(data, spec, config)
        self._config, self._spec = config, spec
        self._policy_config = DiffusionPolicyConfig(
            net=config.net, observation=fit_min_max(data.observation), action=fit_min_max(data.action)
        )
        self._observations = torch.from_numpy(self._policy_config.observation.normalize(data.observation))
        chunks = action_chunks(data.action, data.episode_ends, config.net.horizon)
        self._chunks = torch.from_numpy(self._policy_config.action.normalize(chunks))
        self._generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self._net = build_net(spec, self._policy_config)
        self._average = copy.deepcopy(self._net).requires_grad_(False)
        self._optimizer = adamw(self._net.parameters(), config.lr, config.weight_decay)
        self._scheduler = ddpm_scheduler(config.net)
        self.step = 0
        self.meta = msgspec.json.encode(BcMeta(spec=spec, config=config, data_sha256=_fingerprint(data)))

    def advance(self) -> float:
        """One gradient step; its loss."""
        config, generator = self._config, self._generator
        index = torch.randint(len(self._chunks), (config.batch_size,), generator=generator)
        clean = self._chunks[index]
        noise = torch.empty_like(clean).normal_(generator=generator)
        time_step = torch.randint(config.net.train_steps, (config.batch_size,), generator=generator)
        noisy = self._scheduler.add_noise(clean, noise, time_step)  # type: ignore[arg-type]
        output = self._net(noisy, time_step, self._observations[index])
        loss = nn.functional.mse_loss(output, noise if config.net.prediction == "epsilon" else clean)
        for group in self._optimizer.param_groups:
            group["lr"] = _learning_rate(self.step, config)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.step += 1
        decay = min(config.ema_max, 1.0 - (1.0 + self.step) ** -config.ema_power)
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.parameters()), list(self._net.parameters()), 1.0 - decay)
        return float(loss.item())

    def policy(self) -> DiffusionPolicy:
        return DiffusionPolicy(self._spec, self._policy_config, copy.deepcopy(self._average))

    def state(self) -> dict[str, Array]:
        state: dict[str, Array] = {name: tensor.detach().numpy() for name, tensor in self._tensors().items()}
        return state | {"generator": self._generator.get_state().numpy()}

    def resume(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        if checkpoint.meta != self.meta:
            raise PolicyError(
                f"the checkpoint at step {checkpoint.step} belongs to other demonstrations or settings; "
                "give another folder, or remove it to start anew"
            )
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.from_numpy(checkpoint.tensors[name]))
        self._generator.set_state(torch.from_numpy(checkpoint.tensors["generator"]))
        self.step = checkpoint.step

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"net.{name}": value for name, value in self._net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        return tensors | adamw_tensors(self._optimizer, "optimizer")


def action_chunks(action: FloatArray, episode_ends: NDArray[np.int64], horizon: int) -> FloatArray:
    """(T, H, A): the H actions from each step on; past the episode's end its last action is repeated."""
    lengths = np.diff(episode_ends, prepend=0)
    last = np.repeat(episode_ends - 1, lengths)
    index = np.minimum(np.arange(len(action))[:, None] + np.arange(horizon), last[:, None])
    chunks: FloatArray = action[index]
    return chunks


def _learning_rate(step: int, config: BcConfig) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def _fingerprint(data: DemonstrationArrays) -> str:
    digest = hashlib.sha256()
    for array in (data.observation, data.action, data.episode_ends):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _check(data: DemonstrationArrays, spec: PolicySpec, config: BcConfig) -> None:
    steps, ends = len(data.observation), data.episode_ends
    if len(ends) == 0 or ends[-1] != steps or len(data.action) != steps or (np.diff(ends, prepend=0) < 1).any():
        raise PolicyError(
            f"demonstrations do not add up: {steps} observations, {len(data.action)} actions, "
            f"episodes end at {ends.tolist()[-3:]}; record at least one demonstration"
        )
    if spec.horizon != config.net.horizon:
        raise PolicyError(f"horizon is {spec.horizon} in the policy's spec and {config.net.horizon} in bc.net")
