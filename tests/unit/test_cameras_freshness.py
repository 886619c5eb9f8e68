"""The judge of freshness, on made-up times: number, device clock and host clock all have to advance and agree."""

from __future__ import annotations

import pytest

from robot_stack.edge.freshness import FROZEN_PERIODS, FUTURE_TOLERANCE_S, Freshness, FreshnessJudge, Sample

PERIOD_NS = 33_000_000
MS = 1_000_000
START_NS = 10**12


def judge(max_age_s: float = 0.2) -> FreshnessJudge:
    return FreshnessJudge(1e9 / PERIOD_NS, max_age_s)


def sample(number: int, *, boot: str = "a", device_ns: int | None = None, stamp_ns: int | None = None) -> Sample:
    at_ns = number * PERIOD_NS
    return Sample(
        boot,
        number,
        at_ns + 5 * MS if device_ns is None else device_ns,
        START_NS + at_ns if stamp_ns is None else stamp_ns,
    )


def take(judged: FreshnessJudge, given: Sample, late_ns: int = MS) -> Freshness:
    return judged.take(given, given.stamp_ns + late_ns)


def running(count: int = 60) -> FreshnessJudge:
    """A judge that has seen `count` good pictures, 0 .. count - 1."""
    judged = judge()
    assert [take(judged, sample(number)) for number in range(count)] == [Freshness.FRESH] * count
    return judged


def test_a_steady_camera_is_fresh_and_lost_pictures_do_not_matter() -> None:
    judged = running(60)
    assert take(judged, sample(62)) is Freshness.FRESH
    assert take(judged, sample(100)) is Freshness.FRESH


@pytest.mark.parametrize(
    "again",
    [
        sample(59, stamp_ns=START_NS + 60 * PERIOD_NS),
        sample(59, stamp_ns=START_NS + 60 * PERIOD_NS, device_ns=60 * PERIOD_NS + 5 * MS),
        sample(60, device_ns=59 * PERIOD_NS + 5 * MS),
    ],
    ids=["both", "number", "device time"],
)
def test_a_repeated_number_or_device_time_is_repeated(again: Sample) -> None:
    assert take(running(), again) is Freshness.REPEATED


def test_repeated_pictures_turn_to_frozen_after_three_periods_and_the_next_new_one_is_fresh() -> None:
    judged = running()
    for number in range(60, 60 + FROZEN_PERIODS):
        repeated = sample(59, stamp_ns=START_NS + number * PERIOD_NS)
        assert judged.take(repeated, repeated.stamp_ns) is Freshness.REPEATED
    now_ns = START_NS + (59 + FROZEN_PERIODS) * PERIOD_NS
    assert not judged.frozen(now_ns)
    assert judged.frozen(now_ns + 2)
    assert judged.take(sample(59, stamp_ns=now_ns + 2), now_ns + 2) is Freshness.FROZEN
    assert take(judged, sample(64)) is Freshness.FRESH
    assert not judged.frozen(START_NS + 65 * PERIOD_NS)


@pytest.mark.parametrize(
    "old",
    [
        sample(40, stamp_ns=START_NS + 60 * PERIOD_NS),
        sample(60, device_ns=40 * PERIOD_NS),
        sample(60, stamp_ns=START_NS + 58 * PERIOD_NS),
    ],
    ids=["number", "device time", "stamp"],
)
def test_what_goes_back_within_a_boot_is_not_used(old: Sample) -> None:
    assert take(running(), old) is Freshness.BACKWARDS


def test_two_pictures_that_alternate_never_pass() -> None:
    judged = running()
    verdicts = [
        take(judged, sample(58 + number % 2, stamp_ns=START_NS + number * PERIOD_NS)) for number in range(60, 80)
    ]
    assert not any(verdict.usable for verdict in verdicts)


def test_a_new_boot_may_count_from_zero_and_is_named_once() -> None:
    judged = running()
    for index in range(5):
        new = Sample("b", index, index * PERIOD_NS, START_NS + (70 + index) * PERIOD_NS)
        assert take(judged, new) is (Freshness.RESTARTED if index == 0 else Freshness.FRESH)


def test_an_old_picture_is_stale_at_the_very_limit_and_after_a_restart_too() -> None:
    assert take(judge(0.2), sample(0), late_ns=200 * MS) is Freshness.FRESH
    assert take(judge(0.2), sample(0), late_ns=200 * MS + 1) is Freshness.STALE
    judged = running()
    assert take(judged, Sample("b", 0, 0, START_NS + 61 * PERIOD_NS), late_ns=300 * MS) is Freshness.STALE


def test_pictures_that_are_always_stale_freeze_the_camera() -> None:
    judged = running()
    for number in range(60, 70):
        assert take(judged, sample(number), late_ns=400 * MS) is Freshness.STALE
    assert judged.frozen(START_NS + 70 * PERIOD_NS + 400 * MS)


def test_a_picture_from_a_queue_is_as_old_as_the_device_says() -> None:
    judged = running()
    queued = sample(60, stamp_ns=START_NS + 60 * PERIOD_NS + 150 * MS)
    assert judged.age_ns(queued, queued.stamp_ns + MS) == 151 * MS
    assert judged.take(queued, queued.stamp_ns + 51 * MS) is Freshness.STALE
    assert running().take(queued, queued.stamp_ns + 50 * MS) is Freshness.FRESH


def test_a_stamp_ahead_of_now_is_not_believed() -> None:
    tolerance_ns = round(FUTURE_TOLERANCE_S * 1e9)
    assert take(judge(), sample(0), late_ns=-tolerance_ns) is Freshness.FRESH
    assert take(judge(), sample(0), late_ns=-tolerance_ns - 1) is Freshness.CLOCK


@pytest.mark.parametrize(("speed", "fine"), [(0.79, False), (0.81, True), (1.0, True), (1.19, True), (1.21, False)])
def test_a_device_clock_that_drifts_by_a_fifth_over_a_second_is_flagged(speed: float, fine: bool) -> None:
    judged = judge(max_age_s=10.0)
    verdicts = []
    for number in range(90):
        at_ns = number * PERIOD_NS
        verdicts.append(take(judged, sample(number, device_ns=round(at_ns * speed))))
    assert all(verdict is Freshness.FRESH for verdict in verdicts[:30]), "there was no second yet to judge by"
    assert all((verdict is Freshness.FRESH) == fine for verdict in verdicts[35:])
    assert fine or verdicts[-1] is Freshness.CLOCK


def test_one_late_picture_does_not_spoil_the_next_ones() -> None:
    judged = running()
    stalled = sample(60, stamp_ns=START_NS + 130 * PERIOD_NS)
    assert take(judged, stalled) is Freshness.CLOCK
    verdicts = [take(judged, sample(number)) for number in range(131, 240)]
    assert verdicts == [Freshness.FRESH] * len(verdicts)


def test_silence_counts_from_the_first_question_and_then_from_the_last_fresh_picture() -> None:
    judged = judge()
    assert judged.silent_ns(START_NS) == 0
    assert not judged.frozen(START_NS + 90 * MS)
    assert judged.frozen(START_NS + 100 * MS)
    assert take(judged, sample(3, stamp_ns=START_NS + 110 * MS)) is Freshness.FRESH
    assert judged.silent_ns(START_NS + 120 * MS) == 10 * MS
