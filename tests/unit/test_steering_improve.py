"""Ascent of a value inside the bounds, and choices among candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policies.common.ensemble_mlp import EnsembleMlp
from policies.steering.improve import FirstActions, ImprovedPolicy, ascend, choose_rows, keep_top, take
from robot_stack.core.specs import vector
from tests.bandit_kit import base_policy, seen


def test_a_linear_value_moves_actions_by_exactly_steps_times_step_size_times_its_slope() -> None:
    slope = torch.tensor([0.5, -2.0])
    start = torch.tensor([[[0.25, -0.25], [0.0, 0.5]]])
    found, values = ascend(lambda actions: actions @ slope, start, steps=8, step_size=1 / 64)
    assert torch.equal(found, start + 8 / 64 * slope)
    assert torch.equal(values, found @ slope)


def test_ascent_stays_inside_the_bounds() -> None:
    found, _ = ascend(lambda actions: actions.sum(dim=-1) * 100.0, torch.zeros(1, 1, 3), steps=5, step_size=1.0)
    assert torch.equal(found, torch.ones(1, 1, 3))


def test_the_best_point_of_the_way_is_kept_where_steps_are_too_long() -> None:
    """The value -a^2 with a step of 1 from 0.3 goes to -0.3, then 0.3, ...; with 1.5 it moves ever further away."""
    start = torch.full((1, 1, 1), 0.3)
    found, values = ascend(lambda actions: -actions.square().sum(dim=-1), start, steps=7, step_size=1.5)
    assert torch.equal(found, start) and values.item() == pytest.approx(-0.09)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6), st.sampled_from([1e-3, 0.1, 3.0]))
def test_values_never_decrease_whatever_the_critic(seed: int, steps: int, step_size: float) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    critic = EnsembleMlp(2, 3, (8,), 1, last_scale=3.0, generator=generator)

    def value(actions: Tensor) -> Tensor:
        said: Tensor = critic(actions.flatten(0, 1))
        return said[..., 0].mean(dim=0).view(actions.shape[:2])

    start = torch.rand((4, 5, 3), generator=generator) * 2.0 - 1.0
    found, values = ascend(value, start, steps, step_size)
    assert (values >= value(start)).all() and (found.abs() <= 1.0).all()
    assert torch.allclose(values, value(found), atol=1e-6) and not values.requires_grad


def test_the_top_are_taken_in_order() -> None:
    values = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]])
    top = keep_top(values, 2)
    assert top.tolist() == [[1, 2], [2, 0]]
    assert take(values[..., None], top)[..., 0].tolist() == [[3.0, 2.0], [5.0, 0.0]]
    assert keep_top(values, 9).shape == (2, 3)


def test_rows_are_chosen_by_their_softmax() -> None:
    values, generator = torch.tensor([[0.0, math.log(3.0)]]).expand(4000, 2), torch.Generator().manual_seed(0)
    assert choose_rows(values, 0.0, generator).tolist() == [1] * 4000
    assert choose_rows(values, 1.0, generator).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert choose_rows(values, math.inf, generator).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_first_actions_go_to_normalised_units_and_back() -> None:
    first = FirstActions(vector(("a", "b"), (-0.1, -2.0), (0.1, 4.0)), 2)
    chunks = np.array([[[0.05, 1.0], [-0.1, 4.0], [0.0, 0.0]]], np.float32)
    decision = first.of(chunks)
    assert torch.allclose(decision, torch.tensor([[[0.5, 0.0, -1.0, 1.0]]]))
    changed = first.put(chunks[0], torch.tensor([2.0, 0.0, 0.0, 0.5]))
    assert np.allclose(changed, [[0.1, 1.0], [0.0, 2.5], [0.0, 0.0]]) and chunks[0, 0, 0] == np.float32(0.05)


def test_one_candidate_that_nothing_changes_is_the_policy_bit_for_bit() -> None:
    base = base_policy()
    policy = ImprovedPolicy(base, 1, lambda _, chunks: chunks[0])
    for one in seen(5):
        assert policy.predict(one).actions.tobytes() == base.predict(one).actions.tobytes()
    assert policy.predict_batch(seen(3)).shape == (3, 3, 2) and policy.spec == base.spec
