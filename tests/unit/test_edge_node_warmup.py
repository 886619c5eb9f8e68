"""The last checks before a policy, or new weights, act: warm-up and canary."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, Array, FloatArray, Observation
from robot_stack.core.specs import IMAGES, STATE, Feature, PolicySpec, vector
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.canary import KEPT_OBSERVATIONS, Canary
from robot_stack.edge.control_loop import NoCorrection
from robot_stack.edge.warmup import MAX_CALLS, MIN_CALLS, SETTLED_CALLS, example_observation, warm_up
from robot_stack.edge.weights import LiveResidual, WeightInbox

ACTION = vector(("a_m", "b_m"), lower=(-1.0, 0.0), upper=(1.0, 4.0))
STATE_FEATURE = Feature(dtype="float32", shape=(2,), names=("x_m", "y_m"), lower=(0.0, -1.0), upper=(4.0, 1.0))
PICTURE = IMAGES + "front"
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=3,
    action=ACTION,
    observation={STATE: STATE_FEATURE, PICTURE: Feature(dtype="uint8", shape=(2, 3, 3))},
    history=2,
)


class Slowly:
    """Takes the given times on a clock of its own, the last one again and again."""

    spec = SPEC

    def __init__(self, *took_s: float) -> None:
        self._took_s = list(took_s)
        self.clock_s = 0.0
        self.asked: list[Observation] = []
        self.planned: list[FloatArray] = []
        self.actions: Array = np.full((3, 2), 0.5, np.float32)

    def now_s(self) -> float:
        return self.clock_s

    def predict(self, observation: Observation) -> ActionChunk:
        self.asked.append(observation)
        self.clock_s += self._took_s[min(len(self.asked), len(self._took_s)) - 1]
        return ActionChunk(
            observation_id=observation.id, index=observation.index, weights_version=0, actions=self.actions
        )

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        self.planned.append(previous)
        return self.predict(observation)


def test_warm_up_goes_on_until_the_timing_settles_and_tells_what_it_was() -> None:
    policy = Slowly(9.0, 3.0, 0.4, 0.31, 0.3, 0.32, 0.31)
    warm = warm_up(policy, now_s=policy.now_s)
    assert (warm.first_s, warm.calls, warm.settled) == (9.0, 6, True)
    assert warm.median_s == pytest.approx(0.31) and warm.slowest_s == pytest.approx(0.32)
    assert len({(one.episode_seed, one.index) for one in policy.asked}) == 6, "the same observation again and again"


def test_warm_up_ends_when_patience_does_and_says_that_nothing_settled() -> None:
    policy = Slowly(*([1.0, 2.0] * 50))
    warm = warm_up(policy, patience_s=20.0, now_s=policy.now_s)
    assert not warm.settled and SETTLED_CALLS <= warm.calls <= 20
    assert warm_up(Slowly(100.0), patience_s=1.0, now_s=Slowly().now_s).calls >= MIN_CALLS
    impatient = Slowly(100.0)
    assert warm_up(impatient, patience_s=1.0, now_s=impatient.now_s).calls == SETTLED_CALLS
    frozen = Slowly(0.0, 1.0, 0.0)
    alternating = Slowly(*([0.1, 0.2] * 1000))
    assert warm_up(frozen, now_s=frozen.now_s).settled
    assert warm_up(alternating, patience_s=1e9, now_s=alternating.now_s).calls == MAX_CALLS


def test_the_way_that_chunks_go_on_is_warmed_up_too() -> None:
    policy = Slowly(0.1)
    warm_up(policy, now_s=policy.now_s, guided=policy)
    assert len(policy.asked) == MIN_CALLS and len(policy.planned) == MIN_CALLS - 1
    assert all(previous.shape == (3, 2) for previous in policy.planned)


def test_the_example_is_what_the_policy_reads() -> None:
    example = example_observation(SPEC, "lift the cube")
    assert example.features[STATE].tolist() == [2.0, 0.0] and example.features[STATE].dtype == np.float32
    assert example.features[PICTURE].shape == (2, 3, 3) and example.features[PICTURE].dtype == np.uint8
    assert len(example.past) == 1 and example.instruction == "lift the cube"


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.full((3, 2), np.nan, np.float32), "not finite"),
        (np.full((3, 2), np.inf, np.float32), "not finite"),
        (np.full((2, 2), 0.5, np.float32), r"float32\[3, 2\]"),
        (np.full((3, 3), 0.5, np.float32), r"float32\[3, 2\]"),
        (np.full((3, 2), 0.5), "float64"),
        (np.full((3, 2), 1.5, np.float32), r"a_m from 1.5 to 1.5; allowed: -1 to 1"),
        (np.full((3, 2), -0.5, np.float32), "b_m from -0.5"),
    ],
)
def test_a_policy_whose_chunks_must_not_be_sent_is_refused(actions: Array, words: str) -> None:
    policy = Slowly(0.1)
    policy.actions = actions
    with pytest.raises(PolicyError, match=f"'p' .*{words}"):
        warm_up(policy)


def test_rounding_at_the_bound_is_no_reason_to_refuse() -> None:
    policy = Slowly(0.1)
    policy.actions = np.tile(np.array([1.0 + 1e-6, -1e-6], np.float32), (3, 1))
    assert warm_up(policy, now_s=policy.now_s).settled


class Adds:
    """A residual that adds what its weights say; where the state's first element is above 0.5, `far` instead."""

    def __init__(self, version: int, tensors: Mapping[str, Array]) -> None:
        self.version, self._tensors = version, tensors

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        far = "far" in self._tensors and observation.features[STATE][0] > 0.5
        return (action_base + self._tensors["far" if far else "add"]).astype(np.float32)


BASE = np.array([0.0, 2.0], np.float32)


def observation(index: int, x_m: float = 0.0) -> Observation:
    features = {STATE: np.array([x_m, 0.0], np.float32), PICTURE: np.zeros((2, 3, 3), np.uint8)}
    return Observation(id=index, stamp_ns=0, features=features, age_ns={}, index=index, past=(features,))


class Live:
    """A live residual with a canary, and the loop around it."""

    def __init__(self, max_change: float = 0.25) -> None:
        self.inbox, self.board = WeightInbox(), AlarmBoard()
        self.canary = Canary(ACTION, max_change, [STATE])
        self.residual = LiveResidual(NoCorrection(), self.inbox, Adds, self.canary, self.board)
        self._index = 0

    def steps(self, count: int, x_m: float = 0.0) -> FloatArray:
        action = BASE
        for _ in range(count):
            action = self.residual.correct(observation(self._index, x_m), BASE)
            self._index += 1
        return action

    def publish(self, version: int, **tensors: list[float]) -> None:
        self.inbox.put(version, {name: np.array(value, np.float32) for name, value in tensors.items()})
        self.residual.refresh()

    @property
    def alarms(self) -> list[str]:
        return [alarm.message for alarm in self.board.active() if alarm.kind is AlarmKind.WEIGHTS_REFUSED]


def test_weights_that_change_little_act_at_the_next_step() -> None:
    live = Live()
    live.steps(40)
    live.publish(1, add=[0.4, 0.0])
    assert live.steps(1).tolist() == pytest.approx([0.4, 2.0])
    assert live.residual.version == 1 and live.residual.refused == 0 and not live.alarms


def test_weights_that_change_too_much_are_refused_counted_and_shown_until_better_ones_come() -> None:
    live = Live()
    live.steps(40)
    live.publish(1, add=[0.4, 0.0])
    live.steps(40)
    live.publish(2, add=[-0.4, 0.0])
    assert live.steps(1).tolist() == pytest.approx([0.4, 2.0]), "the refused weights acted"
    assert live.residual.version == 1 and live.residual.refused == 1
    assert "version 2 refused" in live.alarms[0] and "40 % of their range" in live.alarms[0]
    live.publish(3, add=[0.1, 0.0])
    assert live.steps(1).tolist() == pytest.approx([0.1, 2.0])
    assert live.residual.version == 3 and not live.alarms


def test_the_change_is_against_the_weights_that_act_now_not_those_of_the_past() -> None:
    live = Live()
    live.steps(40)
    for version, add in enumerate((0.4, 0.8, 0.4, 0.0), start=1):
        live.publish(version, add=[add, 0.0])
        live.steps(1)
        assert live.residual.version == version, f"{add} was compared with something older"
    live.publish(5, add=[0.8, 0.0])
    live.steps(1)
    assert live.residual.version == 4


def test_one_odd_observation_of_many_does_not_refuse_weights_but_one_in_ten_does() -> None:
    for odd, version in ((1, 1), (4, 0)):
        live = Live()
        live.steps(KEPT_OBSERVATIONS - odd)
        live.steps(odd, x_m=1.0)
        live.publish(1, add=[0.1, 0.0], far=[0.9, 0.0])
        live.steps(1)
        assert live.residual.version == version


@pytest.mark.parametrize(
    ("add", "words"),
    [([np.nan, 0.0], "not finite"), ([0.0, 2.5], "b_m from 4.5"), ([0.0], ""), ([1.0, 0.0, 0.0], "not be broadcast")],
)
def test_weights_whose_actions_must_not_be_sent_are_refused(add: list[float], words: str) -> None:
    live = Live(max_change=10.0)
    live.steps(3)
    live.publish(1, add=add)
    live.steps(1)
    if words:
        assert live.residual.version == 0 and live.residual.refused == 1 and words in live.alarms[0]
    else:
        assert live.residual.version == 1, "one number for all axes is an action of the right shape"


def test_weights_that_are_wrong_only_where_the_robot_is_now_are_refused_in_the_same_step() -> None:
    live = Live()
    live.steps(40)
    live.publish(1, add=[0.1, 0.0], far=[np.inf, 0.0])
    assert live.steps(1, x_m=1.0).tolist() == BASE.tolist()
    assert live.residual.version == 0 and live.residual.refused == 1 and live.alarms


def test_before_anything_was_seen_only_the_first_step_tries_them() -> None:
    live = Live()
    live.publish(1, add=[0.9, 0.0])
    assert live.residual.version == 1 and live.steps(1).tolist() == pytest.approx([0.9, 2.0])


def test_memory_is_bounded_and_pictures_are_not_kept() -> None:
    live = Live()
    live.steps(10 * KEPT_OBSERVATIONS)
    seen = list(live.canary._seen)
    assert len(seen) == KEPT_OBSERVATIONS
    assert all(set(one.observation.features) == {STATE} and not one.observation.past for one in seen)


def test_a_canary_without_bounds_or_with_nothing_allowed_is_refused() -> None:
    for action, change in ((vector(("a",)), 0.5), (ACTION, 0.0), (ACTION, float("nan"))):
        with pytest.raises(PolicyError, match="canary"):
            Canary(action, change)
