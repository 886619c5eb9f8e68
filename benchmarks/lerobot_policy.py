"""LeRobot's `DiffusionPolicy` in LeRobot's own environment; started by `python -m benchmarks.lerobot_inference`.

    PYTHONPATH=. .venv-lerobot/bin/python -P benchmarks/lerobot_policy.py

Lines of JSON on standard input, each answered by lines of JSON on standard output: first a `Setup`, answered by
`Ready`, then any number of `Time`, `Train` and `Predict`.

Time: `generate_actions` alone, batch 1, on inputs that are normalised tensors already, of the checkpoint in the setup's
folder, or untrained: the values do not change the time. Train: LeRobot's own `forward` gives the loss; batches,
optimiser, learning rate and moving average are those of `robot_stack.learner.imitation`, and so are the ranges that
features are normalised by (LeRobot by itself leaves the environment state as it is). The average is kept as checkpoints
of LeRobot's form, one for each solver. Predict: whole predictions of such a checkpoint by `policies.lerobot`.
"""

from __future__ import annotations

import copy
import importlib
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn

from policies.common.normalization import MinMaxNormalizer, fit_min_max
from policies.diffusion.config import UNetConfig
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from policies.lerobot.adapter import LeRobotPolicy
from policies.lerobot.imports import policy_class
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Observation
from robot_stack.core.specs import ACTION, ENVIRONMENT_STATE, STATE, PolicySpec
from robot_stack.learner.algorithms.adamw import adamw_of_module, adamw_tensors
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.imitation_data import DemonstrationArrays, Windows

WARM_CHUNKS = 2
REPORT_EVERY = 50
KINDS = {STATE: "STATE", ENVIRONMENT_STATE: "ENV"}


class Setup(Struct, frozen=True, kw_only=True):
    """Sizes of the networks, and the folder of their checkpoints (`<kind>-<steps>`); '' for untrained ones."""

    spec: PolicySpec
    net: UNetConfig
    chain: DiffusionChain
    seed: int
    folder: str = ""


class Ready(Struct, frozen=True):
    """What answers a `Setup`."""

    lerobot: str
    torch: str
    parameters: int


class Time(Struct, frozen=True, kw_only=True, tag="time"):
    """Time so many chunks; answered by a list of `Passed`."""

    solver: SolverConfig
    count: int


class Passed(Struct, frozen=True):
    """Time that one chunk took."""

    wall_s: float
    cpu_s: float


class Train(Struct, frozen=True, kw_only=True, tag="train"):
    """Train on the demonstrations in a file, or go on with it; answered by `Progress` and at last `Saved`."""

    demonstrations: str
    config: ImitationConfig
    solvers: tuple[SolverConfig, ...]


class Progress(Struct, frozen=True, tag="progress"):
    """`loss`: mean since the last report."""

    step: int
    loss: float


class Saved(Struct, frozen=True, tag="saved"):
    """The training is over and its checkpoints are there."""

    step: int


class Seen(Struct, frozen=True):
    """An observation of a policy without history."""

    episode_seed: int
    index: int
    features: dict[str, list[float]]


class Predict(Struct, frozen=True, kw_only=True, tag="predict"):
    """Chunks for observations; answered by lists (N, H, A) in the action's units."""

    solver: SolverConfig
    observations: list[Seen]


Request = Time | Train | Predict


class TrainingMeta(Struct, frozen=True, kw_only=True):
    """What a checkpoint of a training belongs to; it may move, so the setup is without its folder."""

    setup: Setup
    config: ImitationConfig
    data_sha256: str


def solver_name(solver: SolverConfig) -> str:
    return f"{solver.kind}-{solver.steps}"


def network_config(setup: Setup, solver: SolverConfig) -> Any:
    """LeRobot's record of that size; ConfigError for features that its diffusion policy does not read."""
    spec, net = setup.spec, setup.net
    unknown = [name for name in spec.observation if name not in KINDS]
    if unknown:
        raise ConfigError(f"LeRobot's diffusion policy reads {', '.join(KINDS)}, not '{unknown[0]}'; take another task")
    types = importlib.import_module("lerobot.configs.types")
    settings = importlib.import_module("lerobot.policies.diffusion.configuration_diffusion").DiffusionConfig
    feature, kinds, modes = types.PolicyFeature, types.FeatureType, types.NormalizationMode
    return settings(
        input_features={
            name: feature(kinds[KINDS[name]], described.shape) for name, described in spec.observation.items()
        },
        output_features={ACTION: feature(kinds.ACTION, spec.action.shape)},
        normalization_mapping=dict.fromkeys((*KINDS.values(), "ACTION"), modes.MIN_MAX),
        down_dims=net.channels,
        kernel_size=net.kernel,
        n_groups=net.groups,
        diffusion_step_embed_dim=net.time_dim,
        horizon=spec.horizon,
        n_obs_steps=spec.history,
        n_action_steps=spec.horizon - spec.history + 1,
        num_train_timesteps=setup.chain.train_steps,
        prediction_type=setup.chain.prediction,
        noise_scheduler_type=solver.kind.upper(),
        num_inference_steps=solver.steps,
        device="cpu",
    )


def make_policy(setup: Setup, solver: SolverConfig) -> Any:
    """Untrained."""
    kind = policy_class("diffusion")
    torch.manual_seed(setup.seed)
    return kind(network_config(setup, solver)).eval()


def timed(policy: Any, batch: dict[str, Tensor], count: int) -> list[Passed]:
    passed = []
    for _ in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            policy.diffusion.generate_actions(batch)
        passed.append(Passed(time.perf_counter() - wall, time.process_time() - cpu))
    return passed


def learning_rate(step: int, config: ImitationConfig) -> float:
    """Linear warm-up, then a cosine to zero: that of `robot_stack.learner.imitation`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))


class Training:
    """A network whose `forward(batch)` gives (loss, anything), trained as ours is: `average` is what is kept.

    Every random number comes from (seed, step), those that pick the rows of a batch as in our own training: both see
    the same batches in the same order.
    """

    def __init__(self, net: nn.Module, windows: Windows, rows: int, spec: PolicySpec, config: ImitationConfig) -> None:
        self._net, self._windows, self._rows, self._config = net.train(), windows, rows, config
        self._sizes = {name: feature.shape[0] for name, feature in spec.observation.items()}
        self.average = copy.deepcopy(net).requires_grad_(False).eval()
        self._optimizer = adamw_of_module(net, config.lr, config.weight_decay, config.betas)
        self.step = 0

    def run(self, store: CheckpointStore, meta: TrainingMeta) -> Iterator[Progress]:
        """From the newest checkpoint to the end; PolicyError if the folder belongs to another training."""
        self._resume(store, meta)
        encoded = msgspec.json.encode(meta)
        losses = []
        while self.step < self._config.steps:
            losses.append(self._advance())
            if self.step % self._config.checkpoint_every == 0 or self.step == self._config.steps:
                store.save(self.step, {name: value.numpy() for name, value in self._tensors().items()}, encoded)
            if self.step % REPORT_EVERY == 0:
                yield Progress(self.step, float(np.mean(losses)))
                losses = []

    def _advance(self) -> float:
        config = self._config
        first, second = np.random.SeedSequence([config.seed, self.step]).generate_state(2, np.uint32)
        torch.manual_seed(int(first))
        generator = torch.Generator().manual_seed(int(second))
        picked = torch.randint(self._rows, (config.batch_size,), generator=generator).numpy()
        actions, (vector,) = self._windows.batch(picked)
        batch = dict(zip(self._sizes, torch.split(vector, list(self._sizes.values()), dim=-1), strict=True))
        batch |= {ACTION: actions, "action_is_pad": torch.zeros(actions.shape[:2], dtype=torch.bool)}
        loss = self._net(batch)[0]
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._net.parameters(), config.clip_norm)
        self._optimizer.step()
        self.step += 1
        decay = min(config.ema_max, 1.0 - (1.0 + self.step) ** -config.ema_power)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self._net.parameters()), 1.0 - decay)
        return float(loss.item())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"net.{name}": value.detach() for name, value in self._net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        return tensors | adamw_tensors(self._optimizer, "optimizer")

    def _resume(self, store: CheckpointStore, meta: TrainingMeta) -> None:
        store.open()
        checkpoint = store.latest()
        if checkpoint is None:
            return
        if msgspec.json.decode(checkpoint.meta, type=TrainingMeta) != meta:
            raise PolicyError(
                f"LeRobot's checkpoint at step {checkpoint.step} belongs to other demonstrations or settings; give "
                "another --work, or remove the folder `lerobot` in it to start anew"
            )
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.from_numpy(checkpoint.tensors[name]))
        self.step = checkpoint.step


class Policies:
    """All that a setup needs; answers requests."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._folder = setup, Path(setup.folder)
        self._timed: dict[str, Any] = {}
        self._served: dict[str, LeRobotPolicy] = {}
        spec = setup.spec
        self._zeros = {name: torch.zeros(1, spec.history, *feature.shape) for name, feature in spec.observation.items()}

    def ready(self) -> Ready:
        first = make_policy(self._setup, SolverConfig(kind="ddim", steps=2))
        return Ready(version("lerobot"), str(torch.__version__), sum(value.numel() for value in first.parameters()))

    def answers(self, request: Request) -> Iterator[object]:
        if isinstance(request, Time):
            yield timed(self._to_time(request.solver), self._zeros, request.count)
        elif isinstance(request, Train):
            yield from self._train(request)
        else:
            yield self._predict(request)

    def _to_time(self, solver: SolverConfig) -> Any:
        name = solver_name(solver)
        if name not in self._timed:
            if self._setup.folder:
                policy = policy_class("diffusion").from_pretrained(str(self._folder / name), local_files_only=True)
            else:
                policy = make_policy(self._setup, solver)
            timed(policy, self._zeros, WARM_CHUNKS)
            self._timed[name] = policy
        return self._timed[name]

    def _predict(self, request: Predict) -> list[Any]:
        name = solver_name(request.solver)
        if name not in self._served:
            self._served[name] = LeRobotPolicy.load(self._folder / name, self._setup.spec)
        chunks: list[Any] = self._served[name].predict_batch([observed(one) for one in request.observations]).tolist()
        return chunks

    def _train(self, request: Train) -> Iterator[Progress | Saved]:
        setup, config = self._setup, request.config
        if setup.spec.history != 1:
            raise ConfigError(f"spec.history is {setup.spec.history}; allowed here: 1, where both chunks begin now")
        with np.load(request.demonstrations, allow_pickle=False) as arrays:
            data = DemonstrationArrays(arrays["vector"], arrays["action"], arrays["episode_ends"])
        data.check()
        ranges = GenerativeConfig(
            net=setup.net,
            process=setup.chain,
            solver=config.solver,
            observation=fit_min_max(data.vector),
            action=fit_min_max(data.action),
        )
        windows = Windows(data, ranges, 1, setup.spec.horizon, torch.device("cpu"))
        training = Training(make_policy(setup, config.solver), windows, len(data.vector), setup.spec, config)
        meta = TrainingMeta(setup=replace(setup, folder=""), config=config, data_sha256=data.sha256())
        yield from training.run(CheckpointStore(self._folder / "training", keep=2), meta)
        for solver in request.solvers:
            self._save(solver, training.average.state_dict(), statistics_of(ranges, setup.spec))
        yield Saved(training.step)

    def _save(
        self, solver: SolverConfig, weights: Mapping[str, Tensor], statistics: dict[str, dict[str, Tensor]]
    ) -> None:
        """A folder of LeRobot's form, whole or not there."""
        folder = self._folder / solver_name(solver)
        aside = folder.with_suffix(".partial")
        shutil.rmtree(aside, ignore_errors=True)
        policy = make_policy(self._setup, solver)
        policy.load_state_dict(weights)
        processors = importlib.import_module("lerobot.policies.diffusion.processor_diffusion")
        for part in (policy, *processors.make_diffusion_pre_post_processors(policy.config, statistics)):
            part.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def statistics_of(ranges: GenerativeConfig, spec: PolicySpec) -> dict[str, dict[str, Tensor]]:
    """What LeRobot's processors normalise by: for every feature the values that become -1 and 1."""
    lengths = [feature.shape[0] for feature in spec.observation.values()]
    lower, upper = _limits(ranges.observation)
    found = dict(zip(("min", "max"), _limits(ranges.action), strict=True))
    return {ACTION: found} | {
        name: {"min": low, "max": high}
        for name, low, high in zip(
            spec.observation, torch.split(lower, lengths), torch.split(upper, lengths), strict=True
        )
    }


def _limits(normalizer: MinMaxNormalizer) -> tuple[Tensor, Tensor]:
    centre, half_range = torch.tensor(normalizer.centre), torch.tensor(normalizer.half_range)
    return centre - half_range, centre + half_range


def observed(seen: Seen) -> Observation:
    return Observation(
        id=seen.index,
        stamp_ns=0,
        features={name: np.asarray(value, np.float32) for name, value in seen.features.items()},
        age_ns={},
        episode_seed=seen.episode_seed,
        index=seen.index,
    )


def serve(lines: Iterable[str | bytes], answers: IO[str]) -> None:
    """Answer every line until there are no more."""
    requests = iter(lines)

    def answer(value: object) -> None:
        answers.write(msgspec.json.encode(value).decode() + "\n")
        answers.flush()

    policies = Policies(msgspec.json.decode(next(requests), type=Setup))
    answer(policies.ready())
    for line in requests:
        for value in policies.answers(msgspec.json.decode(line, type=Request)):
            answer(value)


def main() -> int:
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # LeRobot prints
        serve(sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
