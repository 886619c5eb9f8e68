"""The report: self-contained, well formed, says what is missing, and never claims more than the data."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from robot_stack.core.errors import ConfigError
from robot_stack.evaluation.curves import LearningCurve
from robot_stack.evaluation.report import summary, write_report
from robot_stack.evaluation.report_data import (
    Clip,
    Durations,
    Integrity,
    LoopPeriods,
    ReportData,
    Series,
    VerdictCounts,
)
from robot_stack.evaluation.results import EpisodeOutcome, EvaluationResult, EvaluationSubject
from robot_stack.evaluation.statistics import wilson_interval
from robot_stack.evaluation.video import write_gif

_VOID = {"meta", "img", "rect", "path", "br"}


class Outline(HTMLParser):
    """Checks that tags nest and collects headings, links to other files, and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value for key, value in attrs if key in ("src", "href") and value]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def evaluation(
    policy: str, successes: int, n: int = 200, *, version: int = 0, replan_every: int = 8
) -> EvaluationResult:
    rng = np.random.default_rng(successes)
    wins = set(rng.permutation(n)[:successes].tolist())
    return EvaluationResult(
        subject=EvaluationSubject(
            policy=policy, task="pick_cube", robot="franka_0", weights_version=version, replan_every=replan_every
        ),
        episodes=tuple(
            EpisodeOutcome(seed=seed, success=seed in wins, steps=40 + seed % 30, return_=1.0, duration_s=2.0)
            for seed in range(n)
        ),
    )


def curve(episodes: int = 600, window: int = 50) -> LearningCurve:
    rng = np.random.default_rng(0)
    success = rng.random(episodes) < np.linspace(0.45, 0.95, episodes)
    counts = [int(success[max(0, end - window) : end].sum()) for end in range(1, episodes + 1)]
    sizes = np.minimum(np.arange(1, episodes + 1), window)
    intervals = [wilson_interval(count, int(size)) for count, size in zip(counts, sizes, strict=True)]
    return LearningCurve(
        window=window,
        env_steps=np.cumsum(rng.integers(30, 90, episodes)),
        success=success,
        success_rate=counts / sizes,
        lower=np.asarray([interval.lower for interval in intervals]),
        upper=np.asarray([interval.upper for interval in intervals]),
        return_=success.astype(np.float64),
        weights_version=np.arange(episodes),
        human_steps=np.where(rng.random(episodes) < 0.05, rng.integers(5, 30, episodes), 0),
        unfinished=1,
    )


def whole_report(gif: bytes) -> ReportData:
    rng = np.random.default_rng(1)
    updates = np.arange(0, 20_000, 20)
    fade = np.exp(-updates / 5000)

    def series(label: str, y: np.ndarray) -> Series:
        return Series(
            x=updates, y=y + 0.03 * rng.standard_normal(len(updates)), x_label="learner updates", y_label=label
        )

    periods_s = np.concatenate([rng.normal(0.1, 0.0004, 5000), rng.normal(0.118, 0.004, 12)])
    return ReportData(
        title="Residual RL on a frozen diffusion policy",
        about="Simulated Franka FR3, task pick_cube, one robot, 38 000 online steps & no person.",
        created="2030-01-02 03:04 UTC",
        before=evaluation("diffusion base", 94),
        after=evaluation("residual", 186, version=412),
        others=(evaluation("scripted expert", 198),),
        replanning=tuple(
            evaluation("diffusion base", wins, replan_every=every)
            for every, wins in ((1, 120), (4, 110), (8, 94), (16, 51))
        ),
        curve=curve(),
        training=(
            series("critic loss", fade),
            series("residual size (share of its bound)", 0.6 - 0.4 * fade),
            series("mean Q value", 1.0 - fade),
            series("updates per environment step", np.full(len(updates), 1.0)),
        ),
        loops=(LoopPeriods(name="edge control loop", target_s=0.1, periods_s=periods_s, overruns=12, ticks=5012),),
        inference=(
            Durations(name="diffusion chunk", durations_s=rng.gamma(60, 0.0005, 700)),
            Durations(name="residual step", durations_s=rng.gamma(20, 0.00002, 5000)),
        ),
        verdicts=VerdictCounts(accepted=37_650, clipped=310, refused=(("stale", 7), ("out_of_bounds", 1))),
        integrity=Integrity(acknowledged_steps=37_960, lost_steps=0, duplicate_steps=0, process_restarts=4),
        configuration="robot: franka\nalgorithm:\n  name: residual_sac\n  scale: 0.2\n",
        clips=(Clip(gif=gif, caption="Episode of seed 17: base (left) drops the cube, residual (right) lifts it."),),
    )


def gif(tmp_path: Path) -> bytes:
    path = tmp_path / "clip.gif"
    frames = np.zeros((8, 48, 64, 3), dtype=np.uint8)
    for index in range(8):
        frames[index, :, : 8 * index] = (40, 120, 200)
    write_gif(path, frames, rate_hz=10.0)
    return path.read_bytes()


def written(tmp_path: Path, data: ReportData) -> tuple[str, Outline]:
    path = tmp_path / "report.html"
    write_report(path, data)
    text = path.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    outline.close()
    assert outline.open == []
    return text, outline


def test_a_whole_report_is_one_well_formed_file_that_needs_no_other(tmp_path: Path) -> None:
    text, outline = written(tmp_path, whole_report(gif(tmp_path)))
    assert all(reference.startswith("data:image/") for reference in outline.references)
    assert len(outline.references) == 6
    assert re.search(r"@import|url\(|<script", text) is None
    for reference in outline.references:
        kind, content = reference.split(";base64,")
        if kind.endswith("svg+xml"):
            ElementTree.fromstring(base64.b64decode(content))
    assert 'class="absent"' not in text
    assert 'name="viewport"' in text and "@media print" in text
    assert "38 000 online steps &amp; no person" in text
    assert len(text) < 3_000_000


def test_an_empty_report_says_in_words_what_is_missing(tmp_path: Path) -> None:
    text, outline = written(tmp_path, ReportData(title="Empty <run>", about="", created=""))
    assert outline.references == []
    assert text.count('class="absent"') == 10
    assert "Empty &lt;run&gt;" in text
    assert "No evaluation was run" in text


def test_the_summary_sentence_has_the_numbers() -> None:
    data = whole_report(b"")
    text = summary(data)
    assert text.startswith(
        "residual raised success from 47 % [40, 54] to 93 % [89, 96] on 200 paired episodes: +46 points ["
    )
    assert "p = 0.000" not in text
    assert re.search(r"p = \d\.\de-\d+\.$", text)


def test_the_summary_does_not_sell_chance_or_a_loss() -> None:
    data = whole_report(b"")
    small = replace(data, before=evaluation("base", 5, 10), after=evaluation("residual", 6, 10))
    assert "raised success from 50 %" in summary(small)
    assert "Chance alone" in summary(small)
    worse = replace(data, before=data.after, after=data.before)
    assert "diffusion base lowered success from 93 %" in summary(worse)
    assert "Chance" not in summary(worse)
    assert summary(replace(data, after=None)) == (
        "diffusion base: 47 % [40, 54] success in 200 episodes; "
        "scripted expert: 99 % [96, 100] success in 200 episodes."
    )


def test_unpaired_evaluations_are_refused(tmp_path: Path) -> None:
    data = replace(whole_report(b""), after=evaluation("residual", 50, 100))
    with pytest.raises(ConfigError, match="cannot be compared"):
        write_report(tmp_path / "r.html", data)
    assert list(tmp_path.iterdir()) == []


def test_lost_steps_are_shouted(tmp_path: Path) -> None:
    lost = Integrity(acknowledged_steps=10, lost_steps=1, duplicate_steps=0, process_restarts=0)
    text, _ = written(tmp_path, ReportData(title="t", about="", created="", integrity=lost))
    assert 'class="bad">The promise was broken' in text
    assert 'class="good"' not in text


def test_a_curve_without_people_and_of_one_episode_is_drawn(tmp_path: Path) -> None:
    one = curve(episodes=1)
    data = ReportData(title="t", about="", created="", curve=replace(one, human_steps=np.zeros(1, dtype=np.int64)))
    text, _ = written(tmp_path, data)
    assert "1 finished episodes" in text
