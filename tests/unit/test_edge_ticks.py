"""A robot server's ticks as its client sees them, control periods that catch up, and a person's pieces between them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_stack.edge.ticks import LEAD_S, ControlPacer, ServerTicks

TICK_S = 0.01


def known(answers_s: list[float]) -> ServerTicks:
    ticks = ServerTicks(TICK_S)
    for answer_s in answers_s:
        ticks.answered(answer_s)
    return ticks


def test_while_nothing_is_known_requests_are_sent_at_once() -> None:
    assert ServerTicks(TICK_S).send_at(7.0) == 7.0


@given(st.floats(0.0, 0.0099), st.floats(50.0, 60.0))
def test_a_request_is_sent_shortly_before_an_answer_is_due_and_no_more_than_a_tick_from_now(
    phase_s: float, now_s: float
) -> None:
    ticks = known([40.0 + phase_s])
    sent_s = ticks.send_at(now_s)
    to_answer_s = (40.0 + phase_s - sent_s) % TICK_S
    assert now_s <= sent_s <= now_s + TICK_S
    assert LEAD_S - 0.001 - 1e-6 <= to_answer_s <= LEAD_S + 1e-6
    assert abs(ticks.answer_at(sent_s) - sent_s - LEAD_S) < 1e-9


def test_answers_that_came_behind_something_else_hardly_move_the_grid() -> None:
    rng = np.random.default_rng(0)
    delays_s = np.where(rng.random(300) < 0.3, rng.uniform(0.0, 0.004, 300), 0.0)
    ticks = known([20.0 + TICK_S * number + delay_s for number, delay_s in enumerate(delays_s)])
    assert ticks.send_at(30.0) == pytest.approx(30.0 + TICK_S - LEAD_S, abs=0.0007)


def test_the_grid_follows_a_clock_that_drifts() -> None:
    ticks = known([20.0 + TICK_S * number * (1.0 + 1e-4) for number in range(3000)])
    newest_s = 20.0 + TICK_S * 2999 * (1.0 + 1e-4)
    assert ticks.send_at(newest_s) == pytest.approx(newest_s + TICK_S - LEAD_S, abs=0.0005)


def test_after_an_answer() -> None:
    ticks = known([20.0])
    assert ticks.after_answer(20.0, 0.003) == pytest.approx(20.003)
    assert ticks.after_answer(20.0031, 0.003) == pytest.approx(20.013)


def test_a_period_that_took_a_little_too_long_is_followed_by_a_shorter_one_on_the_grid() -> None:
    pacer = ControlPacer(0.2)
    pacer.wait_or_catch_up(0.0)
    first_due_s = pacer.due_s
    time.sleep(0.25)
    pacer.wait_or_catch_up(0.14)
    assert pacer.due_s == pytest.approx(first_due_s + 0.2) and pacer.overruns == 0 and pacer.ticks == 2
    assert 0.2 < pacer.share < 0.8
    pacer.wait_or_catch_up(0.14)
    assert pacer.share == pytest.approx(1.0, abs=0.3) and pacer.periods_s()[0] >= 0.25


def test_a_period_that_took_far_too_long_is_skipped_and_counted() -> None:
    pacer = ControlPacer(0.05)
    pacer.wait_or_catch_up(0.0)
    time.sleep(0.13)
    pacer.wait_or_catch_up(0.02)
    assert pacer.overruns >= 2
