"""Result records, their files, and the resumable evaluation loop."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from robot_stack.core.errors import ConfigError, CorruptDataError, RobotError, StorageError
from robot_stack.evaluation.results import (
    EpisodeOutcome,
    EvaluationResult,
    EvaluationSubject,
    combined,
    compare,
    load,
    save,
)
from robot_stack.evaluation.rollouts import Progress, evaluate

BASE = EvaluationSubject(policy="base", task="pick", robot="sim_0", weights_version=0, replan_every=8)
RESIDUAL = msgspec.structs.replace(BASE, policy="residual", weights_version=7)


def outcome(seed: int, success: bool = True) -> EpisodeOutcome:
    return EpisodeOutcome(seed=seed, success=success, steps=10 + seed, return_=float(success), duration_s=0.5)


def result(subject: EvaluationSubject, *successes: bool) -> EvaluationResult:
    return EvaluationResult(
        subject=subject, episodes=tuple(outcome(seed, success) for seed, success in enumerate(successes))
    )


class Runner:
    """Succeeds on even seeds; the robot disappears at the seeds of `fails_at`."""

    def __init__(self, *fails_at: int) -> None:
        self.ran: list[int] = []
        self._fails_at = fails_at

    def run(self, seed: int) -> EpisodeOutcome:
        if seed in self._fails_at:
            raise RobotError(f"no robot at seed {seed}")
        self.ran.append(seed)
        return outcome(seed, seed % 2 == 0)


# ---- records and files ------------------------------------------------------------------------------------------


def test_rates_and_means() -> None:
    one = result(BASE, True, False, False, True)
    assert (one.n, one.successes, one.success_rate) == (4, 2, 0.5)
    assert (one.mean_steps, one.mean_return) == (11.5, 0.5)
    assert one.interval().lower < 0.5 < one.interval().upper
    assert EvaluationResult(subject=BASE, episodes=()).success_rate == 0.0


def test_save_and_load_round_trip_and_leave_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "base.json"
    save(result(BASE, True), path)
    save(result(BASE, True, False), path)
    assert load(path) == result(BASE, True, False)
    assert list(path.parent.iterdir()) == [path]


def test_damaged_absent_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    with pytest.raises(StorageError, match=r"base\.json"):
        load(path)
    path.write_bytes(b'{"subject": 3}')
    with pytest.raises(CorruptDataError, match=r"base\.json"):
        load(path)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(result(BASE, True), schema_version=99)))
    with pytest.raises(CorruptDataError, match="99"):
        load(path)


def test_a_result_that_cannot_be_written_leaves_things_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.mkdir()
    with pytest.raises(StorageError, match=r"base\.json"):
        save(result(BASE, True), path)
    assert list(tmp_path.iterdir()) == [path]


def test_combined_joins_seeds_and_refuses_doubles_and_strangers() -> None:
    more = EvaluationResult(subject=BASE, episodes=(outcome(10), outcome(11)))
    assert combined([result(BASE, True, False), more]).n == 4
    with pytest.raises(ConfigError, match="twice"):
        combined([result(BASE, True), result(BASE, False)])
    with pytest.raises(ConfigError, match="cannot be combined"):
        combined([result(BASE, True), result(RESIDUAL, True)])


def test_compare_pairs_by_seed_not_by_order() -> None:
    before, after = result(BASE, True, False, False), result(RESIDUAL, True, True, False)
    turned = EvaluationResult(subject=RESIDUAL, episodes=after.episodes[::-1])
    assert compare(before, turned) == compare(before, after)
    assert (compare(before, after).only_after, compare(before, after).only_before) == (1, 0)
    with pytest.raises(ConfigError, match="1 seeds"):
        compare(before, result(RESIDUAL, True, True))


# ---- evaluation loop --------------------------------------------------------------------------------------------


def test_evaluation_keeps_the_order_of_the_seeds_and_reports_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []
    found = evaluate(Runner(), BASE, [5, 2, 9], progress_path=tmp_path / "p.jsonl", on_progress=seen.append)
    assert [episode.seed for episode in found.episodes] == [5, 2, 9]
    assert [(progress.done, progress.total, progress.successes) for progress in seen] == [
        (1, 3, 0),
        (2, 3, 1),
        (3, 3, 1),
    ]
    assert seen[-1].remaining_s == 0.0
    assert "3/3 episodes, 1 successful" in str(seen[-1])


def test_an_interrupted_evaluation_goes_on_with_the_seeds_that_are_left(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(RobotError):
        evaluate(Runner(3), BASE, range(6), progress_path=path)
    again = Runner()
    seen: list[Progress] = []
    found = evaluate(again, BASE, range(6), progress_path=path, on_progress=seen.append)
    assert again.ran == [3, 4, 5]
    assert seen[0].done == 4
    assert found == evaluate(Runner(0), BASE, range(6), progress_path=path)
    assert [episode.seed for episode in found.episodes] == list(range(6))


def test_a_file_torn_at_any_byte_loses_at_most_the_torn_episode(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    expected = evaluate(Runner(), BASE, range(3), progress_path=whole)
    content = whole.read_bytes()
    for size in range(len(content)):
        path = tmp_path / f"{size}.jsonl"
        path.write_bytes(content[:size])
        runner = Runner()
        assert evaluate(runner, BASE, range(3), progress_path=path).episodes == expected.episodes
        assert len(runner.ran) == 3 - max(0, content[:size].count(b"\n") - 1)
        assert path.read_bytes() == content


def test_damage_in_the_middle_and_another_subject_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    evaluate(Runner(), BASE, range(3), progress_path=path)
    with pytest.raises(ConfigError, match="residual"):
        evaluate(Runner(), RESIDUAL, range(3), progress_path=path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:9] + b"\n" + lines[2])
    with pytest.raises(CorruptDataError, match="damaged"):
        evaluate(Runner(), BASE, range(3), progress_path=path)


def test_every_outcome_is_on_disk_before_the_next_episode(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"

    class Watching(Runner):
        def run(self, seed: int) -> EpisodeOutcome:
            assert len(path.read_bytes().splitlines()) == 1 + len(self.ran)
            return super().run(seed)

    evaluate(Watching(), BASE, range(4), progress_path=path)


def test_seeds_given_twice_and_a_runner_that_runs_another_seed_are_refused(tmp_path: Path) -> None:
    class Stubborn(Runner):
        def run(self, seed: int) -> EpisodeOutcome:
            return outcome(0)

    with pytest.raises(ConfigError, match="twice"):
        evaluate(Runner(), BASE, [1, 1], progress_path=tmp_path / "a")
    with pytest.raises(ConfigError, match="seed 4"):
        evaluate(Stubborn(), BASE, [4], progress_path=tmp_path / "b")
