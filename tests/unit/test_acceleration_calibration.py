"""From a policy to a schedule, and a policy under a schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from torch import nn

from policies.acceleration.calibration import Method, make_schedule
from policies.acceleration.recording import Recording, cosine, record, relative_changes
from policies.acceleration.saved import load_accelerated, save_acceleration
from policies.acceleration.schedule import CacheSchedule
from policies.diffusion.unet import DiffusionUNet
from policies.generative.config import NetConfig, Process, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.core.errors import PolicyError
from tests.generative_kit import (
    CHAIN,
    DDIM,
    DDPM,
    EULER,
    EXPERT,
    FLOW,
    TRANSFORMER,
    UNET,
    make_policy,
    observations,
)

NETS: list[tuple[NetConfig, Process, SolverConfig]] = [
    (TRANSFORMER, CHAIN, DDPM),
    (UNET, CHAIN, DDIM),
    (EXPERT, FLOW, EULER),
]


def under(policy: GenerativePolicy, schedule: CacheSchedule) -> GenerativePolicy:
    return policy.with_solver(policy.config.solver, schedule)


@pytest.mark.parametrize(("net", "process", "solver"), NETS)
@pytest.mark.parametrize("method", ["adaptive", "uniform", "teacache"])
def test_a_budget_of_every_call_changes_nothing(
    net: NetConfig, process: Process, solver: SolverConfig, method: Method
) -> None:
    policy = make_policy(net, process, solver)
    seen = observations(2)
    schedule = make_schedule(policy, seen, method, budget=solver.steps)
    assert schedule.block_calls == solver.steps * len(schedule.blocks)
    np.testing.assert_array_equal(under(policy, schedule).predict_batch(seen), policy.predict_batch(seen))


@pytest.mark.parametrize(("net", "process", "solver"), NETS)
def test_fewer_updates_change_the_chunk_and_more_of_them_less(
    net: NetConfig, process: Process, solver: SolverConfig
) -> None:
    policy, seen = make_policy(net, process, solver), observations(6)
    exact = policy.to_samples(policy.predict_batch(seen))

    def error(budget: int) -> float:
        schedule = make_schedule(policy, seen, "adaptive", budget)
        return float(np.abs(under(policy, schedule).predict_batch(seen) - exact).mean())

    assert error(1) > error(solver.steps - 1) > 0.0


def modules_of(policy: GenerativePolicy) -> dict[str, nn.Module]:
    """For every block a submodule that runs once whenever the block is computed, and at no other time."""
    net = policy.sampler.denoiser
    if isinstance(net, DiffusionUNet):
        return dict(zip(net.block_names, net.residuals, strict=True))
    last = {"self": "self_out", "cross": "cross_out", "feed": "feed_out"}
    return {name: net.get_submodule(f"layers.{name[0]}.{last[name[2:]]}") for name in net.block_names}


def counting(counts: Counter[str], name: str) -> Callable[..., None]:
    def count(*_: object) -> None:
        counts[name] += 1

    return count


@pytest.mark.parametrize(("net", "process", "solver"), NETS)
def test_every_block_is_computed_as_often_as_the_schedule_says(
    net: NetConfig, process: Process, solver: SolverConfig
) -> None:
    policy, seen = make_policy(net, process, solver), observations(1)
    schedule = make_schedule(policy, seen, "adaptive", budget=3, union=2)
    fast = under(policy, schedule)
    counts: Counter[str] = Counter()
    for name, module in modules_of(fast).items():
        module.register_forward_hook(counting(counts, name))
    for chunks in (1, 2):  # nothing is kept from one chunk to the next
        fast.predict(seen[0])
        expected = {name: chunks * len(row) for name, row in zip(schedule.blocks, schedule.updates, strict=True)}
        assert counts == expected
    assert max(map(len, schedule.updates)) > 3  # the union added something


def test_methods_give_what_they_say() -> None:
    policy, seen = make_policy(solver=DDPM), observations(2)
    recording = record(policy, seen)

    def lengths(method: Method, union: int = 2) -> list[int]:
        schedule = make_schedule(policy, (), method, 4, union, recording)
        assert (schedule.method, schedule.belongs_to, schedule.calls) == (method, policy.fingerprint, 20)
        return [len(row) for row in schedule.updates]

    assert lengths("uniform") == lengths("teacache") == lengths("adaptive_no_union") == [4] * 6
    assert lengths("adaptive", union=0) == [4] * 6
    widened = [length for length in lengths("adaptive") if length > 4]
    assert 1 <= len(widened) <= 2
    teacache = make_schedule(policy, (), "teacache", 4, recording=recording)
    assert len(set(teacache.updates)) == 1


def test_deepcache_keeps_the_inner_levels_of_a_unet_only() -> None:
    policy, seen = make_policy(UNET), observations(1)
    schedule = make_schedule(policy, (), "deepcache", 2)
    rows = dict(zip(schedule.blocks, schedule.updates, strict=True))
    assert rows["down0.0"] == rows["up0.1"] == tuple(range(6))
    assert rows["down1.0"] == rows["mid.1"] == (0, 3)
    assert np.isfinite(under(policy, schedule).predict(seen[0]).actions).all()
    with pytest.raises(PolicyError, match="U-Nets"):
        make_schedule(make_policy(TRANSFORMER), (), "deepcache", 2)


def test_the_recording_is_what_the_blocks_put_out() -> None:
    policy, seen = make_policy(solver=DDIM), observations(2)
    recording = record(policy, seen)
    outputs: list[np.ndarray] = []
    layer = policy.sampler.denoiser.get_submodule("layers.1.feed_out")
    layer.register_forward_hook(lambda *arguments: outputs.append(arguments[2].numpy().copy()))
    similarity, errors = np.zeros((6, 6)), 0.0
    for one in seen:
        outputs.clear()
        policy.predict(one)
        rows = [output.ravel().astype(np.float64) for output in outputs]
        for first in range(6):
            for second in range(6):
                lengths = np.linalg.norm(rows[first]) * np.linalg.norm(rows[second])
                similarity[first, second] += rows[first] @ rows[second] / lengths / 2
                errors += float(np.abs(rows[first] - rows[second]).mean()) / 30 / 2
    np.testing.assert_allclose(recording.similarity[5], similarity, atol=1e-9)
    np.testing.assert_allclose(recording.errors[5], errors, rtol=1e-9)
    assert recording.changes.shape == (6,) and recording.changes[0] == 0.0 and (recording.changes[1:] > 0.0).all()


def test_rows_of_zeros_are_alike() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(cosine(rows), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(relative_changes(rows), [0.0, 0.0, 1.0])


def test_calibration_needs_observations_and_a_budget_in_range() -> None:
    policy = make_policy()
    with pytest.raises(PolicyError, match="at least one observation"):
        make_schedule(policy, (), "adaptive", 3)
    for budget in (0, 7):
        with pytest.raises(PolicyError, match="allowed: 1 to 6"):
            make_schedule(policy, observations(1), "adaptive", budget)


def test_a_schedule_of_something_else_is_refused() -> None:
    policy = make_policy()
    schedule = make_schedule(policy, observations(1), "uniform", 3)
    with pytest.raises(PolicyError, match="another network or solver"):
        policy.with_solver(SolverConfig(kind="ddim", steps=7), schedule)
    with pytest.raises(PolicyError, match="another network or solver"):
        policy.with_solver(SolverConfig(kind="dpmpp", steps=6), schedule)
    wider = make_policy(msgspec.structs.replace(TRANSFORMER, embed_dim=32))
    with pytest.raises(PolicyError, match="another network or solver"):
        under(wider, schedule)


def test_an_acceleration_is_saved_and_loaded(tmp_path: Path) -> None:
    policy, path = make_policy(), tmp_path / "acceleration.json"
    schedule = make_schedule(policy, observations(2), "adaptive", 3, union=1)
    fast = under(policy, schedule)
    save_acceleration(fast, path)
    loaded = load_accelerated(make_policy(solver=DDPM), path)
    assert (loaded.config.solver, loaded.config.schedule) == (DDIM, schedule)
    seen = observations(1)[0]
    np.testing.assert_array_equal(loaded.predict(seen).actions, fast.predict(seen).actions)
    assert [entry.name for entry in tmp_path.iterdir()] == ["acceleration.json"]


def test_an_acceleration_of_another_policy_is_refused(tmp_path: Path) -> None:
    policy, path = make_policy(), tmp_path / "acceleration.json"
    with pytest.raises(PolicyError, match="robot-stack accelerate"):
        load_accelerated(policy, path)
    save_acceleration(under(policy, make_schedule(policy, (), "uniform", 3)), path)
    with pytest.raises(PolicyError, match="other weights"):
        load_accelerated(make_policy(seed=1), path)
    written = path.read_bytes()
    path.write_bytes(written[:-20])
    with pytest.raises(PolicyError, match="malformed"):
        load_accelerated(policy, path)
    path.write_bytes(written.replace(b'"schema_version": 1', b'"schema_version": 9'))
    with pytest.raises(PolicyError, match="schema 9"):
        load_accelerated(policy, path)
    path.write_bytes(written.replace(b'"steps": 6', b'"steps": 5'))
    with pytest.raises(PolicyError, match="another network or solver"):
        load_accelerated(policy, path)


def test_recording_of_another_network_cannot_be_mixed_up() -> None:
    policy = make_policy()
    small = record(policy, observations(1))
    short = Recording(small.blocks[:3], small.similarity[:3], small.errors[:3], small.changes)
    with pytest.raises(PolicyError, match="3 rows for 6 blocks"):
        make_schedule(policy, (), "adaptive_no_union", 3, recording=short)
