"""LeRobot checkpoints: what is read without LeRobot, and the same chunks as LeRobot's own where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from msgspec import Struct

from policies.lerobot.adapter import LeRobotPolicy
from policies.lerobot.checkpoint import CONFIG, WEIGHTS, Scale, read_config, read_scales
from policies.lerobot.imports import LeRobotMissingError
from robot_stack.core.errors import MissingDependencyError, PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.specs import PolicySpec, vector

ROOT = Path(__file__).resolve().parents[2]
LEROBOT_PYTHON = ROOT / ".venv-lerobot" / "bin" / "python"
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=8,
    history=2,
    action=vector(("a", "b"), (-1.0, -1.0), (1.0, 1.0)),
    observation={"observation.state": vector(("x", "y", "z"))},
)
FEATURES = {
    "input_features": {"observation.state": {"type": "STATE", "shape": [3]}},
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
}
STATISTICS: dict[str, Array] = {
    "observation.state.min": np.array([-1, -2, 0], np.float32),
    "observation.state.max": np.array([1, 2, 0], np.float32),
    "action.min": np.array([-2, 0], np.float32),
    "action.max": np.array([2, 4], np.float32),
}


def save(folder: Path, statistics: dict[str, Array] = STATISTICS, kind: str = "diffusion") -> None:
    """The files of a newer checkpoint; its weights are empty."""
    config = {"type": kind, "n_obs_steps": 2, "n_action_steps": 8, "horizon": 16, "other": None, **FEATURES}
    (folder / CONFIG).write_bytes(msgspec.json.encode(config))
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save({"w": np.zeros(1, np.float32)}))
    name = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    (folder / name).write_bytes(safetensors.numpy.save(statistics))


def test_statistics_of_newer_and_older_checkpoints_are_the_same(tmp_path: Path) -> None:
    save(tmp_path)
    newer = read_scales(tmp_path, read_config(tmp_path))
    for path in tmp_path.glob("*processor.safetensors"):
        path.unlink()
    buffers = {
        f"{'unnormalize_outputs' if name.startswith('action') else 'normalize_inputs'}.buffer_"
        f"{name.rsplit('.', 1)[0].replace('.', '_')}.{name.rsplit('.', 1)[1]}": value
        for name, value in STATISTICS.items()
    }
    (tmp_path / WEIGHTS).write_bytes(safetensors.numpy.save(buffers))
    older = read_scales(tmp_path, read_config(tmp_path))
    for name in ("observation.state", "action"):
        one, other = newer[name], older[name]
        assert one is not None and other is not None and one.mode == other.mode == "MIN_MAX"
        np.testing.assert_array_equal(one.low, other.low)
        np.testing.assert_array_equal(one.high, other.high)


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_a_missing_or_infinite_statistic_is_fatal(name: str, tmp_path: Path) -> None:
    save(tmp_path, {key: value for key, value in STATISTICS.items() if key != name})
    with pytest.raises(PolicyError, match="is missing"):
        read_scales(tmp_path, read_config(tmp_path))
    broken = dict(STATISTICS)
    broken[name] = np.full_like(broken[name], np.inf)
    save(tmp_path, broken)
    with pytest.raises(PolicyError, match="NaN or infinity"):
        read_scales(tmp_path, read_config(tmp_path))


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    other = STATISTICS | {"action.min": np.array([-3, 0], np.float32)}
    name = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    (tmp_path / name).write_bytes(safetensors.numpy.save(other))
    with pytest.raises(PolicyError, match=r"action\.min.*differs"):
        read_scales(tmp_path, read_config(tmp_path))


def test_folders_without_a_checkpoint_of_a_known_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no LeRobot checkpoint"):
        read_config(tmp_path)
    save(tmp_path, kind="tdmpc")
    with pytest.raises(PolicyError, match=r"tdmpc.*diffusion, act"):
        read_config(tmp_path)
    (tmp_path / CONFIG).write_text("{}", encoding="utf-8")
    with pytest.raises(PolicyError, match="no configuration"):
        read_config(tmp_path)


def test_scales_map_the_statistics_to_minus_one_and_one_or_to_unit_deviation_and_back() -> None:
    low, high = np.array([-2.0, 0.0], np.float32), np.array([2.0, 4.0], np.float32)
    bounds, moments = Scale(mode="MIN_MAX", low=low, high=high), Scale(mode="MEAN_STD", low=low, high=high + 1)
    np.testing.assert_allclose(bounds.apply(np.stack([low, high])), [[-1, -1], [1, 1]])
    np.testing.assert_allclose(moments.apply(np.stack([low, low + 2 * (high + 1)])), [[0, 0], [2, 2]], rtol=1e-6)
    value = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    for scale in (bounds, moments):
        np.testing.assert_allclose(scale.undo(scale.apply(value)), value, atol=1e-5)


def test_without_lerobot_the_error_says_where_it_lives(tmp_path: Path) -> None:
    if importlib.util.find_spec("lerobot") is not None:
        pytest.skip("LeRobot is installed in this environment")
    save(tmp_path)
    with pytest.raises(LeRobotMissingError, match="make lerobot-env") as caught:
        LeRobotPolicy.load(tmp_path, SPEC)
    assert isinstance(caught.value, MissingDependencyError) and caught.value.exit_code == 4


class Outcome(Struct, frozen=True, forbid_unknown_fields=True):
    """The last line of tests/lerobot_kit.py."""

    differences: dict[str, float]
    spread: dict[str, float]
    refused: dict[str, str]


@pytest.mark.slow
def test_chunks_are_those_of_lerobots_own_inference(tmp_path: Path) -> None:
    probe = [str(LEROBOT_PYTHON), "-P", "-c", "import lerobot, draccus, diffusers, einops, msgspec, torchgen"]
    if not LEROBOT_PYTHON.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip(f"{LEROBOT_PYTHON} has no LeRobot with what its policies need: run make lerobot-env")
    command = [str(LEROBOT_PYTHON), "-P", str(ROOT / "tests" / "lerobot_kit.py"), str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = msgspec.json.decode(done.stdout.splitlines()[-1], type=Outcome)
    assert set(outcome.differences) == {
        f"{kind}{images}{old}" for kind in ("diffusion", "act") for images in ("", "_images") for old in ("", "_old")
    }
    assert min(outcome.spread.values()) > 0.05
    assert max(outcome.differences.values()) < 1e-5
    expected = {"horizon": "allowed: 8", "history": "allowed: 2", "feature": "lacks", "statistics": "is missing"}
    for name, words in expected.items():
        assert words in outcome.refused[name]
