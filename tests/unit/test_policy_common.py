"""Normalisation, flattening and the policy store."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec import Struct

from policies.common.durable import sweep_aside, write_directory
from policies.common.ensemble_mlp import EnsembleMlp
from policies.common.features import flatten
from policies.common.normalization import MinMaxNormalizer, Standardizer, fit_min_max, fit_standardizer
from policies.common.store import MANIFEST, WEIGHTS, load_policy, save_policy
from robot_stack.core.errors import PolicyError, StorageError
from robot_stack.core.specs import PolicySpec, vector

SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=4,
    action=vector(("a", "b"), (-1.0, -2.0), (1.0, 2.0)),
    observation={"observation.state": vector(("x", "y")), "observation.environment_state": vector(("z",))},
)


class Config(Struct, frozen=True):
    scale: float
    normalizer: MinMaxNormalizer


CONFIG = Config(0.5, MinMaxNormalizer(centre=(0.25, 3.0), half_range=(1.5, 2.0)))


def save(directory: Path) -> dict[str, np.ndarray]:
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
    save_policy(directory, kind="k", spec=SPEC, config=CONFIG, weights=weights)
    return weights


def test_min_max_maps_the_data_to_minus_one_and_one_and_back() -> None:
    data = np.random.default_rng(0).normal(3.0, 5.0, (100, 3)).astype(np.float32)
    normalizer = fit_min_max(data)
    scaled = normalizer.normalize(data)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.min(axis=0), -1.0, atol=1e-5)
    np.testing.assert_allclose(scaled.max(axis=0), 1.0, atol=1e-5)
    np.testing.assert_allclose(normalizer.denormalize(scaled), data, atol=1e-4)


def test_constant_columns_stay_finite_and_centred() -> None:
    data = np.full((10, 2), 7.0, np.float32)
    np.testing.assert_array_equal(fit_min_max(data).normalize(data), 0.0)
    np.testing.assert_array_equal(fit_standardizer(data).normalize(data), 0.0)


def test_standardised_values_are_bounded_where_the_data_never_went() -> None:
    standardizer = fit_standardizer(np.random.default_rng(0).normal(3.0, 2.0, (1000, 1)).astype(np.float32))
    scaled = standardizer.normalize(np.array([[3.0], [5.0], [1e6], [-1e6]], np.float32))
    np.testing.assert_allclose(scaled[:, 0], [0.0, 1.0, 10.0, -10.0], atol=0.1)


def test_statistics_of_bad_data_are_refused() -> None:
    data = np.zeros((4, 3), np.float32)
    data[2, 1] = np.nan
    with pytest.raises(PolicyError, match=r"column\(s\) \[1\]"):
        fit_min_max(data)
    with pytest.raises(PolicyError, match="N >= 1"):
        fit_standardizer(np.zeros((0, 3), np.float32))


@pytest.mark.parametrize(
    "statistics",
    [
        {"mean": (), "std": ()},
        {"mean": (0.0,), "std": (0.0,)},
        {"mean": (float("nan"),), "std": (1.0,)},
        {"mean": (0.0, 1.0), "std": (1.0,)},
    ],
)
def test_missing_or_impossible_statistics_are_fatal(statistics: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(PolicyError):
        Standardizer(**statistics)


def test_flatten_follows_the_order_of_the_spec_not_of_the_observation() -> None:
    features = {
        "observation.environment_state": np.array([3.0], np.float32),
        "observation.extra": np.array([9.0], np.float32),
        "observation.state": np.array([1.0, 2.0], np.float32),
    }
    np.testing.assert_array_equal(flatten(features, SPEC.observation), [1.0, 2.0, 3.0])


def test_flatten_refuses_missing_misshapen_and_non_finite_features() -> None:
    good = {"observation.state": np.zeros(2, np.float32), "observation.environment_state": np.zeros(1, np.float32)}
    with pytest.raises(PolicyError, match=r"lacks 'observation\.state'"):
        flatten({"observation.environment_state": np.zeros(1, np.float32)}, SPEC.observation)
    with pytest.raises(PolicyError, match="shape"):
        flatten(good | {"observation.state": np.zeros(3, np.float32)}, SPEC.observation)
    with pytest.raises(PolicyError, match=r"observation\.environment_state: NaN"):
        flatten(good | {"observation.environment_state": np.array([np.inf], np.float32)}, SPEC.observation)


def test_a_saved_policy_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = save(tmp_path / "policy")
    manifest, loaded = load_policy(tmp_path / "policy", "k", Config)
    assert (manifest.spec, manifest.config) == (SPEC, CONFIG)
    assert list(manifest.spec.observation) == list(SPEC.observation)
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_a_release_that_knows_more_settings_reads_older_policies(tmp_path: Path) -> None:
    class LaterConfig(Config, frozen=True, kw_only=True):
        added: int = 7

    save(tmp_path / "policy")
    manifest, _ = load_policy(tmp_path / "policy", "k", LaterConfig)
    assert manifest.config.added == 7 and manifest.config.normalizer == CONFIG.normalizer


def test_every_flipped_bit_of_a_policy_is_found(tmp_path: Path) -> None:
    save(tmp_path / "policy")
    for name in (WEIGHTS, MANIFEST):
        path = tmp_path / "policy" / name
        whole = path.read_bytes()
        for bit in range(0, len(whole) * 8, 37):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                manifest, _ = load_policy(tmp_path / "policy", "k", Config)
            except PolicyError:
                continue
            # Only white space of the indented file may change without harm.
            assert name == MANIFEST and (manifest.spec, manifest.config) == (SPEC, CONFIG)
        path.write_bytes(whole)


def test_a_half_copied_or_absent_policy_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no policy at"):
        load_policy(tmp_path / "policy", "k", Config)
    save(tmp_path / "policy")
    with pytest.raises(PolicyError, match="kind 'k'"):
        load_policy(tmp_path / "policy", "other", Config)
    (tmp_path / "policy" / WEIGHTS).unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "policy", "k", Config)


def test_absent_statistics_are_fatal_at_load(tmp_path: Path) -> None:
    save(tmp_path / "policy")
    path = tmp_path / "policy" / MANIFEST
    content = msgspec.json.decode(path.read_bytes())
    del content["config"]["normalizer"]
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(PolicyError, match="normalizer"):
        load_policy(tmp_path / "policy", "k", Config)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = {"w": np.array([1.0, np.nan], np.float32)}
    save_policy(tmp_path / "policy", kind="k", spec=SPEC, config=CONFIG, weights=weights)
    with pytest.raises(PolicyError, match="tensor 'w' has NaN"):
        load_policy(tmp_path / "policy", "k", Config)


def test_a_saved_policy_is_never_overwritten(tmp_path: Path) -> None:
    save(tmp_path / "policy")
    with pytest.raises(StorageError, match="exists already"):
        save(tmp_path / "policy")
    load_policy(tmp_path / "policy", "k", Config)


def test_an_interrupted_write_leaves_nothing_and_its_rest_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "folder", {"file": b"content"})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".aside-folder-123").mkdir()
    assert sweep_aside(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_every_member_of_the_ensemble_is_an_mlp_of_its_own() -> None:
    mlp = EnsembleMlp(3, 5, (16, 8), 2, last_scale=0.1, generator=torch.Generator().manual_seed(0))
    value = torch.randn(7, 5)
    tensors = mlp.tensors()
    for member, output in enumerate(mlp(value)):
        hidden = value
        for layer in range(2):
            hidden = hidden @ tensors[f"weight.{layer}"][member] + tensors[f"bias.{layer}"][member]
            centred = hidden - hidden.mean(-1, keepdim=True)
            hidden = (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).clamp_min(0.0)
        expected = hidden @ tensors["weight.2"][member] + tensors["bias.2"][member]
        torch.testing.assert_close(output, expected)
    assert not torch.equal(mlp(value)[0], mlp(value)[1])
