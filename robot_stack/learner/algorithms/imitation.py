"""Imitation that goes on while the robot works: the run's generative policy is fine-tuned on what people showed it.

One learner for the family; the methods differ in which steps they learn from (`robot_stack.learner.corrections`) and in
the composition of a batch (`robot_stack.learner.composition`): behaviour cloning; DAgger (Ross et al., AISTATS 2011);
HG-DAgger (Kelly et al., ICRA 2019); IWR (Mandlekar et al., 2020); Sirius (Liu et al., RSS 2023); RaC (arXiv
2509.07953). The objective is the base policy's own, whatever that is: a chain's or a flow's.

Every update continues from the last weights. The papers train anew in rounds; that is a new run of this one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from policies.common.denoiser import Denoiser
from policies.common.features import image_features, vector_features, vector_length
from policies.common.store import check_shapes
from policies.generative.build import build_net
from policies.generative.config import FlowPath
from policies.generative.objectives import training_loss
from policies.generative.policy import GenerativePolicy, load_weights
from robot_stack.buffer.batches import ChunkBatch
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.adamw import adamw_of_module, adamw_tensors
from robot_stack.learner.algorithms.base import Batches, Ingredients, Recipe
from robot_stack.learner.algorithms.settings.imitation import FineTuningConfig, ImitationSettings
from robot_stack.learner.composition import KINDS, ByKind, Composition, Targets
from robot_stack.learner.corrections import Counts, EpisodeCurator, rule_of
from robot_stack.learner.gradient_step import average_decay, follow, seeded_step


def build(settings: ImitationSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs; ConfigError for a base policy that cannot be fine-tuned so."""
    base = ingredients.base
    if base is None:
        raise ConfigError(
            "imitation fine-tunes a base policy and this run has none; train one first, or choose another algorithm"
        )
    curator = EpisodeCurator(rule_of(settings.rule, settings.pre_intervention_steps))
    targets = Targets(settings.rule, settings.intervention_share, settings.pre_intervention_share)
    algorithm = Imitation(
        settings.update, base, ingredients.observation, targets, settings.batch_size, ingredients.seed, curator.counts
    )
    lookahead = max(1, base.spec.horizon - 1)
    return Recipe(algorithm, lookahead, ByKind(), curator, on_empty="redistribute")


def chunk_policy(
    settings: ImitationSettings, base: GenerativePolicy, version: int, tensors: Mapping[str, Array]
) -> GenerativePolicy:
    """The base policy with published weights; PolicyError if they do not fit it."""
    net = _new_net(base)
    load_weights(net, dict(tensors), f"version {version} of the weights")
    return GenerativePolicy(base.spec, base.config, net, version)


class Imitation:
    """The network, its moving average and their update; an `Algorithm`.

    Every random number of an update comes from (seed, update), or from the sampler. `observation`: the vector features
    of the batches; the base policy's have to be among them. `counts`: what was recorded, for the metrics.
    """

    def __init__(
        self,
        config: FineTuningConfig,
        base: GenerativePolicy,
        observation: Mapping[str, Feature],
        targets: Targets,
        batch_size: int,
        seed: int,
        counts: Counts,
    ) -> None:
        _check_base(base)
        self._config, self._base, self._batch_size, self._seed = config, base, batch_size, seed
        self._columns = _columns(base, observation)
        self._net = _new_net(base).train()
        self._average = copy.deepcopy(self._net).requires_grad_(False).eval()
        self._trained = [value for value in self._net.parameters() if value.requires_grad]
        self._optimizer = adamw_of_module(self._net, config.lr, config.weight_decay, config.betas)
        self._composition = Composition(targets)
        self._counts = counts
        self._updates = 0

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, batches: Batches) -> dict[str, float]:
        sampler = batches.sampler
        draw, shares = self._composition.draw(sampler, self._batch_size)
        metrics = self.learn(sampler.chunks(draw, self._base.spec.horizon))
        metrics |= {f"share_{kind.name.lower()}": share for kind, share in shares.items()}
        sizes = zip(KINDS, sampler.parts, strict=True)
        metrics |= {f"held_{kind.name.lower()}": float(part.replay.size(part.stratum)) for kind, part in sizes}
        return metrics | self._counts.metrics()

    def learn(self, batch: ChunkBatch) -> dict[str, float]:
        """One gradient step on chunks; what lies beyond the end of a stretch does not count."""
        config, base = self._config, self._base
        vector = base.config.observation.normalize(batch.observation[:, self._columns]).clip(-1.0, 1.0)
        condition = (torch.from_numpy(vector.astype(np.float32, copy=False))[:, None],)
        actions = torch.from_numpy(base.to_samples(batch.actions))
        weight = torch.from_numpy((~batch.is_pad * batch.weight[:, None]).astype(np.float32))
        self._optimizer.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]):
            generator = seeded_step(self._seed, self._updates)
            loss = training_loss(self._net, base.config.process, actions, condition, generator, self._average, weight)
            loss.backward()  # type: ignore[no-untyped-call]
        norm = self._descend()
        self._updates += 1
        follow(self._average, self._net, average_decay(self._updates, config.ema_power, config.ema_max))
        return {"loss": loss.item(), "gradient_norm": norm}

    def _descend(self) -> float:
        config = self._config
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained, config.clip_norm or math.inf))
        if not math.isfinite(norm):
            raise PolicyError(
                f"the gradient at update {self._updates} is not finite; look at the last episodes' actions"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (self._updates + 1) / max(1, config.warmup_steps))
        self._optimizer.step()
        return norm

    def actor_tensors(self) -> dict[str, Array]:
        return {name: tensor.numpy().copy() for name, tensor in self._average.state_dict().items()}

    def state(self) -> dict[str, Array]:
        state: dict[str, Array] = {name: tensor.detach().numpy().copy() for name, tensor in self._tensors().items()}
        state["updates"] = np.array([self._updates], np.int64)
        state["owed"] = self._composition.owed.copy()
        return state

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        own = self._tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        check_shapes(tensors, shapes | {"updates": (1,), "owed": (len(KINDS),)}, "learner state")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(np.array(tensors[name])))
        self._updates = int(tensors["updates"][0])
        self._composition.owed = np.array(tensors["owed"])

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name."""
        tensors = {f"net.{name}": value for name, value in self._net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        return tensors | adamw_tensors(self._optimizer, "optimizer")


def _new_net(base: GenerativePolicy) -> Denoiser:
    """A copy of the base policy's network, of which that may be trained which a new one would train."""
    with torch.random.fork_rng(devices=[]):
        net = build_net(base.config.net, base.sizes)
    net.load_state_dict(base.sampler.denoiser.state_dict())
    return net


def _check_base(base: GenerativePolicy) -> None:
    spec, process = base.spec, base.config.process
    if image_features(spec.observation) or base.config.vocabulary:
        raise ConfigError(
            f"policy '{spec.name}' reads {', '.join(spec.observation)}"
            f"{' and instructions' if base.config.vocabulary else ''}; allowed for fine-tuning: vectors only"
        )
    if spec.history != 1:
        raise ConfigError(
            f"policy '{spec.name}' reads {spec.history} observations; allowed for fine-tuning: 1. Train the base "
            "policy with policy.history=1"
        )
    if isinstance(process, FlowPath) and process.objective == "consistency":
        raise ConfigError(
            f"policy '{spec.name}' is a consistency model, which only a flow can teach; fine-tune that flow and distil "
            "it again"
        )


def _columns(base: GenerativePolicy, observation: Mapping[str, Feature]) -> Array:
    """Where the base policy's observation vector stands in that of the batches."""
    wanted = vector_features(base.spec.observation)
    missing = [name for name, feature in wanted.items() if observation.get(name) != feature]
    if missing:
        raise ConfigError(
            f"policy '{base.spec.name}' reads {', '.join(missing)}, which the recorded observations lack or have in "
            f"another shape; they have {', '.join(observation)}. Name the feature in task.features"
        )
    columns = np.arange(vector_length(observation))
    ends = np.cumsum([feature.shape[0] for feature in observation.values()])
    parts = dict(zip(observation, np.split(columns, ends[:-1]), strict=True))
    return np.concatenate([parts[name] for name in wanted])
