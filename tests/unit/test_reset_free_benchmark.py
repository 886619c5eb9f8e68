"""The benchmark of practice without resets: what its variants are, and how its seeds are pooled."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reset_free import curve
from benchmarks.reset_free.__main__ import parse, remember
from benchmarks.reset_free.curve import Point
from benchmarks.reset_free.report import BEGIN, END, Report, filled, row_of, rows_of, table
from benchmarks.reset_free.variants import BASE, DEFAULT_VARIANTS, config_of
from robot_stack.core.errors import ConfigError
from robot_stack.edge.judged_robot import VerdictCounts
from robot_stack.edge.reset_free import DirectionCounts, PracticeRecord
from robot_stack.evaluation.statistics import wilson_interval
from robot_stack.learner.rewards.settings import MedalSettings


def point(success: str, *, last: bool, steps: int = 100, calls: int = 1) -> Point:
    return Point(
        env_steps=steps,
        episodes=9,
        updates=50,
        first_seed=0,
        success=success,
        resets=calls,
        calls=calls,
        perturbations=2,
        practice=PracticeRecord(forward=DirectionCounts(attempts=5, reached=3), calls=calls),
        forward=VerdictCounts(true_positives=3, false_positives=5, true_negatives=95, false_negatives=1),
        backward=VerdictCounts(true_negatives=100),
        cpu_s=7.0,
        last=last,
    )


def test_seeds_are_pooled_over_their_last_points_only() -> None:
    runs = [
        [point("1100", last=False), point("1110", last=True, steps=200)],
        [point("0000", last=False), point("1111", last=True, steps=200, calls=4)],
        [point("1111", last=False)],
    ]
    row = row_of("oracle", runs)
    assert row is not None
    interval = wilson_interval(7, 8)
    assert row.success == (7 / 8, interval.lower, interval.upper)
    assert (row.seeds, row.by_seed, row.calls, row.env_steps) == (2, (3, 4), 2.5, 200)
    assert row.curve == ((100, 0.25),)
    assert (row.false_positives, row.false_negatives) == (10 / 400, 2 / 8)
    assert row_of("oracle", [[], [point("1", last=False)]]) is None


def test_the_document_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    for name, success in ((BASE, "0010"), ("fp5", "1110")):
        folder = tmp_path / "seed-0" / name
        folder.mkdir(parents=True)
        curve.append(folder / "curve.jsonl", point(success, last=True))
    report = Report(
        command="python -m benchmarks.reset_free",
        algorithm="residual_td3",
        task="peg_cycle",
        demonstrations=100,
        quick=False,
        load_average=0.0,
        rows=rows_of(tmp_path, range(2), (BASE, "oracle", "fp5")),
    )
    assert [row.variant for row in report.rows] == [BASE, "fp5"]
    document = filled(f"a\n{BEGIN}\nold\n{END}\nb", report)
    assert document.startswith("a\n") and document.endswith("\nb")
    assert "old" not in document
    assert table(report) in document
    assert "75.0 %" in document and "2.50 %" in document


def test_every_variant_has_a_configuration(tmp_path: Path) -> None:
    for algorithm in ("residual_td3", "cal_ql"):
        for name in (BASE, *DEFAULT_VARIANTS, "episodic", "fp20_thrice"):
            config = config_of(tmp_path, name, 0, algorithm, (), quick=False)
            assert config.practice.mode == ("episodic" if name in (BASE, "episodic") else "reset_free")
            assert isinstance(config.reward, MedalSettings) == (name == "medal")
            assert config.practice.backward_max_steps == (30 if name == "medal" else 0)
    with pytest.raises(ConfigError, match="fp6"):
        config_of(tmp_path, "fp6", 0, "residual_td3", (), quick=False)


def test_a_work_folder_has_one_set_of_options(tmp_path: Path) -> None:
    remember(parse(["--steps", "50"]), tmp_path / "work")
    remember(parse(["--steps", "50", "--seeds", "4", "--variants", "fp5"]), tmp_path / "work")
    with pytest.raises(ConfigError, match="begun with other options"):
        remember(parse(["--steps", "60"]), tmp_path / "work")


def test_quick_is_one_small_seed() -> None:
    options = parse(["--quick", "--seeds", "5"])
    assert (options.seeds, options.steps) == (1, 250)
