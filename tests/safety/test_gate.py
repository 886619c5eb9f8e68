"""Default deny: every rule of the gate refuses by itself, and nothing bad is ever accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from robot_stack.core.messages import Command, Lifecycle, Refusal, Verdict
from robot_stack.core.specs import vector
from robot_stack.safety.gate import CommandGate, GateFacts

ACTION = vector(("dx_m", "dy_m"), lower=(-0.01, -0.02), upper=(0.01, 0.02))
GATE = CommandGate("robot_0", ACTION)
GOOD = GateFacts(now_ns=100, lifecycle=Lifecycle.ACTIVE, lease_session="me", last_seq=4, stopping=False)


def command(session: str = "me", seq: int = 5, deadline_ns: int = 200, action: object = (0.001, 0.0)) -> Command:
    return Command(session=session, seq=seq, deadline_ns=deadline_ns, action=np.asarray(action, dtype=np.float32))


def facts(**changes: object) -> GateFacts:
    values = {name: getattr(GOOD, name) for name in GateFacts.__slots__} | changes
    return GateFacts(**values)  # type: ignore[arg-type]


def test_a_good_command_passes_unchanged() -> None:
    decision = GATE.check(command(), GOOD)
    assert decision.verdict is Verdict.ACCEPTED
    assert decision.action.tobytes() == command().action.tobytes()


@pytest.mark.parametrize(
    ("changed", "sent", "reason"),
    [
        ({"lifecycle": Lifecycle.INACTIVE}, {}, Refusal.NOT_ACTIVE),
        ({"lifecycle": Lifecycle.FAULT}, {}, Refusal.NOT_ACTIVE),
        ({"lease_session": None}, {}, Refusal.NO_LEASE),
        ({"lease_session": "other"}, {}, Refusal.NO_LEASE),
        ({}, {"session": "old"}, Refusal.NO_LEASE),
        ({"stopping": True}, {}, Refusal.STOPPING),
        ({}, {"seq": 4}, Refusal.REPEATED),
        ({}, {"seq": -1}, Refusal.REPEATED),
        ({"now_ns": 201}, {}, Refusal.STALE),
        ({}, {"action": (0.0, 0.0, 0.0)}, Refusal.WRONG_SHAPE),
        ({}, {"action": 0.0}, Refusal.WRONG_SHAPE),
        ({}, {"action": (np.nan, 0.0)}, Refusal.NOT_FINITE),
        ({}, {"action": (0.0, -np.inf)}, Refusal.NOT_FINITE),
        ({}, {"action": (0.031, 0.0)}, Refusal.OUT_OF_BOUNDS),
    ],
)
def test_each_rule_refuses_by_itself(changed: dict[str, object], sent: dict[str, object], reason: Refusal) -> None:
    decision = GATE.check(command(**sent), facts(**changed))  # type: ignore[arg-type]
    assert decision.verdict is Verdict.REFUSED
    assert decision.refusal is reason
    assert decision.message
    assert not decision.action.any()


def test_another_dtype_is_refused() -> None:
    double = Command(session="me", seq=5, deadline_ns=200, action=np.zeros(2))  # type: ignore[arg-type]
    assert GATE.check(double, GOOD).refusal is Refusal.WRONG_SHAPE


def test_slightly_out_of_bounds_is_clipped_and_says_which_axis() -> None:
    decision = GATE.check(command(action=(0.0, -0.025)), GOOD)
    assert decision.verdict is Verdict.CLIPPED
    assert decision.action.tolist() == np.array([0.0, -0.02], dtype=np.float32).tolist()
    assert "dy_m" in decision.message


@settings(max_examples=500, deadline=None)
@given(npst.arrays(np.float32, st.integers(0, 4), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_whatever_is_let_through_is_finite_and_in_bounds(action: np.ndarray) -> None:
    decision = GATE.check(command(action=action), GOOD)
    assert decision.action.shape == (2,)
    assert np.isfinite(decision.action).all()
    assert np.all(decision.action >= ACTION.lower_array()) and np.all(decision.action <= ACTION.upper_array())


def test_bounds_are_inclusive_on_both_sides_and_clipping_is_too() -> None:
    for action in ((0.01, 0.02), (-0.01, -0.02)):
        assert GATE.check(command(action=action), GOOD).verdict is Verdict.ACCEPTED
    up = GATE.check(command(action=(0.012, 0.0)), GOOD)
    assert (up.verdict, up.action.tolist()) == (Verdict.CLIPPED, [np.float32(0.01), 0.0])
    assert up.message == "dx_m = 0.012 is outside [-0.01, 0.01]"
    # the range of dy is 0.04: one range outside is the most that is clipped
    assert GATE.check(command(action=(0.0, 0.0599)), GOOD).verdict is Verdict.CLIPPED
    assert GATE.check(command(action=(0.0, 0.0601)), GOOD).refusal is Refusal.OUT_OF_BOUNDS
    assert GATE.check(command(action=(0.0, -0.0599)), GOOD).verdict is Verdict.CLIPPED
    assert GATE.check(command(action=(0.0, -0.0601)), GOOD).refusal is Refusal.OUT_OF_BOUNDS


def test_exactly_one_range_outside_is_still_clipped() -> None:
    gate = CommandGate("robot_0", vector(("a",), lower=(-1.0,), upper=(1.0,)))
    assert gate.check(command(action=(3.0,)), GOOD).verdict is Verdict.CLIPPED


def test_a_deadline_is_met_at_its_very_moment() -> None:
    assert GATE.check(command(), facts(now_ns=200)).verdict is Verdict.ACCEPTED


def test_refusals_name_what_is_wrong() -> None:
    def message(sent: Command, known: GateFacts = GOOD) -> str:
        decision = GATE.check(sent, known)
        assert decision.action.dtype == np.float32
        return decision.message

    assert message(command(), facts(lease_session=None)) == "the control lease of robot_0 is held by nobody"
    assert message(command(), facts(lease_session="x")) == "the control lease of robot_0 is held by session x"
    assert message(command(), facts(lifecycle=Lifecycle.FAULT)).startswith("robot_0 is fault,")
    assert message(command(), facts(now_ns=1_500_200)) == "command 5 arrived 1.5 ms after its deadline"
    assert message(command(seq=3)) == "command 3 is not newer than 4, already seen"
    assert message(command(action=(np.nan, 0.0))) == "not finite: dx_m"
    assert message(command(action=(0.0,))) == "action is float32[1], robot_0 takes float32[2]"
    assert message(command()) == ""
    assert message(command(action=(0.009, 0.0201))).startswith("dy_m")
    assert message(command(action=(-0.0101, 0.019))).startswith("dx_m")


def test_the_largest_numbers_are_refused_without_a_warning() -> None:
    with np.errstate(all="raise"):
        assert GATE.check(command(action=(3.4e38, -3.4e38)), GOOD).refusal is Refusal.OUT_OF_BOUNDS
