"""The diffusion policy: its sampler against diffusers, its masks, and what prediction promises."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import DiffusionConfig, DiffusionPolicyConfig
from policies.diffusion.net import DiffusionNet
from policies.diffusion.policy import DiffusionPolicy, build_net
from policies.diffusion.schedule import ddim_scheduler, ddim_steps
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Observation
from robot_stack.core.specs import PolicySpec, vector

NET = DiffusionConfig(horizon=6, embed_dim=16, layers=2, heads=2, train_steps=20, inference_steps=5)
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=6,
    action=vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0)),
    observation={"observation.state": vector(("x", "y", "z"))},
)
CONFIG = DiffusionPolicyConfig(
    net=NET,
    observation=MinMaxNormalizer(centre=(0.0, 1.0, 2.0), half_range=(1.0, 2.0, 3.0)),
    action=MinMaxNormalizer(centre=(0.0, 0.0), half_range=(0.2, 1.0)),  # wider than the bounds of the first element
)


def make_policy(config: DiffusionPolicyConfig = CONFIG, scale: float = 40.0) -> DiffusionPolicy:
    torch.manual_seed(0)
    net = build_net(SPEC, config)
    with torch.no_grad():
        net.action_out.weight.mul_(scale)  # an untrained output is near zero; make it matter
    return DiffusionPolicy(SPEC, config, net)


def observe(seed: int = 3, index: int = 8, x: float = 0.5) -> Observation:
    features = {"observation.state": np.array([x, 1.0, 2.0], np.float32)}
    return Observation(id=5, stamp_ns=0, features=features, age_ns={}, episode_seed=seed, index=index)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("inference_steps", [1, 5, 20])
def test_the_table_of_steps_equals_the_ddim_scheduler_of_diffusers(prediction: str, inference_steps: int) -> None:
    net_config = msgspec.structs.replace(NET, prediction=prediction, inference_steps=inference_steps)
    policy = make_policy(msgspec.structs.replace(CONFIG, net=net_config))
    sample, observation = torch.randn(4, 6, 2), torch.randn(4, 3)
    with torch.inference_mode():
        replayed = policy._denoise(sample, observation)
        scheduler = ddim_scheduler(net_config)
        for time in scheduler.timesteps:
            output = policy._net(sample, torch.full((4,), int(time)), observation)
            (sample, *_) = scheduler.step(output, int(time), sample, return_dict=False)
    torch.testing.assert_close(replayed, sample, atol=2e-5, rtol=1e-4)
    assert [step.time for step in ddim_steps(net_config)] == [int(time) for time in scheduler.timesteps]


def test_actions_depend_on_earlier_actions_only() -> None:
    net = DiffusionNet(NET, observation_dim=3, action_dim=2).eval()
    actions, time, observation = torch.randn(1, 6, 2), torch.tensor([7]), torch.randn(1, 3)
    before = net(actions, time, observation)
    changed = actions.clone()
    changed[0, 3] += 1.0
    after = net(changed, time, observation)
    torch.testing.assert_close(after[0, :3], before[0, :3])
    assert (after[0, 3:] - before[0, 3:]).abs().max() > 1e-6
    assert (net(actions, time, observation + 1.0) - before).abs().min() > 0.0
    assert (net(actions, time + 5, observation) - before).abs().min() > 0.0


def test_prediction_is_a_pure_function_of_the_observation() -> None:
    policy = make_policy()
    first = policy.predict(observe())
    policy.predict(observe(seed=9))
    torch.manual_seed(123)
    again = policy.predict(observe())
    assert (first.observation_id, first.index, first.weights_version) == (5, 8, 0)
    np.testing.assert_array_equal(first.actions, again.actions)
    for other in (observe(seed=4), observe(index=9), observe(seed=-1), observe(x=0.6)):
        assert not np.array_equal(policy.predict(other).actions, first.actions)


def test_actions_are_float32_inside_the_bounds() -> None:
    policy = make_policy(scale=200.0)
    chunks = policy.predict_batch(np.random.default_rng(0).normal(0, 5, (64, 3)).astype(np.float32), [(0, 0)] * 64)
    assert chunks.shape == (64, 6, 2) and chunks.dtype == np.float32
    assert np.abs(chunks[..., 0]).max() == np.float32(0.1)
    assert np.abs(chunks[..., 1]).max() <= 2.0


def test_a_batch_gives_the_chunks_of_its_rows() -> None:
    policy = make_policy()
    observations = np.stack([observe(x=x).features["observation.state"] for x in (0.1, 0.2, 0.3)])
    batch = policy.predict_batch(observations, [(1, 0), (1, 8), (2, 0)])
    for row, (seed, index) in enumerate([(1, 0), (1, 8), (2, 0)]):
        single = policy.predict(observe(seed=seed, index=index, x=float(observations[row, 0])))
        np.testing.assert_allclose(batch[row], single.actions, atol=1e-5)


def test_a_loaded_policy_predicts_bit_for_bit_the_same(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy")
    loaded = DiffusionPolicy.load(tmp_path / "policy", version=4)
    chunk = loaded.predict(observe())
    np.testing.assert_array_equal(chunk.actions, policy.predict(observe()).actions)
    assert chunk.weights_version == 4


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    policy = make_policy()
    other = msgspec.structs.replace(CONFIG, net=msgspec.structs.replace(NET, layers=3))
    policy._config = other
    policy.save(tmp_path / "policy")
    with pytest.raises(PolicyError, match="missing"):
        DiffusionPolicy.load(tmp_path / "policy")


def test_spec_and_statistics_must_belong_together() -> None:
    with pytest.raises(PolicyError, match="horizon"):
        DiffusionPolicy(msgspec.structs.replace(SPEC, horizon=5), CONFIG, build_net(SPEC, CONFIG))
    short = msgspec.structs.replace(CONFIG, observation=MinMaxNormalizer(centre=(0.0,), half_range=(1.0,)))
    with pytest.raises(PolicyError, match="statistics"):
        DiffusionPolicy(SPEC, short, build_net(SPEC, CONFIG))


@pytest.mark.parametrize("change", [{"embed_dim": 10}, {"inference_steps": 3}, {"horizon": 0}])
def test_impossible_settings_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        msgspec.structs.replace(NET, **change)
