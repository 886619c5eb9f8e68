"""What a policy that looks back is given, and which sample of each device an observation is made of."""

from __future__ import annotations

import time

import numpy as np
import pytest

from robot_stack.core.errors import PolicyError, RobotError
from robot_stack.core.messages import CameraFrame, Observation
from robot_stack.core.specs import IMAGES, STATE, Feature, PolicySpec, vector
from robot_stack.edge.alignment import Aligner, spec_with_cameras
from robot_stack.edge.camera_feed import KEPT_PICTURES, CameraFeed
from robot_stack.edge.freshness import FreshnessJudge
from robot_stack.edge.history import History
from tests.unit.test_cameras_feed import CAMERA, KEY, MS, frame
from tests.unit.test_edge_parts import ACTION, SPEC, state

READS = PolicySpec(name="p", task="ramp", horizon=8, action=ACTION, observation={STATE: vector(("x_m",))}, history=3)


def positions(observation: Observation) -> list[float]:
    """What a policy with this history sees, oldest first."""
    return [float(frame[STATE][0]) for frame in (*observation.past, observation.features)]


def test_the_window_is_the_last_steps_of_this_episode_and_of_no_other() -> None:
    aligner = Aligner(SPEC, 1.0, reads=READS)
    seen = [positions(aligner.observe(state(float(index)), 0, 7, index)) for index in range(5)]
    assert seen == [[0.0], [0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]
    assert positions(aligner.observe(state(90.0), 0, 8, 0)) == [90.0]
    assert positions(aligner.observe(state(91.0), 0, 8, 1)) == [90.0, 91.0]


def test_a_gap_in_the_steps_empties_the_window() -> None:
    aligner = Aligner(SPEC, 1.0, reads=READS)
    for index in (0, 1):
        aligner.observe(state(float(index)), 0, 7, index)
    assert positions(aligner.observe(state(5.0), 0, 7, 5)) == [5.0]


def test_without_a_history_nothing_is_kept() -> None:
    for reads in (None, PolicySpec(name="p", task="ramp", horizon=8, action=ACTION, observation=READS.observation)):
        aligner = Aligner(SPEC, 1.0, reads=reads)
        assert [aligner.observe(state(), 0, 7, index).past for index in range(4)] == [()] * 4


def test_images_are_kept_where_the_policy_reads_them_as_they_are_and_only_then() -> None:
    image = Feature(dtype="uint8", shape=(3, 4, 3))
    features = {STATE: np.zeros(1, np.float32), KEY: np.zeros((3, 4, 3), np.uint8)}
    blind, seeing = History((STATE,), 2), History((STATE, KEY), 2)
    for index in range(6):
        blind.add(index, features)
        seeing.add(index, features)
    assert [set(one) for one in blind.add(6, features)] == [{STATE}, {STATE}]
    past = seeing.add(6, features)
    assert len(past) == 2 and all(one[KEY] is features[KEY] for one in past), "copied, or not kept"
    assert (
        History.of(PolicySpec(name="p", task="t", horizon=1, action=ACTION, observation={KEY: image})).add(0, {}) == ()
    )


def test_a_negative_history_is_refused() -> None:
    with pytest.raises(PolicyError, match="-1"):
        History((STATE,), -1)


def test_the_robots_latency_counts_into_its_age_and_can_make_it_stale() -> None:
    aligner = Aligner(SPEC, 0.2, state_latency_s=0.05)
    seen = aligner.observe(state(stamp_ns=1000 * MS), 100 * MS, 0, 0)
    assert seen.age_ns == {STATE: 150 * MS}
    assert seen.stamp_ns == 950 * MS
    with pytest.raises(RobotError, match="210 ms old"):
        aligner.observe(state(stamp_ns=0), 160 * MS, 0, 1)


class Pictures:
    """A camera's stream whose pictures are put in by hand."""

    def __init__(self) -> None:
        self.next: CameraFrame | None = None

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def newest(self, timeout_s: float) -> CameraFrame | None:
        taken, self.next = self.next, None
        return taken


def feed_with(*ages_ms: int, now_ns: int, rate_hz: float = 5.0, max_age_s: float = 0.2) -> CameraFeed:
    """A feed that has seen pictures 0, 1, ... of these ages at `now_ns`."""
    pictures = Pictures()
    feed = CameraFeed("front", pictures, FreshnessJudge(rate_hz, max_age_s))
    for number, age_ms in enumerate(ages_ms):
        pictures.next = frame(number, now_ns - age_ms * MS)
        feed.newest(now_ns - age_ms * MS + MS)
    return feed


def shown(image: np.ndarray) -> int:
    return int(image[0, 0, 0])


@pytest.mark.parametrize(("reference_ms", "number"), [(0, 3), (20, 3), (45, 2), (70, 2), (90, 1), (160, 0)])
def test_of_each_camera_the_picture_nearest_to_the_reference_is_taken(reference_ms: int, number: int) -> None:
    now_ns = time.monotonic_ns()
    ages_ms = (150, 100, 60, 10)
    feed = feed_with(*ages_ms, now_ns=now_ns)
    image, age_ns = feed.nearest(now_ns - reference_ms * MS, now_ns)
    assert shown(image) == number and age_ns == ages_ms[number] * MS
    assert shown(feed.newest(now_ns)[0]) == 3


def test_the_observation_takes_the_picture_that_belongs_to_the_robots_state() -> None:
    now_ns = time.monotonic_ns()
    aligner = Aligner(
        spec_with_cameras(SPEC, [CAMERA]),
        0.5,
        {"front": feed_with(100, 60, 10, now_ns=now_ns)},
        now_ns=lambda: now_ns,
        state_latency_s=0.03,
    )
    seen = aligner.observe(state(), 35 * MS, 0, 0)
    assert seen.age_ns == {STATE: 65 * MS, IMAGES + "front": 60 * MS}
    assert shown(seen.features[KEY]) == 1


def test_a_picture_that_is_too_old_is_never_taken_however_near_it_is() -> None:
    now_ns = time.monotonic_ns()
    feed = feed_with(190, 120, 10, now_ns=now_ns, max_age_s=0.1)
    image, age_ns = feed.nearest(now_ns - 185 * MS, now_ns)
    assert (shown(image), age_ns) == (2, 10 * MS)


def test_a_camera_that_stopped_is_refused_even_where_an_old_picture_would_be_nearest() -> None:
    now_ns = time.monotonic_ns()
    feed = feed_with(190, 120, now_ns=now_ns, rate_hz=30.0)
    with pytest.raises(RobotError, match="no fresh picture"):
        feed.nearest(now_ns - 120 * MS, now_ns)


def test_pictures_of_an_earlier_process_are_forgotten_and_their_number_is_bounded() -> None:
    now_ns = time.monotonic_ns()
    feed = feed_with(*range(100, 0, -10), now_ns=now_ns)
    assert len(feed._held) == KEPT_PICTURES
    pictures = feed._subscriber
    assert isinstance(pictures, Pictures)
    pictures.next = frame(77, now_ns, boot="b")
    assert shown(feed.nearest(now_ns - 40 * MS, now_ns)[0]) == 77
