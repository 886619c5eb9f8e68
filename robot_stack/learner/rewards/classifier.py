"""A classifier of success from pictures, vectors or both: the recipe of SERL (arXiv 2401.16013).

Each camera has an encoder (`policies.common.vision`); a head with dropout and LayerNorm makes one logit of them and of
the standardised vector features. A false success is learned and ends episodes, so what a classifier is worth is told by
its error rates on episodes that it was not trained on: they are saved with it, and without them it does not load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from policies.common.features import image_features, vector_features, vector_length
from policies.common.normalization import Standardizer, fit_standardizer
from policies.common.store import check_shapes, load_policy, save_policy
from policies.common.vision import ImageEncoder
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, Features, FloatArray
from robot_stack.core.protocols import Judgement, Outcome
from robot_stack.core.specs import Feature, PolicySpec, vector
from robot_stack.learner.gradient_step import seeded_step
from robot_stack.learner.rewards.outcomes import Labelled, Seen, Tally, gather, hold_out, threshold_above, verdict
from robot_stack.learner.rewards.settings import ClassifierTraining

KIND = "reward_classifier"
_JUDGED_AT_ONCE = 256


class ClassifierConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside the weights. `threshold`: a probability above it is a success. `standardizer`: of the vector
    features, None if none are read. `held_out`: of the verdicts on episodes that nothing was fitted to."""

    training: ClassifierTraining
    threshold: float
    standardizer: Standardizer | None
    held_out: Tally


class SuccessNet(nn.Module):
    """Pictures and vectors to the logit of success."""

    def __init__(self, training: ClassifierTraining, observation: Mapping[str, Feature]) -> None:
        super().__init__()
        cameras = image_features(observation).values()
        self.encoders = nn.ModuleList(
            ImageEncoder(training.vision, feature.shape[0], feature.shape[1]) for feature in cameras
        )
        self.embedding_dim = 2 * training.vision.keypoints * len(cameras) + vector_length(vector_features(observation))
        self.head = nn.Sequential(
            nn.Linear(self.embedding_dim, training.hidden_dim),
            nn.Dropout(training.dropout),
            nn.LayerNorm(training.hidden_dim),
            nn.ReLU(),
            nn.Linear(training.hidden_dim, 1),
        )

    def embed(self, vectors: Tensor, images: Sequence[Tensor]) -> Tensor:
        """(N, embedding_dim): the encodings of the cameras, and the vectors as they are."""
        encoded = [encoder(pixels) for encoder, pixels in zip(self.encoders, images, strict=True)]
        return torch.cat((*encoded, vectors), dim=1)

    def forward(self, vectors: Tensor, images: Sequence[Tensor]) -> Tensor:
        logit: Tensor = self.head(self.embed(vectors, images))[:, 0]
        return logit


class RewardClassifier:
    """A trained classifier; a `RewardModel`. `spec.observation`: the features that it reads."""

    name = "classifier"

    def __init__(self, spec: PolicySpec, config: ClassifierConfig, net: SuccessNet) -> None:
        if vector_features(spec.observation) and config.standardizer is None:
            raise PolicyError(
                f"the reward classifier '{spec.name}' reads vectors and has no statistics of them; train it again"
            )
        if not (config.held_out.positives and config.held_out.negatives):
            raise PolicyError(f"nobody measured the errors of the reward classifier '{spec.name}'; train it again")
        self.spec, self.config = spec, config
        self._net = net.eval().requires_grad_(False)
        self.version = _digest(spec, config, self._weights())

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        seen = [outcome.after for outcome in outcomes if outcome.after is not None]
        found = iter(self.probabilities(seen).tolist())
        given = [0.0 if outcome.after is None else next(found) for outcome in outcomes]
        return [verdict(one > self.config.threshold, one) for one in given]

    def probabilities(self, batch: Sequence[Features]) -> FloatArray:
        """Of success, (N,); PolicyError for features that are not those of the spec."""
        return np.concatenate(
            [
                np.zeros(0, np.float32),
                *(_probabilities(self._net, seen, self.config.standardizer) for seen in self._parts(batch)),
            ]
        )

    def embed(self, batch: Sequence[Features]) -> FloatArray:
        """What the head reads, (N, embedding_dim): a space in which pictures can be compared."""
        parts = [self._net.embed(*_to_tensors(seen, self.config.standardizer)) for seen in self._parts(batch)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, self._net.embedding_dim), np.float32)

    def _parts(self, batch: Sequence[Features]) -> Iterator[Seen]:
        for start in range(0, len(batch), _JUDGED_AT_ONCE):
            yield gather(batch[start : start + _JUDGED_AT_ONCE], self.spec.observation)

    def _weights(self) -> dict[str, Array]:
        return {name: value.detach().cpu().numpy() for name, value in self._net.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write it to a new folder, whole or not at all; StorageError if that exists."""
        save_policy(folder, kind=KIND, spec=self.spec, config=self.config, weights=self._weights())

    @classmethod
    def load(cls, folder: Path) -> RewardClassifier:
        """A saved classifier; PolicyError says what is wrong with it."""
        manifest, tensors = load_policy(folder, KIND, ClassifierConfig)
        net = SuccessNet(manifest.config.training, manifest.spec.observation)
        check_shapes(tensors, {name: tuple(value.shape) for name, value in net.state_dict().items()}, str(folder))
        net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in tensors.items()})
        return cls(manifest.spec, manifest.config, net)


def train_classifier(
    labelled: Labelled, observation: Mapping[str, Feature], settings: ClassifierTraining, *, name: str, task: str
) -> RewardClassifier:
    """Train on a part of the episodes and count the errors on the others.

    `observation`: the features that it shall read. The same data and settings give the same classifier on one thread.
    PolicyError if there is too little of either label.
    """
    if not observation:
        raise PolicyError("a reward classifier needs features to read; name at least one")
    part, held_out = hold_out(labelled, settings.held_out_share, settings.seed)
    cautious = settings.largest_false_positive_rate > 0.0
    aside = part
    if cautious:
        part, aside = hold_out(part, settings.held_out_share, settings.seed)
    seen = part.seen(observation)
    standardizer = fit_standardizer(seen.vectors) if seen.vectors.shape[1] else None
    with torch.random.fork_rng(devices=[]):
        net = _trained(seen, np.asarray(part.labels), standardizer, observation, settings).eval()
    threshold = settings.threshold
    if cautious:
        others = aside.where([not label for label in aside.labels]).seen(observation)
        found = _probabilities(net, others, standardizer)
        threshold = max(threshold, threshold_above(found, settings.largest_false_positive_rate))
    found = _probabilities(net, held_out.seen(observation), standardizer)
    tally = Tally.of((found > threshold).tolist(), held_out.labels)
    config = ClassifierConfig(training=settings, threshold=threshold, standardizer=standardizer, held_out=tally)
    spec = PolicySpec(name=name, task=task, horizon=1, action=vector(()), observation=dict(observation))
    return RewardClassifier(spec, config, net)


def _trained(
    seen: Seen,
    labels: NDArray[np.bool_],
    standardizer: Standardizer | None,
    observation: Mapping[str, Feature],
    settings: ClassifierTraining,
) -> SuccessNet:
    seeded_step(settings.seed, 0)
    net = SuccessNet(settings, observation).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    rows = [torch.from_numpy(np.flatnonzero(labels == wanted)) for wanted in (True, False)]
    sizes = (settings.batch_size // 2, settings.batch_size - settings.batch_size // 2)
    target = torch.cat((torch.ones(sizes[0]), torch.zeros(sizes[1])))
    vectors, images = _to_tensors(seen, standardizer)
    for step in range(1, settings.steps + 1):
        generator = seeded_step(settings.seed, step)
        drawn = torch.cat(
            [
                of_label[torch.randint(len(of_label), (size,), generator=generator)]
                for of_label, size in zip(rows, sizes, strict=True)
            ]
        )
        logit = net(vectors[drawn], [pixels[drawn] for pixels in images])
        loss = functional.binary_cross_entropy_with_logits(logit, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net


@torch.no_grad()
def _probabilities(net: SuccessNet, seen: Seen, standardizer: Standardizer | None) -> FloatArray:
    vectors, images = _to_tensors(seen, standardizer)
    parts = [
        torch.sigmoid(net(vectors[start:stop], [pixels[start:stop] for pixels in images]))
        for start, stop in ((start, start + _JUDGED_AT_ONCE) for start in range(0, len(vectors), _JUDGED_AT_ONCE))
    ]
    return torch.cat(parts).numpy()


def _to_tensors(seen: Seen, standardizer: Standardizer | None) -> tuple[Tensor, list[Tensor]]:
    vectors = seen.vectors if standardizer is None else standardizer.normalize(seen.vectors)
    return torch.from_numpy(vectors), [torch.from_numpy(pixels) for pixels in seen.images]


def _digest(spec: PolicySpec, config: Struct, weights: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(msgspec.json.encode((spec, config)))
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].shape} {weights[name].dtype}".encode())
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()
