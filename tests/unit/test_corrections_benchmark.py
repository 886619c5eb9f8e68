"""The world and the scripted people of the benchmark of corrections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corrections import gate, study
from benchmarks.corrections.report import draw, report_of, table
from robot_stack.core.messages import FloatArray, Observation, Source
from robot_stack.core.specs import STATE
from robot_stack.learner.corrections import EpisodeCurator, Label, rule_of
from robot_stack.learner.trainer import replay_step

SEEDS = range(40)


class Straight:
    """Runs at the wall wherever the gate is."""

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        return np.tile(np.array((gate.SPEED, 0.0), np.float32), (len(observations), gate.HORIZON, 1))


def test_a_demonstration_succeeds_and_running_straight_on_gets_stuck() -> None:
    shown = gate.run(None, SEEDS, gate.Demonstrator)
    assert all(episode.success for episode in shown)
    assert max(len(episode.sources) for episode in shown) < gate.MAX_STEPS // 2
    stuck = gate.run(Straight(), SEEDS, None)
    assert np.mean([episode.world.stuck > gate.STUCK_STEPS for episode in stuck]) > 0.5


def test_nobody_passes_the_wall_beside_the_gate() -> None:
    for episode in gate.run(Straight(), SEEDS, gate.Corrector):
        for x, y, height in episode.observations:
            assert not (0.0 <= x <= gate.THICKNESS and abs(y - height) > gate.HALF_WIDTH)


def test_recoveries_lead_back_before_corrections_and_end_the_episode() -> None:
    helped = [episode for episode in gate.run(Straight(), SEEDS, gate.Recoverer) if episode.interventions]
    assert len(helped) > len(SEEDS) // 2
    for episode in helped:
        names = "".join(
            {"human_recovery": "r", "human_correction": "c", "policy": "p"}[s.value] for s in episode.sources
        )
        assert names.lstrip("p").strip("r").strip("c") == "" and "c" in names  # p..r..c and nothing behind
        first = names.index("c")
        x, y, height = episode.observations[first]
        assert abs(x - gate.STAGING_X) < 0.05 and abs(y - height) < 0.05
        assert episode.world.past_the_wall


def test_corrections_are_handed_back_and_labels_add_up() -> None:
    curator, recorded = EpisodeCurator(rule_of("hg_dagger")), 0
    for number, episode in enumerate(gate.run(Straight(), SEEDS, gate.Corrector)):
        steps = list(gate.steps_of(episode, number, recorded, 1))
        recorded += len(steps)
        for step in steps:
            list(curator.take(step, replay_step(step, step.seq, gate.policy_spec().observation)))
        if episode.interventions and steps[-1].source is Source.POLICY:
            assert steps[-1].observation[STATE][0] > gate.THICKNESS
    assert sum(curator.counts.steps.values()) == recorded
    assert curator.counts.steps[Label.CORRECTION] > 0 and curator.counts.steps[Label.RECOVERY] == 0


def test_an_experts_proposal_is_what_the_expert_did() -> None:
    episode = gate.run(Straight(), [0], gate.Demonstrator)[0]
    assert all((step.action_base == step.action_sent).all() for step in gate.steps_of(episode, 0, 0, 0))


def test_the_report_pools_seeds_and_is_drawn(tmp_path: Path) -> None:
    def point(way: str, seed: int, number: int, won: int) -> study.Point:
        return study.Point(
            way=way,
            seed=seed,
            round=number,
            episodes=1,
            operator_steps=100 * number,
            interventions=number,
            recoveries=number,
            successes=won,
            n=50,
            shares={},
        )

    points = [point(way, seed, way != "base", 20 + seed) for way in ("base", "rac", "hg_dagger") for seed in (0, 1)]
    plan = study.Plan(rounds=1, budget=1, demonstrations=1, base_steps=1, updates=1, test_episodes=50)
    report = report_of(plan, (0, 1), points)
    rac = next(row for row in report.pooled if row.way == "rac")
    assert (rac.n, rac.success, rac.seeds) == (100, 0.41, (0.4, 0.42))
    assert rac.ci[0] == pytest.approx(0.319, abs=2e-3)  # Wilson for 41 of 100
    assert "rac" in table(report)
    draw(report, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
