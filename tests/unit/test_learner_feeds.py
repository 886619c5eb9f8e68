"""Several robots feed one learner: which ones fit, whose name is whose, and how stale their steps are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.seeds import practice_seed, validation_seed
from robot_stack.buffer.steps import SessionKey
from robot_stack.config.compose import compose_config
from robot_stack.core.codec import pack
from robot_stack.core.errors import CommandRefusedError, ConfigError, SpecMismatchError
from robot_stack.core.messages import Failed, RobotFeed, Staleness, StepAck, StepBatch
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, vector
from robot_stack.learner.feeds import CLAIM_S, Feeds, Fits, check_robot_fits
from robot_stack.learner.ingest import Ingest
from robot_stack.learner.metrics import MetricsLine, MetricsLog, WaitingShare, read_metrics, scalars_of
from robot_stack.transport.keys import Role
from tests.learner_kit import SPEC, practice_episode

FEATURES = (STATE, ENVIRONMENT_STATE)
FITS = Fits("fed", SPEC, FEATURES)


class Memory:
    """Where steps become durable, in memory."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def append(self, records: Sequence[bytes]) -> tuple[int, int]:
        self.records += records
        return len(records), 0


# ---- which robots fit -------------------------------------------------------------------------------------------


def test_a_robot_of_another_name_model_and_camera_fits() -> None:
    other = msgspec.structs.replace(
        SPEC,
        name="robot_1",
        model="another_one",
        simulated=False,
        observation=SPEC.observation | {"observation.torque": vector(("t_nm",))},
    )
    check_robot_fits(SPEC, other, FEATURES)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"action": vector(("x_mm", "y_mm"), (-1.0, -1.0), (1.0, 1.0))}, "action: names is ('x_mm', 'y_mm')"),
        ({"action": vector(("x_m", "y_m"), (-2.0, -1.0), (1.0, 1.0))}, "action: lower is (-2.0, -1.0)"),
        ({"observation": {STATE: SPEC.observation[STATE]}}, "observation.environment_state: it does not offer that"),
        ({"observation": SPEC.observation | {STATE: vector(("p_m",))}}, "observation.state: shape is (1,) instead of"),
        ({"task": "lift"}, "task: lift instead of pick_cube"),
        ({"control_rate_hz": 20.0}, "control_rate_hz: 20.0 instead of 10.0"),
    ],
)
def test_a_robot_that_does_not_fit_is_refused_by_the_feature_that_differs(changed: dict, words: str) -> None:  # type: ignore[type-arg]
    other = msgspec.structs.replace(SPEC, name="robot_1", **changed)
    with pytest.raises(SpecMismatchError) as raised:
        Feeds(FITS).greet("right", other)
    assert words in str(raised.value)
    assert "robot_1" in str(raised.value) and "robot_0" in str(raised.value)


def test_steps_of_another_shape_or_run_are_not_stored_whoever_sends_them() -> None:
    store, feeds = Memory(), Feeds(FITS)
    ingest = Ingest(store, feeds)
    step = practice_episode("robot_0", "s", 0, 0)[0]
    wrong = (
        msgspec.structs.replace(step, run="another"),
        msgspec.structs.replace(step, observation={STATE: step.observation[STATE]}),
        msgspec.structs.replace(step, observation=step.observation | {STATE: step.observation[STATE][:2]}),
        msgspec.structs.replace(step, action_sent=step.action_sent[:1]),
    )
    for words, bad in zip(("another run", "has no observation.env", "float32[2]", "float32[1]"), wrong, strict=True):
        reply = ingest.answer(StepBatch(records=[pack(step), pack(bad)]), "edge")
        assert isinstance(reply, Failed) and reply.reason == "SpecMismatchError" and words in reply.message
        assert not store.records and not ingest.problem
    assert isinstance(ingest.answer(StepBatch(records=[pack(step)]), "edge"), StepAck)
    assert len(store.records) == 1


def test_a_robot_name_belongs_to_one_edge_until_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("robot_stack.learner.feeds.time.monotonic", lambda: now)
    feeds, ingest = Feeds(FITS), Memory()
    answer = Ingest(ingest, feeds).answer
    batch = StepBatch(records=[pack(practice_episode("robot_0", "s", 0, 0)[0])])
    feeds.heard("left")
    assert isinstance(answer(batch, "left"), StepAck)
    with pytest.raises(CommandRefusedError, match="give every robot a name of its own"):
        feeds.greet("right", SPEC)
    refused = answer(batch, "right")
    assert isinstance(refused, Failed) and refused.reason == "CommandRefusedError"
    now += CLAIM_S
    assert isinstance(answer(batch, "right"), StepAck)


# ---- how far, and how stale -------------------------------------------------------------------------------------


def test_steps_and_staleness_are_told_apart_by_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("robot_stack.learner.feeds.time.monotonic", lambda: now)
    sessions = {SessionKey("fed", "a", "1"): 30, SessionKey("fed", "a", "2"): 10, SessionKey("fed", "b", "3"): 5}
    feeds = Feeds()
    feeds.published(0, ago_s=100.0)
    waiting = [msgspec.structs.replace(step, robot="b") for step in practice_episode("b", "3", 0, 0)[:4]]
    feeds.resume(sessions, waiting)
    feeds.heard("left")
    assert {name: (feed.steps, feed.waiting) for name, feed in feeds.read(sessions).items()} == {
        "a": (40, 0),
        "b": (5, 4),
    }
    feeds.published(1)
    now += 7.0
    for step, newest in zip(waiting, (0, 1, 2, 2), strict=True):
        feeds.trained(step, newest)
    feeds.trained(msgspec.structs.replace(waiting[0], robot="a", weights_version=1), 1)
    found = feeds.read(sessions)
    assert found["b"].waiting == 0
    assert found["b"].staleness == Staleness(
        steps=4,
        versions_median=1.5,
        versions_p95=2.0,
        versions_max=2,
        age_median_s=107.0,
        age_p95_s=107.0,
        age_max_s=107.0,
    )
    assert (found["a"].staleness.versions_max, found["a"].staleness.age_max_s) == (0, 7.0)


def test_a_version_that_nobody_saw_published_has_no_age_and_is_not_behind() -> None:
    feeds = Feeds()
    step = msgspec.structs.replace(practice_episode("a", "1", 0, 0)[0], weights_version=9)
    feeds.trained(step, 5)
    stale = feeds.read({SessionKey("fed", "a", "1"): 1})["a"].staleness
    assert (stale.versions_max, stale.age_max_s) == (0, -1.0)


def test_the_share_of_waiting_is_that_of_the_last_minute() -> None:
    share = WaitingShare(0.0)
    assert share.read(0.0) == 0.0
    for second in range(1, 101):
        share.add(0.25, float(second))
    assert share.read(100.0) == pytest.approx(0.25)
    for second in range(101, 261):
        share.add(1.0, float(second))
    assert share.read(260.0) == pytest.approx(1.0)


def test_metrics_tell_every_number_by_name_and_old_lines_are_read(tmp_path: Path) -> None:
    path, told = tmp_path / "metrics.jsonl", {}
    path.write_text('{"unix_s":1.0,"trained_steps":5,"updates":1,"weights_version":0,"metrics":{}}\n')
    stale = Staleness(steps=3, versions_median=1.0, versions_p95=2.0, versions_max=2, age_median_s=4.0)
    robots = {"a": RobotFeed(edge="left", steps=7, waiting=2, staleness=stale), "b": RobotFeed()}
    MetricsLog(path, lambda step, numbers: told.update({step: dict(numbers)})).write(
        9, 2, 1, {"loss": 0.5}, robots, 0.4
    )
    old, new = read_metrics(path)
    assert (old.robots, old.waiting_share) == ({}, 0.0)
    assert (new.robots, new.waiting_share) == (robots, 0.4)
    assert told[9] == scalars_of(new)
    assert told[9]["staleness/a/versions_max"] == 2 and told[9]["waiting/a"] == 2 and told[9]["loss"] == 0.5
    assert not any(name.startswith("staleness/b") for name in told[9])


def test_a_line_without_robots_has_the_learners_own_numbers() -> None:
    line = MetricsLine(unix_s=0.0, trained_steps=1, updates=3, weights_version=2, metrics={})
    assert scalars_of(line) == {"weights_version": 2, "updates": 3, "waiting_share": 0.0}


# ---- names ------------------------------------------------------------------------------------------------------


def test_every_edge_has_its_own_folder_key_and_seeds(tmp_path: Path) -> None:
    common = (f"runs_directory={tmp_path}", "run=two")
    layouts = [RunLayout.of(compose_config([*common, *more])) for more in ((), ("edge.name=right",))]
    assert len({layout.edge for layout in layouts}) == 2
    for layout in layouts:
        layout.edge.mkdir(parents=True)
    assert layouts[0].edges == {"edge": layouts[0].edge, "right": layouts[1].edge}
    for layout in layouts:
        keys = ensure_keys(layout)
        assert keys.load(layout.edge_name).role is Role.EDGE
    assert keys.load("edge").public_key != keys.load("right").public_key
    seeds = {
        practice_seed(seed, episode, edge) for seed in (0, 1) for edge in ("edge", "right") for episode in range(50)
    }
    assert len(seeds) == 200
    assert max(seeds) < validation_seed(0, 0)


@pytest.mark.parametrize("name", ["learner", "a/b", "..", "Upper Case"])
def test_an_edge_cannot_have_any_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        ensure_keys(RunLayout.of(compose_config([f"runs_directory={tmp_path}", f"edge.name='{name}'"])))
