"""Updates owed for steps collected."""

from __future__ import annotations

import pytest

from robot_stack.buffer.limiter import UpdateBudget
from robot_stack.core.errors import ConfigError


def test_the_first_steps_earn_nothing_and_are_not_made_up_for() -> None:
    budget = UpdateBudget(updates_per_step=4.0, start_after_steps=100)
    assert [budget.owed(steps, 0) for steps in (0, 100, 101, 150)] == [0, 0, 4, 200]


def test_what_was_done_is_taken_off_and_never_goes_below_zero() -> None:
    budget = UpdateBudget(updates_per_step=0.5, start_after_steps=0)
    assert [budget.owed(10, done) for done in (0, 3, 5, 9)] == [5, 2, 0, 0]


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.7, 1.0, 3.3])
def test_paying_after_every_step_gives_the_ratio_exactly(ratio: float) -> None:
    budget, done = UpdateBudget(updates_per_step=ratio, start_after_steps=7), 0
    for steps in range(1008):
        done += budget.owed(steps, done)
    assert done == round(1000 * ratio)


def test_a_ratio_without_an_exact_binary_form_is_not_a_step_late() -> None:
    assert UpdateBudget(updates_per_step=0.29, start_after_steps=0).owed(100, 0) == 29


@pytest.mark.parametrize("values", [(0.0, 0), (-1.0, 0), (float("nan"), 0), (float("inf"), 0), (1.0, -1)])
def test_a_budget_without_meaning_is_refused(values: tuple[float, int]) -> None:
    with pytest.raises(ConfigError):
        UpdateBudget(*values)
