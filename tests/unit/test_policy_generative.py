"""What prediction of a generative policy promises, over every network."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from policies.common.normalization import MinMaxNormalizer
from policies.common.vision_config import VisionConfig
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, FlowPath, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Features, Observation
from robot_stack.core.specs import Feature, PolicySpec, vector

VISION = VisionConfig(channels=(8,), keypoints=4)
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=6,
    history=2,
    action=vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0)),
    observation={
        "observation.state": vector(("x", "y", "z")),
        "observation.images.front": Feature(dtype="uint8", shape=(8, 12, 3)),
    },
)
CHAIN = GenerativeConfig(
    net=TransformerConfig(embed_dim=16, layers=1, heads=2, vision=VISION),
    process=DiffusionChain(train_steps=20),
    solver=SolverConfig(kind="ddim", steps=5),
    observation=MinMaxNormalizer(centre=(0.0, 1.0, 2.0), half_range=(1.0, 2.0, 3.0)),
    action=MinMaxNormalizer(centre=(0.0, 0.0), half_range=(0.2, 1.0)),  # wider than the bounds of the first element
)
CONFIGS = {
    "transformer, ddim": CHAIN,
    "transformer, ddpm": msgspec.structs.replace(CHAIN, solver=SolverConfig(kind="ddpm", steps=20)),
    "unet, dpmpp": msgspec.structs.replace(
        CHAIN,
        net=UNetConfig(channels=(8, 16), kernel=3, groups=4, time_dim=8, vision=VISION),
        process=DiffusionChain(train_steps=20, prediction="sample"),
        solver=SolverConfig(kind="dpmpp", steps=5),
    ),
    "expert, heun": msgspec.structs.replace(
        CHAIN,
        net=ExpertConfig(embed_dim=16, layers=1, heads=2, vision=VISION),
        process=FlowPath(),
        solver=SolverConfig(kind="heun", steps=3),
    ),
    "expert, shortcut": msgspec.structs.replace(
        CHAIN,
        net=ExpertConfig(embed_dim=16, layers=1, heads=2, step_conditioned=True, vision=VISION),
        process=FlowPath(objective="shortcut"),
        solver=SolverConfig(kind="euler", steps=2),
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make_policy(config: GenerativeConfig = CHAIN, scale: float = 0.3) -> GenerativePolicy:
    torch.manual_seed(0)
    net = build_net(config.net, sizes_of(SPEC, config))
    with torch.no_grad():
        for parameter in net.parameters():  # an untrained output is near zero; make everything matter
            parameter.add_(0.2 * torch.randn(parameter.shape))
        net.get_parameter("action_out.weight").mul_(scale)  # yet not so far that all of it is clipped
    return GenerativePolicy(SPEC, config, net)


def frame(x: float = 0.5, grey: int = 0) -> Features:
    image = np.random.default_rng(grey).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return {"observation.state": np.array([x, 1.0, 2.0], np.float32), "observation.images.front": image}


def observe(
    seed: int = 3, index: int = 8, x: float = 0.5, grey: int = 0, past: tuple[Features, ...] = (frame(0.4),)
) -> Observation:
    return Observation(id=5, stamp_ns=0, features=frame(x, grey), age_ns={}, episode_seed=seed, index=index, past=past)


@every_config
def test_prediction_is_a_pure_function_of_the_observation(config: GenerativeConfig) -> None:
    policy = make_policy(config)
    first = policy.predict(observe())
    policy.predict(observe(seed=9))
    torch.manual_seed(123)
    again = policy.predict(observe())
    assert (first.observation_id, first.index, first.weights_version) == (5, 8, 0)
    np.testing.assert_array_equal(first.actions, again.actions)
    others = [observe(seed=4), observe(index=9), observe(seed=-1), observe(x=0.6), observe(grey=1)]
    for other in [*others, observe(past=(frame(0.3),)), observe(past=(frame(0.4, grey=1),))]:
        assert not np.array_equal(policy.predict(other).actions, first.actions)


@every_config
def test_actions_are_float32_inside_the_bounds(config: GenerativeConfig) -> None:
    chunks = make_policy(config, scale=20.0).predict_batch(
        [observe(seed=seed, x=float(seed - 16)) for seed in range(32)]
    )
    assert chunks.shape == (32, 6, 2) and chunks.dtype == np.float32
    assert np.abs(chunks[..., 0]).max() == np.float32(0.1)
    assert np.abs(chunks[..., 1]).max() <= 2.0


@every_config
def test_a_batch_gives_the_chunks_of_its_rows(config: GenerativeConfig) -> None:
    policy = make_policy(config)
    observations = [observe(1, 0, 0.1), observe(1, 8, 0.2, grey=2), observe(2, 0, 0.3, past=())]
    for row, chunk in enumerate(policy.predict_batch(observations)):
        np.testing.assert_allclose(chunk, policy.predict(observations[row]).actions, atol=1e-4)


def test_the_newest_observations_are_read_and_the_first_one_stands_for_those_before_it() -> None:
    policy = make_policy()
    (vector_part, image_part) = policy.condition([observe(past=(frame(0.1), frame(0.3, grey=4)))])
    assert vector_part.shape == (1, 2, 3) and vector_part.dtype == np.float32
    np.testing.assert_allclose(vector_part[0, :, 0], [0.3, 0.5])
    np.testing.assert_array_equal(
        image_part[0], [frame(grey=4)["observation.images.front"], frame()["observation.images.front"]]
    )
    alone, _ = policy.condition([observe(index=0, past=())])
    np.testing.assert_allclose(alone[0, :, 0], [0.5, 0.5])
    with pytest.raises(PolicyError, match="brings 0 earlier"):
        policy.condition([observe(index=1, past=())])


def test_an_observation_outside_the_demonstrations_counts_as_the_nearest_inside() -> None:
    policy = make_policy()
    inside, outside = policy.predict(observe(x=1.0)), policy.predict(observe(x=50.0))
    np.testing.assert_array_equal(inside.actions, outside.actions)


@every_config
def test_a_loaded_policy_predicts_bit_for_bit_the_same(config: GenerativeConfig, tmp_path: Path) -> None:
    policy = make_policy(config)
    policy.save(tmp_path / "policy")
    loaded = GenerativePolicy.load(tmp_path / "policy", version=4)
    chunk = loaded.predict(observe())
    np.testing.assert_array_equal(chunk.actions, policy.predict(observe()).actions)
    assert chunk.weights_version == 4 and loaded.config == config and loaded.fingerprint == policy.fingerprint


def test_the_same_weights_sample_in_another_way() -> None:
    policy = make_policy()
    other = policy.with_solver(SolverConfig(kind="ddim", steps=20))
    assert not np.array_equal(other.predict(observe()).actions, policy.predict(observe()).actions)
    back = other.with_solver(CHAIN.solver)
    np.testing.assert_array_equal(back.predict(observe()).actions, policy.predict(observe()).actions)
    assert back.fingerprint == policy.fingerprint != other.fingerprint


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    policy = make_policy()
    policy._config = msgspec.structs.replace(
        CHAIN, net=TransformerConfig(embed_dim=16, layers=2, heads=2, vision=VISION)
    )
    policy.save(tmp_path / "policy")
    with pytest.raises(PolicyError, match="missing"):
        GenerativePolicy.load(tmp_path / "policy")


def test_spec_and_statistics_must_belong_together() -> None:
    short = msgspec.structs.replace(CHAIN, observation=MinMaxNormalizer(centre=(0.0,), half_range=(1.0,)))
    with pytest.raises(PolicyError, match="statistics"):
        make_policy(short)
    unbounded = msgspec.structs.replace(SPEC, action=vector(("a", "b")))
    with pytest.raises(PolicyError, match="bound"):
        GenerativePolicy(unbounded, CHAIN, build_net(CHAIN.net, sizes_of(SPEC, CHAIN)))
