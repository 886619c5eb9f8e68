"""LeRobot's policy beside ours: the same training, the same ranges, paired episodes that survive an interruption."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import lerobot_inference, lerobot_process, lerobot_success
from benchmarks.inference.configurations import QUICK_FAMILIES
from benchmarks.inference.outcomes import OutcomeFile
from benchmarks.inference.tasks import QUICK_TASK
from benchmarks.lerobot_policy import Passed, Setup, Train, Training, TrainingMeta, statistics_of
from benchmarks.lerobot_process import MISSING, LeRobotProcess
from benchmarks.lerobot_success import Plan, Rate, Way, run_episodes
from policies.common.normalization import fit_min_max
from policies.diffusion.config import UNetConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from policies.generative.objectives import training_loss
from policies.lerobot.checkpoint import Scale
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.specs import ACTION, ENVIRONMENT_STATE, STATE, PolicySpec, vector
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.imitation import train
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.imitation_data import DemonstrationArrays, Windows

NET = UNetConfig(channels=(8, 16), kernel=3, groups=4, time_dim=8)
CHAIN = DiffusionChain(train_steps=10)
SOLVER = SolverConfig(kind="ddim", steps=2)
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=4,
    action=vector(("a", "b"), (-1.0, -1.0), (1.0, 1.0)),
    observation={STATE: vector(("x", "y", "z")), ENVIRONMENT_STATE: vector(("u", "v"))},
)
SETUP = Setup(spec=SPEC, net=NET, chain=CHAIN, seed=0)
CONFIG = ImitationConfig(
    net=NET,
    process=CHAIN,
    solver=SOLVER,
    steps=12,
    batch_size=8,
    lr=1e-2,
    warmup_steps=4,
    clip_norm=0.5,
    device="cpu",
    checkpoint_every=5,
    seed=3,
)


def demonstrations() -> DemonstrationArrays:
    generator = np.random.default_rng(0)
    vector, action = (generator.normal(size=(30, width)).astype(np.float32) for width in (5, 2))
    return DemonstrationArrays(vector, action, np.array([13, 30]))


def ranges(data: DemonstrationArrays) -> GenerativeConfig:
    observation, action = fit_min_max(data.vector), fit_min_max(data.action)
    return GenerativeConfig(net=NET, process=CHAIN, solver=SOLVER, observation=observation, action=action)


class InTheirForm(nn.Module):
    """Our network and loss behind LeRobot's interface, with the random numbers that our own training draws."""

    def __init__(self, rows: int, stop_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(CONFIG.seed)
        self.net = build_net(NET, sizes_of(SPEC, ranges(demonstrations())))
        self.rows, self.step, self.stop_at = rows, 0, stop_at

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        if self.step == self.stop_at:
            raise KeyboardInterrupt
        second = np.random.SeedSequence([CONFIG.seed, self.step]).generate_state(2, np.uint32)[1]
        generator = torch.Generator().manual_seed(int(second))
        torch.randint(self.rows, (CONFIG.batch_size,), generator=generator)  # those that pick the rows
        self.step += 1
        seen = torch.cat((batch[STATE], batch[ENVIRONMENT_STATE]), dim=-1)
        assert not batch["action_is_pad"].any()
        return training_loss(self.net, CHAIN, batch[ACTION], (seen,), generator), None


def trained(folder: Path, data_sha256: str = "", stop_at: int = -1, done: int = 0) -> dict[str, Tensor]:
    data = demonstrations()
    windows = Windows(data, ranges(data), 1, SPEC.horizon, torch.device("cpu"))
    with torch.random.fork_rng():
        net = InTheirForm(len(data.vector), stop_at)
        net.step = done
        training = Training(net, windows, len(data.vector), SPEC, CONFIG)
        meta = TrainingMeta(setup=SETUP, config=CONFIG, data_sha256=data_sha256)
        list(training.run(CheckpointStore(folder, keep=2), meta))
    return {name.removeprefix("net."): value for name, value in training.average.state_dict().items()}


def test_the_training_in_lerobots_process_is_ours_number_by_number(tmp_path: Path) -> None:
    ours = train(demonstrations(), SPEC, CONFIG).sampler.denoiser.state_dict()
    theirs = trained(tmp_path)
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0)


def test_an_interrupted_training_ends_with_the_weights_it_would_have_had(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "torn", stop_at=8)
    resumed = trained(tmp_path / "torn", done=5)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    with pytest.raises(PolicyError, match="other demonstrations"):
        trained(tmp_path / "torn", data_sha256="others")


def test_lerobot_normalises_by_the_ranges_of_ours() -> None:
    data = demonstrations()
    data.vector[:, 3] = 0.5  # constant: widened
    found = statistics_of(ranges(data), SPEC)
    assert found.keys() == {STATE, ENVIRONMENT_STATE, ACTION}
    columns = {STATE: data.vector[:, :3], ENVIRONMENT_STATE: data.vector[:, 3:], ACTION: data.action}
    expected = dict.fromkeys(columns, np.empty(0, np.float32))
    whole = ranges(data).observation.normalize(data.vector)
    expected |= {STATE: whole[:, :3], ENVIRONMENT_STATE: whole[:, 3:]}
    expected[ACTION] = ranges(data).action.normalize(data.action)
    for name, value in columns.items():
        scale = Scale(mode="MIN_MAX", low=found[name]["min"].numpy(), high=found[name]["max"].numpy())
        np.testing.assert_allclose(scale.apply(value), expected[name], atol=1e-5)


def test_a_rate_is_paired_with_the_baseline_and_stands_alone_without_it() -> None:
    baseline = [True] * 195 + [False] * 5
    paired = Rate.of([True] * 200, baseline)
    assert paired.n == 200 and paired.rate == 1.0
    assert paired.difference == pytest.approx(0.025) and paired.not_inferior
    assert paired.difference_ci and paired.difference_ci[0] < 0.025 < paired.difference_ci[1]
    assert paired.p_value == pytest.approx(2 * 0.5**5)
    worse = Rate.of([False] * 20 + [True] * 180, [True] * 200)
    assert worse.not_inferior is False and worse.difference == pytest.approx(-0.1)
    alone = Rate.of([True] * 20, ())
    assert alone.rate == 1.0 and alone.ci[0] < 0.9
    assert alone.difference is None and alone.difference_ci is None and alone.not_inferior is None


@dataclass
class Still:
    """Stays where it is; stops the run at one seed."""

    spec: PolicySpec
    stop_at: int = -1
    seeds: list[int] = field(default_factory=list)

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        self.seeds += [one.episode_seed for one in observations]
        if self.stop_at in self.seeds:
            raise KeyboardInterrupt
        return np.zeros((len(observations), self.spec.horizon, self.spec.action.shape[0]), np.float32)


@pytest.fixture(scope="module")
def spec() -> PolicySpec:
    robot = QUICK_TASK.make_robot()
    try:
        return QUICK_TASK.policy_spec(robot.spec, "test")
    finally:
        robot.close()


def test_interrupted_episodes_go_on_where_they_were(
    spec: PolicySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot_success, "PORTION", 1)
    family = QUICK_FAMILIES["unet"]
    plan = Plan(work=tmp_path, task=QUICK_TASK, family=family, solvers=(SOLVER, SOLVER), episodes=2, seed=0)
    path, torn = tmp_path / "outcomes.jsonl", Still(spec, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        run_episodes(plan, {"still": Way(torn, "w")}, OutcomeFile(path))
    again = Still(spec)
    run_episodes(plan, {"still": Way(again, "w")}, OutcomeFile(path))
    assert set(torn.seeds) == {0, 1} and set(again.seeds) == {1}
    assert list(OutcomeFile(path).successes(QUICK_TASK.task, "w", "still", 2)) == [False, False]
    assert not OutcomeFile(path).has(QUICK_TASK.task, "other weights", "still", 0, 1)


STAND_IN = """
import json, sys
print(json.dumps({"lerobot": "0", "torch": "0", "parameters": len(json.loads(input())["net"]["channels"])}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["type"] == "train":
        print(json.dumps({"type": "progress", "step": 1, "loss": 0.5}))
        print(json.dumps({"type": "saved", "step": 2}), flush=True)
    elif asked["type"] == "predict":
        print(json.dumps([[one["features"]["observation.state"]] for one in asked["observations"]]), flush=True)
    else:
        sys.exit(1)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], LeRobotProcess]:
    def make(script: str) -> LeRobotProcess:
        path = tmp_path / "stand_in.py"
        path.write_text(script, encoding="utf-8")
        monkeypatch.setattr(lerobot_process, "SCRIPT", path)
        return LeRobotProcess(Path(sys.executable), SETUP)

    return make


def test_observations_and_chunks_cross_the_pipe_exactly(stand_in: Callable[[str], LeRobotProcess]) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    features: list[dict[str, Any]] = [{STATE: one, ENVIRONMENT_STATE: np.zeros(2, np.float32)} for one in values]
    observations = [
        Observation(id=0, stamp_ns=0, features=one, age_ns={}, episode_seed=-1, index=index)
        for index, one in enumerate(features)
    ]
    with stand_in(STAND_IN) as process:
        assert process.ready.parameters == len(NET.channels)
        seen: list[int] = []
        request = Train(demonstrations="d.npz", config=CONFIG, solvers=(SOLVER,))
        process.train(request, lambda progress: seen.append(progress.step))
        chunks = process.chunks(SOLVER, observations)
        assert seen == [1] and chunks.dtype == np.float32
        np.testing.assert_array_equal(chunks, values[:, None])
        with pytest.raises(ConfigError, match="ended by itself"):
            process.timed(SOLVER, 1)


def test_a_process_that_ends_at_once_is_an_error_that_says_what_to_do(
    stand_in: Callable[[str], LeRobotProcess],
) -> None:
    with pytest.raises(ConfigError, match="make lerobot-env"), stand_in("import sys; sys.exit(3)"):
        pass


def test_times_are_of_processor_medians_and_of_the_same_solver() -> None:
    rows = {"lerobot": [0.4, 0.2, 0.9], "ours_eager": [0.1], "ours_onnx": [0.05]}
    results = {
        solver: {
            name: lerobot_inference.median_ms([Passed(9.0, scale * one) for one in times])
            for name, times in rows.items()
        }
        for solver, scale in (("ddim-10", 1.0), ("ddpm-100", 10.0))
    }
    found = lerobot_inference.speedups(results, lerobot_inference.DDPM, lerobot_inference.DDIM)
    assert found["speedup_ours_eager_ddim-10"] == 4.0 and found["speedup_ours_onnx_ddpm-100"] == 8.0
    assert found["default_over_default"] == 80.0
    alone = {"ddim-10": {name: row for name, row in results["ddim-10"].items() if name != "lerobot"}}
    assert lerobot_inference.speedups(alone, lerobot_inference.DDPM, lerobot_inference.DDIM) == {}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            assert lerobot_inference.main(["--quick", *arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_quick_run_needs_no_lerobot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--lerobot-python", str(tmp_path / "none"))
    assert found["lerobot"] == MISSING and "success" not in found
    assert set(found["solvers"]["ddim-10"]) == {"ours_eager", "ours_onnx"}
    assert not any(name.startswith("speedup") for name in found)


@pytest.mark.slow
def test_both_are_trained_run_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    python = lerobot_process.ROOT / ".venv-lerobot" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is not there: run make lerobot-env")
    found = run(capsys, "--success", "--lerobot-python", str(python))["success"]
    assert found["baseline"] == "lerobot/ddpm-10"
    assert set(found["policies"]) == {
        *("lerobot/ddpm-10", "lerobot/ddim-4", "ours/ddpm-10", "ours/ddim-4", "ours/ddim-4@onnx")
    }
    assert all(one["n"] == 4 for one in found["policies"].values())
    assert set(found["solvers"]["ddim-4"]) == {"lerobot", "ours_eager", "ours_onnx"}
    assert "default_over_default" in found
