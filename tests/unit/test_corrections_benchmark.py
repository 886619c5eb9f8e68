"""The world and the scripted people of the benchmark of corrections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corrections import gate
from benchmarks.corrections.bench import finished, jobs_of, run_all
from benchmarks.corrections.peg import Peg
from benchmarks.corrections.report import Report, draw, pool, table
from benchmarks.corrections.study import Point, Tally
from benchmarks.corrections.worlds import Plan
from robot_stack.core.messages import ActionChunk, FloatArray, Observation, Source
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


@pytest.mark.parametrize("helper", [gate.Corrector, gate.Recoverer])
def test_people_pass_the_posts_of_a_rough_wall(helper: type[gate.Corrector | gate.Recoverer]) -> None:
    """Nobody can reach the gate along the wall, but people see the posts and go around them."""
    helped = gate.run(Straight(), SEEDS, helper, rough=True)
    assert all(episode.success or not episode.interventions for episode in helped)
    slid = [_slides_along_the_wall(seed) for seed in SEEDS]
    assert np.mean(slid) < 0.5


def _slides_along_the_wall(seed: int) -> bool:
    """Whether a point off the wall by less than the shortest post gets before the gate."""
    world = gate.World(seed, rough=True)
    world.place = np.array((-0.5 * gate.POST_REACH[0], world.gate + 0.3))
    for _ in range(20):
        world.move(np.array((-0.5 * gate.POST_REACH[0] - world.place[0], -gate.SPEED / 2), np.float32))
    return bool(abs(world.place[1] - world.gate) < gate.HALF_WIDTH)


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
        assert episode.observations[first][0] == pytest.approx(gate.STAGING_X, abs=0.05)
        assert episode.success


def test_corrections_are_handed_back_and_labels_add_up() -> None:
    curator, recorded = EpisodeCurator(rule_of("hg_dagger")), 0
    for episode in gate.run(Straight(), SEEDS, gate.Corrector):
        steps = list(gate.steps_of(episode))
        recorded += len(steps)
        for step in steps:
            list(curator.take(step, replay_step(step, step.seq, gate.policy_spec().observation)))
        if episode.interventions and steps[-1].source is Source.POLICY:
            assert steps[-1].observation[STATE][0] > 0.0
    assert sum(curator.counts.steps.values()) == recorded
    assert curator.counts.steps[Label.CORRECTION] > 0 and curator.counts.steps[Label.RECOVERY] == 0


def test_an_experts_proposal_is_what_the_expert_did() -> None:
    episode = gate.run(Straight(), [0], gate.Demonstrator)[0]
    assert all((step.action_base == step.action_sent).all() for step in gate.steps_of(episode))


def test_the_report_pools_seeds_and_is_drawn(tmp_path: Path) -> None:
    def point(way: str, seed: int, number: int, won: int) -> Point:
        return Point(
            world="gate",
            way=way,
            seed=seed,
            round=number,
            outcomes=(30,) * won + (0,) * (50 - won),
            operator_steps=100 * number,
            interventions=number,
            recoveries=number,
        )

    ways = ("base", "rac", "hg_dagger", "demonstrations")
    points = tuple(point(way, seed, way != "base", 20 + seed) for way in ways for seed in (0, 1))
    rows = pool(points)
    rac = next(row for row in rows if row.way == "rac")
    assert (rac.n, rac.success, rac.seeds, rac.within) == (100, 0.41, (0.4, 0.42), 0.41)
    assert rac.ci[0] == pytest.approx(0.319, abs=2e-3)  # Wilson for 41 of 100
    assert "rac" in table(rows)
    report = Report(command="", load_average=0.0, cpu_s=0.0, plans={}, seeds=(0, 1), pooled=rows, points=points)
    draw(report, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_seed_is_run_once_and_every_way_gets_the_same_operator_steps(tmp_path: Path) -> None:
    plan = Plan(
        rounds=2, budget=20, demonstrations=2, base_steps=2, updates=2, test_episodes=3, last_episodes=4, batch_size=8
    )
    jobs = jobs_of(["rough_gate"], [7], tmp_path, {"rough_gate": plan})
    run_all(jobs, 1)
    points = {(point.way, point.round): point for kept in finished(jobs) for point in kept.points}
    assert len(points) == 2 + 3 * 2
    assert [len(points["rac", number].outcomes) for number in (1, 2)] == [3, 4]
    longest = gate.MAX_STEPS
    for way in ("rac", "hg_dagger", "demonstrations"):
        assert all(number * 20 <= points[way, number].operator_steps < number * 20 + longest for number in (1, 2))
    assert points["rac", 2].recoveries == points["rac", 2].interventions > 0
    assert points["hg_dagger", 2].recoveries == 0 < points["hg_dagger", 2].interventions
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    run_all(jobs, 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == written


class Downward:
    """Pushes down wherever the socket is."""

    version = 0

    def __init__(self, peg: Peg) -> None:
        self.spec = peg.spec
        self._actions = np.tile(np.array((0.0, 0.0, -0.01, 0.0), np.float32), (peg.spec.horizon, 1))

    def predict(self, observation: Observation) -> ActionChunk:
        return ActionChunk(
            observation_id=observation.id, index=observation.index, weights_version=0, actions=self._actions
        )


def test_operators_of_the_peg_are_counted_by_what_they_do() -> None:
    peg = Peg(bias_m=0.0)
    policy = Downward(peg)
    tallies = {}
    for mode in ("rac", "hg_dagger", "full_demonstrations"):
        tally = tallies[mode] = Tally()
        for episode in peg.practice(policy, mode, range(2)):  # type: ignore[arg-type]
            tally.add(episode)
    rac, hg_dagger, shown = tallies["rac"], tallies["hg_dagger"], tallies["full_demonstrations"]
    assert rac.interventions == 2 and rac.alone == 0 and rac.recovery_steps > 0
    assert rac.operator_steps == rac.recovery_steps + rac.correction_steps
    assert hg_dagger.interventions >= 2 and hg_dagger.recovery_steps == 0
    assert (shown.interventions, shown.alone) == (0, 0) and shown.operator_steps > 10
