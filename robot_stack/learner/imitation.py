"""Imitation of demonstrations by a generative policy; if stopped, it continues when called again.

Every random number of a gradient step comes from (seed, step), so an interrupted training on the CPU ends with the very
weights that it would have had.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from policies.common.denoiser import Denoiser
from policies.common.features import image_features, vector_features, vector_length
from policies.common.normalization import fit_min_max
from policies.generative.build import build_net, sizes_of
from policies.generative.config import FlowPath, GenerativeConfig
from policies.generative.digest import weights_sha256
from policies.generative.objectives import training_loss
from policies.generative.policy import GenerativePolicy
from policies.generative.sampler import ChunkSampler
from policies.vla.config import VlaConfig
from policies.vla.words import vocabulary_of
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.specs import PolicySpec
from robot_stack.learner.algorithms.adamw import adamw_of_module, adamw_tensors
from robot_stack.learner.checkpoint import Checkpoint, CheckpointStore
from robot_stack.learner.gradient_step import average_decay, follow, seeded_step
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.imitation_data import DemonstrationArrays, Indices, Windows
from robot_stack.learner.imitation_log import TrainingLog

REPORT_EVERY = 50
MAX_VALIDATION_WINDOWS = 512
_VALIDATION_BATCH = 64

Rollout = Callable[[GenerativePolicy], float]
"""Runs the policy as it is and says how well it does, more is better."""


@dataclass(frozen=True, slots=True)
class ImitationProgress:
    """Where the training is. `loss`: mean since the last report; `validation_error`: the newest, None before one."""

    step: int
    steps: int
    loss: float
    elapsed_s: float
    validation_error: float | None = None


class ImitationMeta(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint belongs to."""

    spec: PolicySpec
    config: ImitationConfig
    data_sha256: str
    teacher_sha256: str = ""


def train(
    data: DemonstrationArrays,
    spec: PolicySpec,
    config: ImitationConfig,
    *,
    progress: Callable[[ImitationProgress], None] | None = None,
    resume_dir: Path | None = None,
    log: TrainingLog | None = None,
    rollout: Rollout | None = None,
    teacher: GenerativePolicy | None = None,
) -> GenerativePolicy:
    """A policy trained on the demonstrations, on the CPU whatever it was trained on.

    With `resume_dir`, checkpoints are kept there and an interrupted training of the same data and settings continues
    from the last one with the result it would have had. PolicyError if the folder belongs to another training.
    `log` gets loss, gradient norm and learning rate, and, every so many steps of the configuration, `validation_error`
    (mean absolute error of sampled against held-out actions, in normalised units) and `rollout`.
    `teacher`: the trained flow that a consistency model is distilled from. Every training that is given one begins with
    its weights, as far as they fit, and takes over its normalisation.
    """
    with torch.random.fork_rng():
        trainer = _Trainer(data, spec, config, teacher)
        store = CheckpointStore(resume_dir, keep=2) if resume_dir else None
        if store:
            store.open()
            trainer.resume(store.latest())
        _run(trainer, store, _Reports(trainer, progress, log), rollout)
        return trainer.policy()


def _run(trainer: _Trainer, store: CheckpointStore | None, reports: _Reports, rollout: Rollout | None) -> None:
    config = trainer.config
    while trainer.step < config.steps:
        reports.count(trainer.advance())
        last = trainer.step == config.steps
        due = last or trainer.step % config.checkpoint_every == 0
        if trainer.has_validation and config.validate_every and (last or trainer.step % config.validate_every == 0):
            reports.measured("validation_error", trainer.validation_error())
        if rollout and config.rollout_every and (last or trainer.step % config.rollout_every == 0):
            reports.measured("rollout", rollout(trainer.policy()))
        if store and due:
            store.save(trainer.step, trainer.state(), trainer.meta, reports.score)
        if due or reports.waiting == REPORT_EVERY:
            reports.send()


class _Reports:
    """Gathers what there is to say between two reports."""

    def __init__(
        self, trainer: _Trainer, progress: Callable[[ImitationProgress], None] | None, log: TrainingLog | None
    ) -> None:
        self._trainer, self._progress, self._log = trainer, progress, log
        self._started_s = time.monotonic()
        self._counted: list[dict[str, float]] = []
        self._measured: dict[str, float] = {}
        self._validation_error: float | None = None

    @property
    def waiting(self) -> int:
        return len(self._counted)

    @property
    def score(self) -> float | None:
        """Of the last validation; higher is better."""
        return None if self._validation_error is None else -self._validation_error

    def count(self, metrics: dict[str, float]) -> None:
        self._counted.append(metrics)

    def measured(self, name: str, value: float) -> None:
        self._measured[name] = value
        if name == "validation_error":
            self._validation_error = value

    def send(self) -> None:
        means = {name: float(np.mean([one[name] for one in self._counted])) for name in self._counted[0]}
        if self._log:
            self._log(self._trainer.step, means | self._measured)
        if self._progress:
            self._progress(
                ImitationProgress(
                    step=self._trainer.step,
                    steps=self._trainer.config.steps,
                    loss=means["loss"],
                    elapsed_s=time.monotonic() - self._started_s,
                    validation_error=self._validation_error,
                )
            )
        self._counted, self._measured = [], {}


class _Trainer:
    """Network, average, optimiser and data of one training."""

    def __init__(
        self, data: DemonstrationArrays, spec: PolicySpec, config: ImitationConfig, teacher: GenerativePolicy | None
    ) -> None:
        data.check()
        _check_fit(data, spec)
        if teacher is None and _is_distilled(config):
            raise PolicyError("a consistency model needs a trained flow as teacher; name its run: policy.teacher=RUN")
        self.config, self._spec = config, spec
        self._device = _device(config.device)
        self._rows, self._held_out = _split(data.episode_ends, config)
        self._policy_config = GenerativeConfig(
            net=config.net,
            process=config.process,
            solver=config.solver,
            observation=teacher.config.observation if teacher else fit_min_max(data.vector[self._rows]),
            action=teacher.config.action if teacher else fit_min_max(data.action[self._rows]),
            vocabulary=vocabulary_of(data.instructions) if isinstance(config.net, VlaConfig) else (),
        )
        self._windows = Windows(data, self._policy_config, spec.history, spec.horizon, self._device)
        torch.manual_seed(config.seed)
        self._net = build_net(config.net, sizes_of(spec, self._policy_config)).to(self._device).train()
        self._teacher = self._taught_by(teacher) if teacher else None
        self._average = copy.deepcopy(self._net).requires_grad_(False).eval()
        self._optimizer = adamw_of_module(self._net, config.lr, config.weight_decay, config.betas)
        self.step = 0
        taught = weights_sha256(teacher.sampler.denoiser) if teacher else ""
        meta = ImitationMeta(spec=spec, config=config, data_sha256=data.sha256(), teacher_sha256=taught)
        self.meta = msgspec.json.encode(meta)

    @property
    def has_validation(self) -> bool:
        return len(self._held_out) > 0

    def advance(self) -> dict[str, float]:
        """One gradient step; what there is to say about it."""
        config, generator = self.config, seeded_step(self.config.seed, self.step)
        picked = torch.randint(len(self._rows), (config.batch_size,), generator=generator).numpy()
        actions, condition = self._windows.batch(self._rows[picked])
        with torch.autocast("cuda", torch.bfloat16, enabled=config.amp and self._device.type == "cuda"):
            teacher = self._teacher or self._average  # a shortcut model learns from its own average
            loss = training_loss(self._net, config.process, actions, condition, generator, teacher)
        lr = _learning_rate(self.step, config)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        metrics = {"loss": float(loss.item()), "learning_rate": lr}
        if config.clip_norm:
            trained = [value for value in self._net.parameters() if value.requires_grad]
            metrics["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(trained, config.clip_norm))
        self._optimizer.step()
        self.step += 1
        follow(self._average, self._net, average_decay(self.step, config.ema_power, config.ema_max))
        return metrics

    @torch.no_grad()
    def validation_error(self) -> float:
        """Mean absolute error of chunks that the average samples for held-out steps, in normalised units."""
        sampler = ChunkSampler(self._average, self.config.process, self.config.solver).to(self._device).eval()
        generator = torch.Generator().manual_seed(self.config.seed)
        errors = []
        for rows in np.array_split(self._held_out, math.ceil(len(self._held_out) / _VALIDATION_BATCH)):
            actions, condition = self._windows.batch(rows)
            noise = torch.randn(actions.shape, generator=generator).to(actions)
            fresh = None
            if sampler.is_stochastic:
                fresh = torch.randn((len(sampler.calls), *actions.shape), generator=generator).to(actions)
            errors.append((sampler(noise, fresh, *condition) - actions).abs().mean(dim=(1, 2)))
        return float(torch.cat(errors).mean())

    def policy(self) -> GenerativePolicy:
        """The average as a policy of its own."""
        return GenerativePolicy(self._spec, self._policy_config, copy.deepcopy(self._average).cpu())

    def state(self) -> dict[str, Array]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self._tensors().items()}

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
        self.step = checkpoint.step

    def _taught_by(self, teacher: GenerativePolicy) -> Denoiser | None:
        """Take over the teacher's weights; its network, if it goes on teaching."""
        known, own = teacher.sampler.denoiser.state_dict(), self._net.state_dict()
        fitting = {name: known[name] for name in own if name in known and known[name].shape == own[name].shape}
        self._net.load_state_dict(own | fitting)
        return copy.deepcopy(teacher.sampler.denoiser).to(self._device) if _is_distilled(self.config) else None

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"net.{name}": value for name, value in self._net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        return tensors | adamw_tensors(self._optimizer, "optimizer")


def _is_distilled(config: ImitationConfig) -> bool:
    return isinstance(config.process, FlowPath) and config.process.objective == "consistency"


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise PolicyError("training.device is cuda and there is no GPU that torch can use; say training.device=auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _split(episode_ends: Indices, config: ImitationConfig) -> tuple[Indices, Indices]:
    """(steps to train on, steps to validate on), by episodes; of a long validation evenly spread steps."""
    lengths = np.diff(episode_ends, prepend=0)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    count = 0
    if config.validation_share > 0.0 and len(lengths) > 1:
        count = max(1, round(config.validation_share * len(lengths)))
    chosen = np.random.default_rng(config.seed).permutation(len(lengths))[:count]
    held_out = np.flatnonzero(np.isin(episode, chosen))
    some = np.linspace(0, len(held_out) - 1, min(len(held_out), MAX_VALIDATION_WINDOWS)).astype(np.int64)
    return np.flatnonzero(~np.isin(episode, chosen)), held_out[some]


def _learning_rate(step: int, config: ImitationConfig) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def _check_fit(data: DemonstrationArrays, spec: PolicySpec) -> None:
    sizes = [feature.shape[:2] for feature in image_features(spec.observation).values()]
    expected = vector_length(vector_features(spec.observation)), spec.action.shape[0], sizes
    found = data.vector.shape[1], data.action.shape[1], [one.shape for one in data.images]
    if found != expected:
        raise PolicyError(
            f"demonstrations have (numbers, action, images) {found}, the spec of '{spec.name}' says {expected}; "
            "collect them with the features that the task names"
        )
