"""The benchmark of inference: rollouts that can be repeated and are guarded, its baseline, its statistics and front."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.inference.configurations import (
    FAMILIES,
    QUICK_FAMILIES,
    SHIPPED,
    TRAININGS,
    Cache,
    Configuration,
    Family,
    family_on,
)
from benchmarks.inference.demonstrations import collect, load, save
from benchmarks.inference.figures import Row, Success, front, rivals_of, shipped
from benchmarks.inference.lane import Lane
from benchmarks.inference.outcomes import OutcomeFile, Portion, portions
from benchmarks.inference.reference import DiffusersBackend
from benchmarks.inference.rollouts import Simulation
from benchmarks.inference.schedules import action_rmse, block_calls, observations_of, schedules_of
from benchmarks.inference.tasks import QUICK_TASK, TASKS
from benchmarks.inference.timing import interleaved_medians
from benchmarks.inference.training import training_of
from policies.common.normalization import min_max_of_bounds
from policies.common.sizes import Sizes
from policies.diffusion.config import TransformerConfig
from policies.generative.build import build_net
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.solver import solver_calls
from robot_stack.core.errors import CorruptDataError, PolicyError
from robot_stack.core.messages import FloatArray, Observation, Refusal, Verdict
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, PolicySpec

EXECUTE = 8


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    with Simulation(QUICK_TASK.make_robot) as opened:
        yield opened


@pytest.fixture(scope="module")
def spec(simulation: Simulation) -> PolicySpec:
    return QUICK_TASK.policy_spec(simulation.lanes(1, 1)[0].guard.spec, "test")


def tiny_policy(spec: PolicySpec, solver: SolverConfig) -> GenerativePolicy:
    chain = DiffusionChain(train_steps=8)
    width = sum(feature.shape[0] for feature in spec.observation.values())
    observation = min_max_of_bounds(np.full(width, -1.0), np.ones(width))
    action = min_max_of_bounds(spec.action.lower_array(), spec.action.upper_array())
    net = TransformerConfig(embed_dim=16, layers=2, heads=2)
    config = GenerativeConfig(net=net, process=chain, solver=solver, observation=observation, action=action)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build_net(net, Sizes.of(spec))
        for value in built.parameters():
            torch.nn.init.normal_(value, std=0.2)
    return GenerativePolicy(spec, config, built)


@dataclass
class Scripted:
    """Acts by what it sees; remembers how large its batches were."""

    spec: PolicySpec
    make_chunk: Callable[[Observation], FloatArray]
    batches: list[int] = field(default_factory=list)

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        self.batches.append(len(observations))
        return np.stack([self.make_chunk(one) for one in observations])


def expert(simulation: Simulation) -> Callable[[Observation], FloatArray]:
    """The task's expert, from what a policy sees of this task: all it needs."""
    robot = simulation.lanes(1, 1)[0].guard.spec
    acting = QUICK_TASK.make_expert(robot)
    tool = [robot.observation[STATE].names.index(f"tool_{axis}_m") for axis in "xyz"]

    def chunk(observation: Observation) -> FloatArray:
        away = observation.features[ENVIRONMENT_STATE].astype(np.float64)
        cube_m = observation.features[STATE][tool].astype(np.float64) + away[:3]
        action = acting.act(observation.features, {"cube_position_m": cube_m, "cube_turn_rad": away[3:4]})
        return np.tile(action, (QUICK_TASK.horizon, 1))

    return chunk


class TestRollouts:
    def test_a_batch_of_one_and_of_four_give_the_same_episodes(self, simulation: Simulation, spec: PolicySpec) -> None:
        seeds = [3, 7, 11, 15, 19]
        alone = simulation.rollouts(Scripted(spec, expert(simulation)), seeds, 2, batch=1)
        together = simulation.rollouts(Scripted(spec, expert(simulation)), seeds, 2, batch=4)
        np.testing.assert_array_equal(alone.success, together.success)
        np.testing.assert_array_equal(alone.steps, together.steps)
        assert len(set(alone.steps.tolist())) > 1, "the episodes must differ, or nothing was compared"
        assert alone.success.any()

    def test_a_network_gives_the_same_episodes_in_any_batch(self, simulation: Simulation, spec: PolicySpec) -> None:
        policy = tiny_policy(spec, SolverConfig(kind="ddim", steps=2))
        states = []
        for batch in (1, 2):
            simulation.rollouts(policy, [1, 2], EXECUTE, batch=batch)
            lanes = simulation.lanes(batch, 1)
            states.append({lane.seed: lane.state.features["observation.state"] for lane in lanes})
        for seed in states[0].keys() & states[1].keys():
            np.testing.assert_allclose(states[0][seed], states[1][seed], atol=1e-3)
        assert states[0].keys() & states[1].keys()

    def test_the_same_seed_twice_is_the_same_episode(self, simulation: Simulation, spec: PolicySpec) -> None:
        outcomes = simulation.rollouts(Scripted(spec, expert(simulation)), [5, 6, 5, 6], 2, batch=3)
        assert outcomes.steps[0] == outcomes.steps[2]
        assert outcomes.steps[1] == outcomes.steps[3]

    def test_robots_whose_episode_ended_take_the_next_seed(self, simulation: Simulation, spec: PolicySpec) -> None:
        policy = Scripted(spec, expert(simulation))
        simulation.rollouts(policy, list(range(6)), 2, batch=4)
        assert max(policy.batches) == 4
        assert sum(policy.batches) >= 6

    def test_actions_out_of_bounds_are_clipped_as_by_the_server(self, simulation: Simulation, spec: PolicySpec) -> None:
        slightly = spec.action.upper_array() * np.float32(1.05)
        outcomes = simulation.rollouts(Scripted(spec, lambda _: np.tile(slightly, (spec.horizon, 1))), [0], EXECUTE)
        assert outcomes.clipped == outcomes.steps.sum()
        assert outcomes.refused == 0

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
    def test_actions_that_cannot_be_are_refused_as_by_the_server(
        self, simulation: Simulation, spec: PolicySpec, value: float
    ) -> None:
        odd = np.full((spec.horizon, *spec.action.shape), value, np.float32)
        outcomes = simulation.rollouts(Scripted(spec, lambda _: odd), [0], EXECUTE)
        assert outcomes.refused == outcomes.steps.sum() > 0
        assert not outcomes.success.any()
        lane = simulation.lanes(1, 1)[0]
        lane.reset(0)
        before = lane.state.features["observation.joint_position"]
        result = lane.step(odd[0])
        assert result.verdict is Verdict.REFUSED
        assert result.refusal in (Refusal.NOT_FINITE, Refusal.OUT_OF_BOUNDS)
        after = lane.state.features["observation.joint_position"]
        np.testing.assert_allclose(before, after, atol=1e-3)

    def test_the_past_is_what_was_seen(self, simulation: Simulation, spec: PolicySpec) -> None:
        lane = simulation.lanes(1, 3)[0]
        lane.reset(0)
        seen = [lane.observation()]
        for _ in range(4):
            lane.step(spec.action.upper_array())
            seen.append(lane.observation())
        assert [len(one.past) for one in seen] == [0, 1, 2, 2, 2]
        for before, past in zip(seen[2:4], seen[4].past, strict=True):
            np.testing.assert_array_equal(before.features["observation.state"], past["observation.state"])
        lane.reset(1)
        assert lane.observation().past == ()

    def test_a_fault_ends_the_episode_and_the_next_one_runs(self, simulation: Simulation, spec: PolicySpec) -> None:
        lane = simulation.lanes(1, 1)[0]
        lane.reset(0)
        lane.guard.latch_fault("test")
        seen = [(lane.ended, lane.success)]
        lane.reset(0)
        seen.append((lane.ended, lane.success))
        assert seen == [(True, False), (False, False)]
        assert lane.step(np.zeros(spec.action.shape, np.float32)).verdict is Verdict.ACCEPTED

    def test_more_steps_than_the_horizon_are_refused(self, simulation: Simulation, spec: PolicySpec) -> None:
        with pytest.raises(PolicyError, match="execute_steps is 17"):
            simulation.rollouts(Scripted(spec, expert(simulation)), [0], 17)


def test_demonstrations_are_successes_of_the_intended_actions(tmp_path: Path, spec: PolicySpec) -> None:
    verdicts: list[bool] = []

    def made(noise: float) -> FloatArray:
        data = collect(
            QUICK_TASK.make_robot,
            QUICK_TASK.make_expert,
            spec.observation,
            2,
            noise,
            seed=0,
            on_episode=verdicts.append,
        )
        save(tmp_path / "data.npz", data)
        again = load(tmp_path / "data.npz")
        assert len(data.episode_ends) == 2
        assert data.sha256() == again.sha256()
        return data.action

    quiet, noisy = made(0.0), made(0.05)
    assert sum(verdicts) == 4
    # the expert's first action sees the same scene and carries none of the noise
    np.testing.assert_array_equal(quiet[0], noisy[0])
    assert len(quiet) != len(noisy) or not np.array_equal(quiet, noisy)
    assert Lane(QUICK_TASK.make_robot()).index == 0


class TestReference:
    def test_the_baseline_samples_what_our_ddpm_samples(self, spec: PolicySpec) -> None:
        policy = tiny_policy(spec, SolverConfig(kind="ddpm", steps=8))
        observations = [observation(spec, index) for index in range(3)]
        noise, _ = policy.noise(observations)
        generator = torch.Generator().manual_seed(3)
        fresh = torch.stack([torch.randn(noise.shape, generator=generator) for _ in range(8)]).numpy()
        ours = policy.backend.sample(noise, fresh, policy.condition(observations))
        usual = DiffusersBackend(policy.sampler, torch.Generator().manual_seed(3))
        theirs = usual.sample(noise, None, policy.condition(observations))
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
        assert np.std(ours) > 0.05


def observation(spec: PolicySpec, index: int) -> Observation:
    rng = np.random.default_rng(index)
    features = {name: rng.uniform(-1, 1, one.shape).astype(np.float32) for name, one in spec.observation.items()}
    return Observation(id=index, stamp_ns=0, features=features, age_ns={}, episode_seed=1, index=index)


def test_schedules_are_kept_and_found_again(tmp_path: Path, spec: PolicySpec) -> None:
    policy = tiny_policy(spec, SolverConfig(kind="ddim", steps=8))
    solver = SolverConfig(kind="ddim", steps=6)
    full = Configuration(family="transformer", solver=solver)
    cached = Configuration(family="transformer", solver=solver, cache=Cache(method="uniform", budget=2))
    observations = [observation(spec, index) for index in range(2)]
    made = schedules_of(policy, [full, cached], observations, tmp_path / "schedules")
    schedule = made[str(cached)]
    assert made[str(full)] is None
    assert schedule is not None
    assert (block_calls(policy, full, None), block_calls(policy, cached, schedule)) == (36, 12)
    assert action_rmse(policy, full, None, observations) == 0.0
    assert action_rmse(policy, cached, schedule, observations) > 1e-4
    assert schedules_of(policy, [cached], [], tmp_path / "schedules") == {str(cached): schedule}


def test_observations_of_demonstrations_carry_their_past(spec: PolicySpec) -> None:
    data = collect(QUICK_TASK.make_robot, QUICK_TASK.make_expert, spec.observation, 1, 0.0, seed=0)
    found = observations_of(data, spec.observation, 2, len(data.vector), seed=0)
    rows = {tuple(np.concatenate([one.features[name] for name in spec.observation])): one for one in found}
    first, second = (rows[tuple(row)] for row in data.vector[:2])
    for name in spec.observation:
        np.testing.assert_array_equal(first.past[0][name], first.features[name])
        np.testing.assert_array_equal(second.past[0][name], first.features[name])


class TestStatistics:
    def test_a_paired_difference_by_hand(self) -> None:
        """Newcombe 1998, table II, example of 50 pairs: 36 both, 12 only the first, 2 only the second, 0 neither."""
        reference = [True] * 36 + [True] * 12 + [False] * 2
        outcomes = [True] * 36 + [False] * 12 + [True] * 2
        found = Success.of(outcomes, reference)
        assert found.n == 50
        assert found.rate == pytest.approx(38 / 50)
        assert found.difference == pytest.approx(-10 / 50)
        assert found.difference_ci[0] == pytest.approx(-0.3404, abs=0.006)
        assert found.difference_ci[1] == pytest.approx(-0.0562, abs=0.006)
        # 14 discordant pairs, 2 of the one kind: 2 * (1 + 14 + 91) / 2**14
        assert found.p_value == pytest.approx(212 / 2**14)

    def test_only_episodes_that_both_ran_are_paired(self) -> None:
        found = Success.of([True, False, True, True], [True, True])
        assert (found.n, found.rate, found.difference) == (2, 0.5, -0.5)


def row(name: str, ms: float, outcomes: Sequence[bool], reference: Sequence[bool]) -> Row:
    solver, _, cache = name.partition("+")
    return Row(
        task="task",
        family="transformer",
        solver=solver,
        cache=cache,
        backend="eager",
        ms=ms,
        speedup=1.0,
        block_calls=1,
        action_rmse=0.0,
        success=Success.of(outcomes, reference),
    )


class TestFront:
    reference = [True] * 1600 + [False] * 400
    worse = [True] * 1500 + [False] * 500
    same = [True] * 1590 + [False] * 410

    def rows(self) -> list[Row]:
        return [
            row("ddpm-100", 100.0, self.reference, self.reference),
            row("ddim-5", 5.0, self.worse, self.reference),
            row("ddim-10+adaptive-5", 6.0, self.same, self.reference),
            row("ddim-10", 12.0, self.same, self.reference),
        ]

    def test_nothing_on_it_is_beaten(self) -> None:
        assert [one.name.partition("@")[0] for one in front(self.rows())] == [
            "task/transformer/ddim-5",
            "task/transformer/ddim-10+adaptive-5",
            "task/transformer/ddpm-100",
        ]

    def test_what_is_shipped_is_the_fastest_that_is_not_inferior(self) -> None:
        chosen = shipped(self.rows(), margin=0.03)
        assert chosen is not None
        assert chosen.cache == "adaptive-5"
        assert shipped(self.rows()[1:2], margin=0.03) is None

    def test_a_rival_has_no_cache_and_takes_no_longer(self) -> None:
        names = {
            "ddpm-100": self.reference,
            "ddim-5": self.worse,
            "ddim-10+adaptive-5": self.same,
            "ddim-10": self.same,
        }
        outcomes = {f"task/transformer/{name}": found for name, found in names.items()}
        (found,) = rivals_of(self.rows(), outcomes)
        assert found.rival == "task/transformer/ddim-5@eager"
        assert found.difference == pytest.approx(0.045)
        assert found.difference_ci[0] > 0.0


class TestOutcomes:
    def portion(self, first: int, success: str) -> Portion:
        return Portion(
            task="t",
            policy="p",
            configuration="c",
            first=first,
            success=success,
            steps=(1,) * len(success),
            clipped=0,
            refused=0,
            cpu_s=0.0,
        )

    def test_they_survive_a_torn_line(self, tmp_path: Path) -> None:
        path = tmp_path / "outcomes.jsonl"
        OutcomeFile(path).append(self.portion(0, "10"))
        with path.open("ab") as file:
            file.write(b'{"task":"t","pol')
        again = OutcomeFile(path)
        again.append(self.portion(2, "01"))
        assert list(OutcomeFile(path).successes("t", "p", "c", 10)) == [True, False, False, True]

    def test_a_damaged_line_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "outcomes.jsonl"
        path.write_text('{"task": 1}\n')
        with pytest.raises(CorruptDataError, match="damaged"):
            OutcomeFile(path)

    def test_a_gap_ends_them(self, tmp_path: Path) -> None:
        file = OutcomeFile(tmp_path / "outcomes.jsonl")
        file.append(self.portion(0, "1"))
        file.append(self.portion(2, "1"))
        assert list(file.successes("t", "p", "c", 3)) == [True]
        assert not file.has("t", "p", "c", 0, 2)
        assert not file.has("t", "other", "c", 0, 1)

    def test_portions_cover_all_seeds_once(self) -> None:
        seeds = [first + offset for first, count in portions(1234) for offset in range(count)]
        assert seeds == list(range(1234))


def test_medians_are_of_every_call_in_turn() -> None:
    calls: list[str] = []
    medians = interleaved_medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, shortest_s=0.0)
    assert set(medians) == {"a", "b"}
    assert "".join(calls) == "aabb" + "ab" * 3
    assert json.dumps(medians)


@pytest.mark.parametrize("families", [FAMILIES, QUICK_FAMILIES])
def test_every_configuration_can_be_sampled_and_has_its_own_name(families: dict[str, Family]) -> None:
    for name, family in families.items():
        configurations = family.configurations(name)
        assert len({str(one) for one in configurations}) == len(configurations)
        assert set(map(str, family.headline_pair(name))) <= set(map(str, configurations))
        assert sum(one.cache is not None for one in configurations) == sum(map(len, family.caches.values()))
        for one in configurations:
            one.solver.check(family.process)
            assert one.cache is None or one.cache.budget < len(solver_calls(family.process, one.solver))


def test_a_task_changes_the_training_of_a_family_and_nothing_else() -> None:
    for task, trainings in TRAININGS.items():
        assert task in TASKS
        for name, training in trainings.items():
            usual, here = FAMILIES[name], family_on(task, name, FAMILIES[name])
            assert (here.net, here.steps) == (training.net or usual.net, training.steps or usual.steps)
            assert here.process == (training.process or usual.process)
            assert type(here.net) is type(usual.net) and type(here.process) is type(usual.process)
            assert here.configurations(name) == usual.configurations(name)
            assert (here.watched, here.headline, here.batch_size) == (usual.watched, usual.headline, usual.batch_size)
    for name, family in FAMILIES.items():
        assert family_on("pick_cube", name, family) == family


def test_what_the_stack_ships_is_measured_as_it_is_shipped() -> None:
    shipped = FAMILIES["shipped"]
    assert SHIPPED.training.solver in shipped.solvers
    training = training_of(shipped, seed=3)
    assert (training.net, training.process, training.steps) == (
        SHIPPED.training.net,
        SHIPPED.training.process,
        SHIPPED.training.steps,
    )
    assert (training.lr, training.seed) == (SHIPPED.training.lr, 3)


def test_the_horizon_of_every_task_fits_the_networks() -> None:
    for task in TASKS.values():
        assert 1 <= task.execute_steps <= task.horizon
        for name, family in FAMILIES.items():
            build_net(family_on(task.task, name, family).net, Sizes(task.horizon, 2, task.history, 18))
