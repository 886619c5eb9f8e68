"""Imitation: what is learned, that held-out episodes stay held out, and resuming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs

from policies.common.vision_config import VisionConfig
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.config import DiffusionChain, FlowPath, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.vla.config import VlaConfig
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Features, FloatArray, Observation
from robot_stack.core.specs import Feature, PolicySpec, vector
from robot_stack.learner.algorithms.adamw import adamw_of_module
from robot_stack.learner.imitation import ImitationProgress, train
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.imitation_data import DecodedImages, DemonstrationArrays
from robot_stack.learner.imitation_log import both, jsonl_log, read_training_log, tensorboard_log

VISION = VisionConfig(channels=(8,), keypoints=2)
TRANSFORMER = TransformerConfig(embed_dim=16, layers=1, heads=2, dropout=0.1, vision=VISION)
EXPERT = ExpertConfig(embed_dim=16, layers=1, heads=2, vision=VISION)
CHAIN = DiffusionChain(train_steps=10, prediction="sample")
EULER = SolverConfig(kind="euler", steps=5)
CONFIG = ImitationConfig(
    net=TRANSFORMER,
    process=CHAIN,
    solver=SolverConfig(steps=5),
    steps=20,
    batch_size=32,
    warmup_steps=5,
    checkpoint_every=5,
    device="cpu",
)
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=2,
    action=vector(("a",), (-1.0,), (1.0,)),
    observation={"observation.state": vector(("x", "y"))},
)
IMAGE = "observation.images.front"
IMAGE_SPEC = structs.replace(
    SPEC, history=2, observation={**SPEC.observation, IMAGE: Feature(dtype="uint8", shape=(12, 16, 3))}
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def two_modes(count: int = 400) -> DemonstrationArrays:
    """Go left or right by 0.6, by chance: the mean, 0, is never demonstrated."""
    rng = np.random.default_rng(0)
    side = rng.choice([-0.6, 0.6], count // 2).repeat(2)
    return DemonstrationArrays(
        vector=rng.normal(0, 1, (count, 2)).astype(np.float32),
        action=side[:, None].astype(np.float32),
        episode_ends=np.arange(2, count + 1, 2),
    )


def with_pictures(count: int = 60) -> DemonstrationArrays:
    """The picture alone says where to go."""
    rng, plain = np.random.default_rng(1), two_modes(count)
    pixels = rng.integers(0, 30, (count, 12, 16, 3), dtype=np.uint8)
    for picture, action in zip(pixels, plain.action, strict=True):
        picture[4:8, 2:6] += np.uint8(200 * (action[0] < 0))
        picture[4:8, 10:14] += np.uint8(200 * (action[0] > 0))
    return DemonstrationArrays(plain.vector, plain.action, plain.episode_ends, images=(DecodedImages(pixels),))


def observation(index: int, features: Features, instruction: str = "") -> Observation:
    return Observation(
        id=index, stamp_ns=0, features=features, age_ns={}, episode_seed=index, index=0, instruction=instruction
    )


def first_actions(policy: GenerativePolicy, count: int = 200) -> FloatArray:
    states = np.random.default_rng(1).normal(0, 1, (count, 2)).astype(np.float32)
    return policy.predict_batch([observation(i, {"observation.state": state}) for i, state in enumerate(states)])[
        :, 0, 0
    ]


@pytest.mark.parametrize(
    ("net", "process", "solver"),
    [
        (TransformerConfig(embed_dim=16, layers=1, heads=2), CHAIN, SolverConfig(steps=5)),
        (UNetConfig(channels=(8,), groups=2, time_dim=16), CHAIN, SolverConfig(steps=5)),
        (EXPERT, FlowPath(), EULER),
    ],
    ids=["transformer", "unet", "flow"],
)
def test_both_modes_are_learned_and_not_their_mean(
    net: TransformerConfig, process: DiffusionChain, solver: SolverConfig
) -> None:
    config = structs.replace(CONFIG, net=net, process=process, solver=solver, steps=250, lr=5e-3)
    actions = first_actions(train(two_modes(), SPEC, config))
    near_left, near_right = np.abs(actions + 0.6) < 0.25, np.abs(actions - 0.6) < 0.25
    assert near_left.mean() > 0.2 and near_right.mean() > 0.2
    assert (near_left | near_right).mean() > 0.7


def test_what_only_the_picture_shows_is_learned() -> None:
    data = with_pictures()
    config = structs.replace(CONFIG, net=structs.replace(TRANSFORMER, dropout=0.0), steps=120, lr=5e-3)
    policy = train(data, IMAGE_SPEC, config)
    rows = np.arange(0, 60, 2)
    pictures = data.images[0].take(rows)
    seen = [observation(i, {"observation.state": data.vector[row], IMAGE: pictures[i]}) for i, row in enumerate(rows)]
    actions = policy.predict_batch(seen)[:, 0, 0]
    assert (np.sign(actions) == np.sign(data.action[rows, 0])).mean() > 0.9


@pytest.mark.parametrize("pictures", [False, True])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, pictures: bool) -> None:
    data, spec = (with_pictures(), IMAGE_SPEC) if pictures else (two_modes(), SPEC)
    config = structs.replace(CONFIG, clip_norm=1.0, validation_share=0.2, validate_every=4)
    whole = train(data, spec, config)

    def interrupt(report: ImitationProgress) -> None:
        if report.step >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, spec, config, progress=interrupt, resume_dir=tmp_path)
    torch.rand(7)  # what else the process draws must not matter
    seen: list[int] = []
    resumed = train(data, spec, config, progress=lambda report: seen.append(report.step), resume_dir=tmp_path)
    assert seen == [15, 20]
    whole.save(tmp_path / "whole")
    resumed.save(tmp_path / "resumed")
    for name in ("weights.safetensors", "policy.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_a_checkpoint_of_other_data_or_settings_is_refused(tmp_path: Path) -> None:
    train(two_modes(), SPEC, CONFIG, resume_dir=tmp_path)
    with pytest.raises(PolicyError, match="other demonstrations or settings"):
        train(two_modes(200), SPEC, CONFIG, resume_dir=tmp_path)
    with pytest.raises(PolicyError, match="other demonstrations or settings"):
        train(two_modes(), SPEC, structs.replace(CONFIG, lr=1e-4), resume_dir=tmp_path)


def test_training_leaves_the_random_numbers_of_its_caller_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(two_modes(20), SPEC, structs.replace(CONFIG, steps=2))
    assert torch.equal(torch.rand(4), expected)


def test_held_out_episodes_are_measured_and_never_trained_on() -> None:
    data = two_modes(40)
    config = structs.replace(CONFIG, validation_share=0.5, validate_every=20)
    errors: list[float | None] = []
    policy = train(data, SPEC, config, progress=lambda report: errors.append(report.validation_error))
    error = errors[-1]
    assert errors[:-1] == [None] * (len(errors) - 1) and error is not None

    held_out = 0
    for episode in range(0, 20, 4):
        action = data.action.copy()
        action[2 * episode : 2 * episode + 2] *= 0.5
        changed = DemonstrationArrays(data.vector, action, data.episode_ends)
        other = train(changed, SPEC, config, progress=lambda report: errors.append(report.validation_error))
        pairs = zip(policy.sampler.denoiser.parameters(), other.sampler.denoiser.parameters(), strict=True)
        if all(torch.equal(one, two) for one, two in pairs):
            held_out += 1
            assert errors[-1] != error
    assert 0 < held_out < 5


def test_the_error_on_held_out_episodes_falls() -> None:
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (200, 2)).astype(np.float32)
    data = DemonstrationArrays(states, 0.9 * states[:, :1], np.arange(2, 201, 2))
    config = structs.replace(
        CONFIG,
        net=structs.replace(TRANSFORMER, dropout=0.0),
        steps=200,
        lr=5e-3,
        validation_share=0.1,
        validate_every=20,
    )
    errors: list[float] = []

    def note(step: int, metrics: Mapping[str, float]) -> None:
        if "validation_error" in metrics:
            errors.append(metrics["validation_error"])

    train(data, structs.replace(SPEC, horizon=1), config, log=note)
    assert len(errors) == 10
    assert errors[-1] < 0.25 * errors[0]


def test_metrics_and_rollouts_come_when_they_are_due(tmp_path: Path) -> None:
    versions: list[str] = []

    def rollout(policy: GenerativePolicy) -> float:
        versions.append(policy.spec.name)
        return len(versions) / 10

    config = structs.replace(CONFIG, rollout_every=8, clip_norm=0.5)
    log = both(jsonl_log(tmp_path / "training.jsonl"), tensorboard_log(tmp_path / "board"))
    train(two_modes(), SPEC, config, rollout=rollout, log=log)
    with (tmp_path / "training.jsonl").open("ab") as file:
        file.write(b'{"unix_s": 1.0, "st')
    lines = read_training_log(tmp_path / "training.jsonl")
    assert [line.step for line in lines] == [5, 10, 15, 20]
    assert [line.metrics.get("rollout") for line in lines] == [None, 0.1, None, 0.3]  # steps 8, 16 and 20
    assert all(line.metrics["gradient_norm"] > 0 for line in lines)
    assert any(path.stat().st_size > 100 for path in (tmp_path / "board").iterdir())


def test_only_weights_of_layers_are_decayed() -> None:
    policy = train(two_modes(20), SPEC, structs.replace(CONFIG, steps=1))
    net = policy.sampler.denoiser.requires_grad_(True)
    optimizer = adamw_of_module(net, 1e-3, 0.1, (0.9, 0.95))
    decayed = {id(value) for group in optimizer.param_groups if group["weight_decay"] for value in group["params"]}
    names = {name for name, value in net.named_parameters() if id(value) in decayed}
    assert names and all(name.endswith("weight") for name in names)
    assert not any("norm" in name or "position" in name for name in names)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_a_consistency_model_begins_as_its_teacher() -> None:
    flow = structs.replace(CONFIG, net=EXPERT, process=FlowPath(), solver=EULER)
    teacher = train(two_modes(), SPEC, flow)
    distilled = structs.replace(
        flow,
        net=structs.replace(EXPERT, step_conditioned=True),
        process=FlowPath(objective="consistency"),
        solver=structs.replace(EULER, steps=1),
        steps=1,
        lr=1e-9,
    )
    student = train(two_modes(100), SPEC, distilled, teacher=teacher)
    assert student.config.observation == teacher.config.observation
    own = student.sampler.denoiser.state_dict()
    for name, value in teacher.sampler.denoiser.state_dict().items():
        torch.testing.assert_close(own[name], value, atol=1e-6, rtol=0)
    with pytest.raises(PolicyError, match="teacher"):
        train(two_modes(), SPEC, distilled)


def test_instructions_are_learned_from_and_needed() -> None:
    plain = with_pictures()
    ids = (plain.action[:, 0] > 0).astype(np.int64)
    data = DemonstrationArrays(
        plain.vector, plain.action, plain.episode_ends, plain.images, ids, ("go left", "go right")
    )
    net = VlaConfig(patch=4, prefix_dim=16, expert_dim=16, layers=1, heads=2, max_words=4)
    config = structs.replace(CONFIG, net=net, process=FlowPath(), solver=EULER)
    spec = structs.replace(IMAGE_SPEC, history=1)
    policy = train(data, spec, config)
    assert policy.config.vocabulary == ("", "go", "left", "right")
    features = {"observation.state": plain.vector[0], IMAGE: plain.images[0].take(np.array([0]))[0]}
    assert policy.predict_batch([observation(0, features, "go left")]).shape == (1, 2, 1)
    with pytest.raises(PolicyError, match="instructions"):
        train(plain, spec, config)


def test_demonstrations_that_do_not_add_up_are_refused() -> None:
    data = two_modes(4)
    with pytest.raises(PolicyError, match="do not add up"):
        train(DemonstrationArrays(data.vector, data.action, np.array([2])), SPEC, CONFIG)
    with pytest.raises(PolicyError, match="do not add up"):
        train(DemonstrationArrays(data.vector, data.action, np.array([2, 2, 4])), SPEC, CONFIG)
    with pytest.raises(PolicyError, match="the spec of 'p' says"):
        train(with_pictures(), SPEC, CONFIG)


@pytest.mark.parametrize(
    "wrong", ["steps=0", "lr=0", "betas=[0.9,1.0]", "validation_share=0.9", 'solver={"kind":"euler"}', "clip_norm=-1"]
)
def test_settings_out_of_range_are_refused(wrong: str) -> None:
    name, _, value = wrong.partition("=")
    with pytest.raises((ConfigError, msgspec.ValidationError)):
        msgspec.json.decode(f'{{"{name}": {value}}}', type=ImitationConfig)
