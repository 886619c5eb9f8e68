"""Where rewards come from: the models, their errors, and how a learner's fold is given their verdicts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.common.normalization import Standardizer
from policies.common.vision_config import VisionConfig
from policies.residual.config import ResidualConfig
from robot_stack.apps.reward_report import evaluate_rewards
from robot_stack.buffer.images import ImageCodec, encode_image
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.buffer.store import StepStore
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError, CorruptDataError, MissingDependencyError, PolicyError, StorageError
from robot_stack.core.messages import Features, Refusal, Source, Step, Verdict
from robot_stack.core.protocols import Judgement, Outcome, RewardModel
from robot_stack.core.specs import IMAGES, STATE, Feature, PolicySpec, vector
from robot_stack.learner.algorithms.base import HalfAndHalf, Recipe
from robot_stack.learner.algorithms.residual_td3 import ResidualTd3
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Config
from robot_stack.learner.corrections import EpisodeCurator, rule_of
from robot_stack.learner.curation import EveryStep, Kept, Place
from robot_stack.learner.rewards.build import build_reward_model, rewarded
from robot_stack.learner.rewards.classifier import ClassifierConfig, RewardClassifier, SuccessNet, train_classifier
from robot_stack.learner.rewards.goals import GoalImages, fit_goals
from robot_stack.learner.rewards.labels import HumanLabel, HumanLabels, add_label, read_labels
from robot_stack.learner.rewards.outcomes import Labelled, Tally, episode_key, hold_out, outcomes_of, threshold_above
from robot_stack.learner.rewards.predicate import InjectedErrors, TaskPredicate
from robot_stack.learner.rewards.relabel import RewardedCurator
from robot_stack.learner.rewards.settings import (
    REWARD_PRESETS,
    AnyReward,
    ClassifierSettings,
    ClassifierTraining,
    GoalImageSettings,
    HumanLabelSettings,
    TaskPredicateSettings,
    VlmSettings,
)
from robot_stack.learner.trainer import Trainer, replay_step
from tests.unit import test_learner_trainer as trainer_test

FEATURES = {STATE: vector(("x", "y"))}
CAMERA = IMAGES + "front"
SIDE = 24
PICTURES = {CAMERA: Feature(dtype="uint8", shape=(SIDE, SIDE, 3))}
SMALL = ClassifierTraining(
    vision=VisionConfig(channels=(8, 8), keypoints=4), hidden_dim=16, steps=60, batch_size=32, lr=5e-3, threshold=0.5
)


def step(
    index: int,
    *,
    number: int = 0,
    seen: Features | None = None,
    success: bool = False,
    terminated: bool = False,
    truncated: bool = False,
    refused: bool = False,
    final: Features | None = None,
    robot: str = "robot",
) -> Step:
    return Step(
        run="run",
        robot=robot,
        task="task",
        session="session",
        seq=100 * number + index,
        episode=number,
        episode_seed=number,
        segment=0,
        index=index,
        stamp_ns=0,
        observation={STATE: np.array([number, index], np.float32)} if seen is None else seen,
        action_base=np.array([index / 100], np.float32),
        action_asked=np.zeros(1, np.float32),
        action_sent=np.zeros(1, np.float32),
        verdict=Verdict.REFUSED if refused else Verdict.ACCEPTED,
        refusal=Refusal.STALE if refused else None,
        source=Source.POLICY,
        weights_version=0,
        reward=float(success),
        success=success,
        terminated=terminated,
        truncated=truncated,
        final_observation=final,
        final_action_base=None if final is None or terminated else np.full(1, 0.9, np.float32),
    )


def episode(
    length: int, number: int = 0, end: str = "truncated", success: bool = False, refused: Sequence[int] = ()
) -> list[Step]:
    """Observations are (episode, index); the state after the last action is (episode, length)."""
    made = [step(i, number=number, refused=i in refused) for i in range(length - 1)]
    final = {STATE: np.array([number, length], np.float32)}
    ends = {"terminated": end == "terminated", "truncated": end == "truncated"}
    last = step(length - 1, number=number, success=success, final=final if end else None, **ends)  # type: ignore[arg-type]
    return [*made, last]


class Says:
    """A model of the state after a step: success where the given function says so."""

    name = "says"
    version = "1"

    def __init__(self, success: Callable[[int, int], bool], sure: bool = False) -> None:
        self._success, self._sure = success, sure

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        said = []
        for outcome in outcomes:
            number, index = (-1, -1) if outcome.after is None else (int(one) for one in outcome.after[STATE])
            found = self._success(number, index)
            said.append(Judgement(success=found, probability=float(found), reward=float(found), sure=self._sure))
        return said


def taken(curator: RewardedCurator, steps: Iterable[Step]) -> list[ReplayStep]:
    kept: list[Kept] = []
    for i, one in enumerate(steps):
        kept += curator.take(one, replay_step(one, i, FEATURES))
    return [one.step for one in kept]


def shown(steps: Sequence[ReplayStep]) -> list[tuple[int, float, bool, bool]]:
    return [(one.index, one.reward, one.terminated, one.truncated) for one in steps]


# ---- the fold ----


def test_a_learned_success_ends_the_episode_exactly_once() -> None:
    curator = RewardedCurator(EveryStep(), Says(lambda _, index: index in (3, 5, 8)))
    kept = taken(curator, [*episode(8), *episode(4, number=1)])
    assert shown(kept) == [
        (0, 0.0, False, False),
        (1, 0.0, False, False),
        (2, 1.0, True, False),  # the state after its action has index 3
        (0, 0.0, False, False),
        (1, 0.0, False, False),
        (2, 1.0, True, False),
    ]
    assert kept[2].final_observation is not None and kept[2].final_observation.tolist() == [0.0, 3.0]
    assert kept[2].final_action_base is not None and kept[2].final_action_base[0] == np.float32(0.03)
    assert (curator.counts.successes, curator.counts.early, curator.counts.left_out_steps) == (2, 2, 6)


def test_the_end_of_the_recording_is_judged_by_the_final_observation() -> None:
    kept = taken(RewardedCurator(EveryStep(), Says(lambda _, index: index == 4)), episode(4))
    assert shown(kept)[-1] == (3, 1.0, True, False)
    assert shown(kept)[:-1] == [(i, 0.0, False, False) for i in range(3)]


@pytest.mark.parametrize(("consecutive", "ends_at"), [(1, 1), (2, 5), (3, 6), (4, None)])
def test_so_many_positive_verdicts_in_a_row_are_needed(consecutive: int, ends_at: int | None) -> None:
    positive = {2, 5, 6, 7}
    curator = RewardedCurator(EveryStep(), Says(lambda _, index: index in positive), consecutive)
    kept = taken(curator, episode(10))
    assert [one.index for one in kept if one.terminated] == ([] if ends_at is None else [ends_at])
    assert sum(one.reward for one in kept) == (0.0 if ends_at is None else 1.0)
    assert kept[-1].truncated == (ends_at is None)


def test_what_is_sure_needs_no_confirmation() -> None:
    kept = taken(RewardedCurator(EveryStep(), Says(lambda _, index: index == 2, sure=True), 3), episode(6))
    assert shown(kept)[-1] == (1, 1.0, True, False)


def test_a_success_is_never_that_of_a_refused_action() -> None:
    curator = RewardedCurator(EveryStep(), Says(lambda _, index: index >= 3))
    kept = taken(curator, episode(6, refused=[2]))
    assert [one.index for one in kept] == [0, 1, 3]
    assert kept[-1].terminated and kept[-1].reward == 1.0


def test_recorded_ends_that_the_model_does_not_see() -> None:
    never = Says(lambda _, __: False)
    success = taken(RewardedCurator(EveryStep(), never), episode(3, end="terminated", success=True))
    assert shown(success)[-1] == (2, 0.0, False, True)
    failure = taken(RewardedCurator(EveryStep(), never), episode(3, end="terminated"))
    assert shown(failure)[-1] == (2, 0.0, True, False)
    timeout = taken(RewardedCurator(EveryStep(), never), episode(3, success=True))
    assert shown(timeout)[-1] == (2, 0.0, False, True)


def test_a_denied_success_makes_no_transition_without_a_future() -> None:
    replay = Replay(ReplayConfig(50, 2, 1))
    for one in taken(
        RewardedCurator(EveryStep(), Says(lambda _, __: False)), episode(5, end="terminated", success=True)
    ):
        replay.add(one)
    sampler = Sampler([Part(replay, None, 1.0)], seed=0)
    batch = sampler.transitions(sampler.draw(100), 1, 0.9)
    assert set(batch.observation[:, 1].tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert (batch.bootstrap > 0).all() and not batch.return_n.any()


def test_an_interrupted_episode_has_no_success() -> None:
    steps = [*episode(4, end="")[:3], *episode(4, number=1)]
    kept = taken(RewardedCurator(EveryStep(), Says(lambda number, index: (number, index) == (0, 3))), steps)
    assert [one.index for one in kept] == [0, 1, 2, 0, 1, 2, 3]
    assert not any(one.terminated for one in kept)


def test_a_gap_in_the_recording_confirms_nothing() -> None:
    whole = episode(6)
    kept = taken(RewardedCurator(EveryStep(), Says(lambda _, __: True), 2), [whole[0], whole[1], whole[3], whole[4]])
    assert [one.index for one in kept if one.terminated] == []
    assert [one.index for one in kept] == [0, 1, 3]


def test_an_episode_without_its_beginning_is_left_out() -> None:
    curator = RewardedCurator(EveryStep(), Says(lambda _, __: False))
    kept = taken(curator, [*episode(6)[2:], *episode(3, number=1)])
    assert [one.stream for one in kept] == [("run", "robot", "session", 1, 0)] * 3
    assert curator.counts.left_out_steps == 4 and curator.counts.episodes == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["terminated", "truncated", ""])), max_size=5), st.data())
def test_the_fold_depends_on_each_robots_sequence_alone(recorded: list[tuple[int, str]], data: st.DataObject) -> None:
    model = Says(lambda number, index: (3 * number + 5 * index) % 7 < 3)
    steps = [one for number, (length, end) in enumerate(recorded) for one in episode(length, number, end)]
    other = [msgspec.structs.replace(one, robot="other") for one in steps]
    alone = taken(RewardedCurator(EveryStep(), model, 2), steps)
    mixed, places = list[Step](), [iter(steps), iter(other)]
    for first in data.draw(st.lists(st.booleans(), max_size=2 * len(steps))):
        mixed += [one for one in [next(places[first], None)] if one is not None]
    together = taken(RewardedCurator(EveryStep(), model, 2), [*mixed, *places[0], *places[1]])
    of_one = [one for one in together if isinstance(one.stream, tuple) and one.stream[1] == "robot"]
    assert shown(of_one) == shown(alone)
    for number in range(len(recorded)):
        of_episode = [one for one in alone if isinstance(one.stream, tuple) and one.stream[3] == number]
        assert sum(one.terminated and one.reward > 0 for one in of_episode) <= 1
        assert not any(one.terminated or one.truncated for one in of_episode[:-1])


def test_the_curator_underneath_sees_the_success() -> None:
    """RaC keeps the policy's own steps of successful episodes only."""
    for succeeds, expected in ((True, 3), (False, 0)):
        model = Says(lambda _, index, succeeds=succeeds: succeeds and index == 3)  # type: ignore[misc]
        assert len(taken(RewardedCurator(EpisodeCurator(rule_of("rac")), model), episode(6))) == expected


@pytest.mark.parametrize("kill_after", [17, 42, 95])
def test_a_trainer_with_learned_rewards_can_be_killed_anywhere(tmp_path: Path, kill_after: int) -> None:
    errors = InjectedErrors(TaskPredicate(), 0.05, 0.2, seed=3)

    def trainer(log: StepStore) -> Trainer:
        demonstrations, online = trainer_test.replay(), trainer_test.replay()
        for i, one in enumerate(trainer_test.steps(30, "demonstrations", seed=1)):
            demonstrations.add(replay_step(one, i, FEATURES, Stratum.DEMONSTRATION))
        algorithm = ResidualTd3(
            ResidualTd3Config(critic_hidden=(8, 8), critic_only_updates=5),
            ResidualConfig(hidden=(8, 8), action_scale=0.3),
            trainer_test.ACTION,
            Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0)),
            seed=3,
        )
        recipe = Recipe(algorithm, 3, HalfAndHalf(0.5), curator=RewardedCurator(EveryStep(), errors))
        replays = {Place.DEMONSTRATIONS: demonstrations, Place.ONLINE: online}
        return Trainer(trainer_test.SETTINGS, recipe, log, replays, FEATURES, seed=3)

    with StepStore(tmp_path / "log", durability="process") as log:
        log.append([pack(one) for one in trainer_test.steps(100, "online", seed=2)])
        whole, killed, restored = trainer(log), trainer(log), trainer(log)
        trainer_test.run(whole)
        for _ in range(kill_after):
            killed.advance()
        restored.restore(*killed.state())
        trainer_test.run(restored)
    assert whole.updates == 40
    assert trainer_test.fingerprint(restored) == trainer_test.fingerprint(whole)


# ---- errors on purpose ----


def test_injected_errors_have_their_rates_and_are_always_the_same() -> None:
    outcomes = [Outcome(step=step(i, number=n, success=i % 2 == 0), after=None) for n in range(200) for i in range(40)]
    model = InjectedErrors(TaskPredicate(), 0.05, 0.3, seed=4)
    judged = model.judge(outcomes)
    labels = [one.step.success for one in outcomes]
    found = Tally.of([one.success for one in judged], labels)
    assert found.false_positive_rate == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 4000) ** 0.5)
    assert found.false_negative_rate == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)
    assert list(reversed(model.judge(outcomes[::-1]))) == judged
    assert all(one.reward == float(one.success) and not one.sure for one in judged)
    other = InjectedErrors(TaskPredicate(), 0.05, 0.3, seed=5)
    assert other.judge(outcomes) != judged and other.version != model.version
    more = [one.success for one in InjectedErrors(TaskPredicate(), 0.2, 0.3, seed=4).judge(outcomes)]
    assert all(after for now, after, label in zip(judged, more, labels, strict=True) if now.success and not label)


def test_no_errors_change_no_verdict() -> None:
    outcomes = outcomes_of(episode(6, end="terminated", success=True))
    plain, none = TaskPredicate().judge(outcomes), InjectedErrors(TaskPredicate(), 0.0, 0.0, 0).judge(outcomes)
    assert [(one.success, one.reward) for one in none] == [(one.success, one.reward) for one in plain]


# ---- people ----


def label(success: bool, number: int = 0, index: int | None = None, who: str = "ann") -> HumanLabel:
    return HumanLabel(
        run="run", robot="robot", session="session", episode=number, success=success, who=who, when_s=1.5, index=index
    )


def test_a_persons_label_overrides(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "labels.jsonl"
    for one in (label(True, 0), label(False, 1), label(True, 2, index=1), label(False, 3), label(True, 3)):
        add_label(path, one)
    steps = [one for number in range(5) for one in episode(4, number, end="terminated", success=number != 0)]
    judged = HumanLabels(path, TaskPredicate()).judge(outcomes_of(steps))
    won = {(one.episode, one.index) for one, judgement in zip(steps, judged, strict=True) if judgement.success}
    assert won == {(0, 3), (2, 1), (2, 3), (3, 3), (4, 3)}
    kept = taken(RewardedCurator(EveryStep(), HumanLabels(path, TaskPredicate()), consecutive=3), steps)
    assert [one.index for one in kept if one.reward == 1.0] == [3, 1, 3, 3]


def test_labels_survive_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    add_label(path, label(True, 0))
    add_label(path, label(False, 1))
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        found = read_labels(path)
        assert found[0] == label(True, 0) and len(found) == (2 if cut == len(whole) - 1 else 1)
        add_label(path, label(True, 2))
        assert read_labels(path) == [*found, label(True, 2)]
    path.write_bytes(whole[: whole.index(b"\n") - 2] + whole[whole.index(b"\n") :])
    with pytest.raises(CorruptDataError, match="line 1"):
        read_labels(path)


def test_no_file_means_no_labels_and_a_label_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    before = HumanLabels(path, TaskPredicate())
    assert before.judge(outcomes_of(episode(3))) == TaskPredicate().judge(outcomes_of(episode(3)))
    with pytest.raises(ConfigError, match="person"):
        label(True, who="")
    add_label(path, label(True))
    assert HumanLabels(path, TaskPredicate()).version != before.version
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        add_label(tmp_path / "file" / "labels.jsonl", label(True))


# ---- classifier and goals ----


def planted(count: int, seed: int, jpeg: bool = False) -> list[Step]:
    """Episodes of 4 steps; the last state of every other one has a bright patch on the right, the others have it on the
    left. The place up and down, and the noise, tell nothing."""
    rng, steps = np.random.default_rng(seed), []
    for number in range(count):
        pictures = []
        for index in range(5):
            image = rng.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
            success = number % 2 == 0 and index == 4
            top, left = int(rng.integers(2, 14)), 15 if success else int(rng.integers(1, 6))
            image[top : top + 6, left : left + 6] = 230
            pictures.append({CAMERA: encode_image(image, ImageCodec.JPEG) if jpeg else image})
        for index in range(4):
            last = {"truncated": True, "final": pictures[4]} if index == 3 else {}
            success = number % 2 == 0 and index == 3
            steps.append(step(index, number=number, seen=pictures[index], success=success, **last))  # type: ignore[arg-type]
    return steps


def labelled(steps: Sequence[Step]) -> Labelled:
    return Labelled.of(outcomes_of(steps), [one.success for one in steps])


@pytest.fixture(scope="module")
def classifier() -> RewardClassifier:
    return train_classifier(labelled(planted(60, seed=0)), PICTURES, SMALL, name="patch", task="task")


def test_the_classifier_learns_what_tells_success(classifier: RewardClassifier) -> None:
    found = evaluate_rewards(classifier, labelled(planted(60, seed=1)))
    assert found.recall.value > 0.9 and found.false_positive_rate.value < 0.1
    assert found.recall.interval.lower < found.recall.value <= found.recall.interval.upper
    assert found.precision.of == found.tally.true_positives + found.tally.false_positives


def test_its_reported_errors_are_those_on_held_out_episodes(classifier: RewardClassifier) -> None:
    data = labelled(planted(60, seed=0))
    part, held_out = hold_out(data, SMALL.held_out_share, SMALL.seed)
    keys = [{episode_key(one.step) for one in half.outcomes} for half in (part, held_out)]
    assert not keys[0] & keys[1] and len(keys[1]) == 16  # of 30 episodes of each kind, a quarter
    assert classifier.config.held_out == evaluate_rewards(classifier, held_out).tally
    assert classifier.config.held_out.positives + classifier.config.held_out.negatives == 64


def test_errors_are_not_those_on_what_it_was_trained_on() -> None:
    """Labels that nothing tells: a classifier that could learn them by heart is wrong about other episodes."""
    rng = np.random.default_rng(0)
    steps = []
    for number in range(40):
        seen = [{STATE: rng.standard_normal(2).astype(np.float32)} for _ in range(3)]
        steps += [
            step(0, number=number, seen=seen[0], success=bool(rng.integers(2))),
            step(1, number=number, seen=seen[1], success=bool(rng.integers(2)), truncated=True, final=seen[2]),
        ]
    by_heart = msgspec.structs.replace(SMALL, steps=400, hidden_dim=128, dropout=0.0, lr=1e-2)
    data = labelled(steps)
    made = train_classifier(data, FEATURES, by_heart, name="noise", task="task")
    known = evaluate_rewards(made, hold_out(data, by_heart.held_out_share, by_heart.seed)[0]).tally
    reported = made.config.held_out
    assert known.false_positive_rate + known.false_negative_rate < 0.55
    assert reported.false_positive_rate + reported.false_negative_rate > 0.7


def test_training_is_repeatable_and_leaves_torchs_own_generator_alone(classifier: RewardClassifier) -> None:
    before = torch.random.get_rng_state()
    again = train_classifier(labelled(planted(60, seed=0)), PICTURES, SMALL, name="patch", task="task")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.version == classifier.version
    other = msgspec.structs.replace(SMALL, steps=2, seed=1)
    short = train_classifier(labelled(planted(60, seed=0)), PICTURES, other, name="patch", task="task")
    assert short.version != classifier.version


def test_a_saved_classifier_judges_alike(classifier: RewardClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "saved")
    loaded = build_reward_model(ClassifierSettings(folder=str(tmp_path / "saved")))
    outcomes = labelled(planted(6, seed=2)).outcomes
    assert loaded.version == classifier.version and loaded.judge(outcomes) == classifier.judge(outcomes)
    nothing = Outcome(step=outcomes[0].step, after=None)
    assert [one.success for one in loaded.judge([nothing])] == [False]
    with pytest.raises(PolicyError, match="lacks"):
        loaded.judge([Outcome(step=outcomes[0].step, after={})])
    with pytest.raises(StorageError):
        classifier.save(tmp_path / "saved")


def test_pictures_count_however_they_were_recorded(classifier: RewardClassifier) -> None:
    found = evaluate_rewards(classifier, labelled(planted(20, seed=3, jpeg=True)))
    assert found.recall.value > 0.7 and found.false_positive_rate.value < 0.1


def test_a_classifier_without_its_statistics_is_refused(classifier: RewardClassifier, tmp_path: Path) -> None:
    spec = PolicySpec(name="bare", task="task", horizon=1, action=vector(()), observation=FEATURES)
    with pytest.raises(PolicyError, match="statistics"):
        RewardClassifier(spec, classifier.config, SuccessNet(SMALL, FEATURES))
    unmeasured = Tally(true_positives=0, false_positives=0, true_negatives=3, false_negatives=0)
    config = ClassifierConfig(
        training=SMALL, threshold=0.5, standardizer=Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0)), held_out=unmeasured
    )
    with pytest.raises(PolicyError, match="errors"):
        RewardClassifier(spec, config, SuccessNet(SMALL, FEATURES))
    classifier.save(tmp_path / "saved")
    manifest = tmp_path / "saved" / "policy.json"
    whole = manifest.read_text()
    for before, after in (('"held_out"', '"left_out"'), ('"false_positives": 0', '"false_positives": -1')):
        manifest.write_text(whole.replace(before, after).replace('"threshold": 0.5,', '"threshold": 0.4,'))
        with pytest.raises(PolicyError):
            RewardClassifier.load(tmp_path / "saved")


@pytest.mark.parametrize("wanted", [0.05, 0.5])
def test_the_threshold_is_raised_for_few_false_positives(wanted: float) -> None:
    blurred = msgspec.structs.replace(SMALL, steps=3, threshold=0.01, largest_false_positive_rate=wanted)
    made = train_classifier(labelled(planted(60, seed=0)), PICTURES, blurred, name="patch", task="task")
    found = evaluate_rewards(made, labelled(planted(60, seed=1)))
    assert made.config.threshold > 0.01
    assert found.false_positive_rate.value == pytest.approx(wanted, abs=0.15)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0, 0.99))
def test_no_more_than_the_share_is_above_the_threshold(scores: list[float], share: float) -> None:
    threshold = threshold_above(np.array(scores), share)
    assert sum(score > threshold for score in scores) <= share * len(scores)


@pytest.mark.parametrize("steps", [planted(1, seed=0), planted(2, seed=0), []])
def test_too_little_data_is_refused(steps: list[Step]) -> None:
    with pytest.raises(PolicyError, match="too few"):
        train_classifier(labelled(steps), PICTURES, SMALL, name="patch", task="task")


@pytest.mark.parametrize("by_encoder", [False, True])
def test_nearness_to_pictures_of_the_goal(classifier: RewardClassifier, tmp_path: Path, by_encoder: bool) -> None:
    measure = classifier if by_encoder else None
    goals = [one for one in labelled(planted(30, seed=4)).outcomes if one.step.success]
    made = fit_goals(
        goals,
        labelled([msgspec.structs.replace(one, session="others") for one in planted(60, seed=5)]),
        PICTURES,
        name="goals",
        task="task",
        classifier=measure,
        largest_false_positive_rate=0.05,
    )
    found = evaluate_rewards(made, labelled(planted(40, seed=6)))
    assert found.false_positive_rate.value < 0.15
    assert found.recall.value > 0.6
    assert made.config.held_out.positives and made.config.held_out.negatives
    assert made.judge(goals)[0].success and made.judge(goals)[0].probability == 1.0
    made.save(tmp_path / "goals")
    folder = ""
    if by_encoder:
        folder = str(tmp_path / "classifier")
        classifier.save(tmp_path / "classifier")
        with pytest.raises(PolicyError, match="measured by classifier"):
            GoalImages.load(tmp_path / "goals")
    loaded = build_reward_model(GoalImageSettings(folder=str(tmp_path / "goals"), classifier=folder))
    assert loaded.version == made.version and loaded.judge(goals[:3]) == made.judge(goals[:3])


def test_episodes_of_the_goals_measure_nothing() -> None:
    steps = planted(30, seed=4)
    goals = [one for one in labelled(steps).outcomes if one.step.success][:5]
    made = fit_goals(goals, labelled(steps), PICTURES, name="goals", task="task")
    assert made.config.held_out.positives == 5  # of 15 successes 5 are goals, and half of the others is held out
    with pytest.raises(PolicyError, match="no pictures"):
        fit_goals([], labelled(steps), PICTURES, name="goals", task="task")


# ---- a vision-language model ----


def save_yes_no_model(folder: Path, kind: str, template: str | None = None) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.unit.vlm_kit import save_tiny_model

    name = save_tiny_model(folder, kind)
    words = ("<pad>", "<bos>", "<eos>", "<unk>", "yes", "no", "is", "it", "done", "User", ":", "?")
    known = {word: i for i, word in enumerate(words)} | {"<image>": 15}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made: Any = PreTrainedTokenizerFast
    fast = made(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if template is not None:
        fast.chat_template = template
    fast.save_pretrained(folder)
    return name


TEMPLATE = (
    "User:{% for one in messages[0]['content'] %}"
    "{% if one['type'] == 'image' %}<image>{% else %}{{ one['text'] }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module", params=["smolvlm", "paligemma", "chat"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    kind = str(request.param)
    folder = tmp_path_factory.mktemp(kind)
    return save_yes_no_model(folder, "smolvlm" if kind == "chat" else kind, TEMPLATE if kind == "chat" else None)


def test_a_model_is_asked_a_question(vlm: str) -> None:
    outcomes = labelled(planted(4, seed=0)).outcomes
    low, high = (
        build_reward_model(VlmSettings(model=vlm, question="is it done ?", threshold=threshold))
        for threshold in (0.0, 0.999999)
    )
    judged = low.judge(outcomes)
    assert len({one.probability for one in judged}) == len(outcomes)  # it looks at the pictures
    assert all(0.0 < one.probability < 1.0 and one.success for one in judged)
    assert not any(one.success for one in high.judge(outcomes))
    assert low.judge(outcomes[:2]) == judged[:2]
    other = build_reward_model(VlmSettings(model=vlm, question="is it ?"))
    assert other.version != low.version
    assert [one.probability for one in other.judge(outcomes)] != [one.probability for one in judged]
    assert all(one.success == (one.probability > 0.5) for one in other.judge(outcomes))


def test_all_cameras_are_shown_or_those_that_are_named(vlm: str) -> None:
    first, second = (labelled(planted(2, seed=seed)).outcomes[0] for seed in (0, 1))
    assert first.after is not None and second.after is not None
    both = {CAMERA: first.after[CAMERA], IMAGES + "wrist": second.after[CAMERA]}
    outcome = Outcome(step=first.step, after=both)
    asked = [
        build_reward_model(VlmSettings(model=vlm, question="is it done ?", cameras=cameras)).judge([outcome])[0]
        for cameras in ((), ("front", "wrist"), ("front",), ("wrist", "front"))
    ]
    assert asked[0] == asked[1] and len({one.probability for one in asked[1:]}) == 3
    with pytest.raises(PolicyError, match="above"):
        build_reward_model(VlmSettings(model=vlm, question="is it done ?", cameras=("above",))).judge([outcome])


def test_models_that_cannot_be_asked_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.unit.vlm_kit import save_tiny_model

    name = save_tiny_model(tmp_path / "mute", "smolvlm")
    with pytest.raises(PolicyError, match="yes and no"):
        build_reward_model(VlmSettings(model=name, question="touch the block"))
    with pytest.raises(PolicyError, match="cannot be loaded"):
        build_reward_model(VlmSettings(model=str(tmp_path / "nothing"), question="is it done ?"))
    with pytest.raises(PolicyError, match=r"reward\.question"):
        build_reward_model(VlmSettings(model=name))


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"robot-stack\[vla\]"):
        build_reward_model(VlmSettings(model="some/model", question="is it done ?"))


# ---- settings ----


def test_every_kind_of_settings_can_be_read() -> None:
    for name, preset in REWARD_PRESETS.items():
        decoded = msgspec.json.decode(msgspec.json.encode(preset), type=AnyReward)
        assert decoded == preset
        assert msgspec.json.decode(msgspec.json.encode(preset))["kind"] == name
    with pytest.raises(ConfigError):
        TaskPredicateSettings(false_positive_rate=1.5)
    with pytest.raises(ConfigError):
        TaskPredicateSettings(consecutive=0)
    for unusable in (ClassifierSettings(), GoalImageSettings(), HumanLabelSettings()):
        with pytest.raises(ConfigError):
            build_reward_model(unusable)


def test_recorded_rewards_need_no_curator_of_their_own(tmp_path: Path) -> None:
    plain = EveryStep()
    assert rewarded(plain, TaskPredicateSettings()) is plain
    disturbed = rewarded(plain, TaskPredicateSettings(false_positive_rate=0.5))
    assert isinstance(disturbed, RewardedCurator) and disturbed.selective
    add_label(tmp_path / "labels.jsonl", label(True))
    named = build_reward_model(TaskPredicateSettings(false_positive_rate=1.0, labels=str(tmp_path / "labels.jsonl")))
    judged = named.judge(outcomes_of([*episode(3), *episode(3, number=1)]))
    assert [one.success for one in judged] == [False, False, True, True, True, True]


def test_models_are_named_and_versioned(classifier: RewardClassifier) -> None:
    models: list[RewardModel] = [TaskPredicate(), classifier, InjectedErrors(classifier, 0.1, 0.0, 0)]
    assert len({model.version for model in models}) == len({model.name for model in models}) == 3
