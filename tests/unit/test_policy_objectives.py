"""What networks are trained on: exact estimates lose nothing, and small networks learn toys."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.common.sizes import Sizes
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net
from policies.generative.config import DiffusionChain, FlowPath, Process, SolverConfig
from policies.generative.objectives import flow_loss, flow_times, reflow_pairs, training_loss
from policies.generative.sampler import ChunkSampler
from policies.generative.solver import noise_levels
from robot_stack.core.errors import PolicyError

PROCESSES: list[Process] = [
    DiffusionChain(train_steps=20),
    DiffusionChain(train_steps=20, prediction="sample"),
    FlowPath(),
    FlowPath(objective="shortcut"),
    FlowPath(objective="consistency"),
]
SIZES = Sizes(horizon=2, action_dim=1, history=1, vector_dim=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Oracle(Denoiser):
    """Knows the clean actions of each row, which are its condition, and answers what the process asks for."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.block_names = ()
        self._process = process
        self.asked: list[Tensor] = []

    def context(self, condition: Tensors) -> Tensors:
        return condition

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        self.asked.append(torch.stack((times, strides), dim=1))
        return (times[:, None, None],)

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        clean, time = context[0], clock[0]
        if isinstance(self._process, FlowPath):
            return (clean - actions) / (1.0 - time).clamp_min(1e-6)
        if self._process.prediction == "sample":
            return clean
        alphas, sigmas = (level.to(torch.float32) for level in noise_levels(self._process))
        return (actions - alphas[time.long()] * clean) / sigmas[time.long()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Wrong(Oracle):
    """Answers half of the noisy actions, whatever is asked."""

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        return actions / 2


@pytest.mark.parametrize("process", PROCESSES)
def test_the_exact_estimate_loses_nothing_and_a_wrong_one_does(process: Process) -> None:
    oracle, actions = Oracle(process), torch.randn((64, 4, 2), generator=generator(1))
    assert training_loss(oracle, process, actions, (actions,), generator(), oracle) < 1e-6
    assert training_loss(Wrong(process), process, actions, (actions,), generator(), oracle) > 0.05
    if process != PROCESSES[-1]:  # where the teacher alone knows the actions
        assert training_loss(oracle, process, actions, (actions.flip(0),), generator(), oracle) > 0.05


@pytest.mark.parametrize("process", PROCESSES)
def test_the_generator_alone_decides_the_loss(process: Process) -> None:
    net, actions = Wrong(process), torch.randn((16, 4, 2), generator=generator(1))

    def loss(seed: int) -> float:
        torch.manual_seed(len(net.asked))
        return float(training_loss(net, process, actions, (actions,), generator(seed), Oracle(process)))

    assert loss(3) == loss(3) != loss(4)


def test_a_chain_is_trained_at_all_its_steps_alike() -> None:
    oracle, actions = Oracle(PROCESSES[0]), torch.zeros(4000, 1, 1)
    training_loss(oracle, PROCESSES[0], actions, (actions,), generator())
    counts = torch.bincount(oracle.asked[0][:, 0].long(), minlength=20)
    assert len(counts) == 20 and counts.min() > 120 and counts.max() < 290


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 1.0), (1.0, 1.0), (1.0, 2.0)])
def test_times_of_a_flow_follow_their_beta(alpha: float, beta: float) -> None:
    times = flow_times(FlowPath(time_alpha=alpha, time_beta=beta), 20_000, generator())
    assert times.dtype == torch.float32 and times.min() >= 0.0 and times.max() <= 0.999
    share = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])  # of noise, at which the distribution is compared
    exact = share**alpha if beta == 1.0 else 1.0 - (1.0 - share) ** beta
    found = torch.stack([((1.0 - times) < limit).float().mean() for limit in share])
    torch.testing.assert_close(found, exact, atol=0.015, rtol=0.0)
    assert torch.equal(times, flow_times(FlowPath(time_alpha=alpha, time_beta=beta), 20_000, generator()))


def test_a_shortcut_model_learns_long_steps_on_a_quarter_of_the_rows() -> None:
    process = FlowPath(objective="shortcut")
    oracle, actions = Oracle(process), torch.zeros(4000, 1, 1)
    training_loss(oracle, process, actions, (actions,), generator())
    first, second, whole = oracle.asked
    assert len(first) == len(second) == 1000 and torch.equal(whole[1000:, 1], torch.full((3000,), 1 / 128))
    times, strides = whole[:1000].T
    assert set(strides.tolist()) == {2.0**-halvings for halvings in range(7)}
    assert torch.equal(times / strides, (times / strides).round()) and (times + strides).max() == 1.0
    assert torch.equal(first, torch.stack((times, strides / 2), dim=1))
    assert torch.equal(second, torch.stack((times + strides / 2, strides / 2), dim=1))


def test_a_jump_of_a_consistency_model_ends_on_the_path() -> None:
    process = FlowPath(objective="consistency")
    student, teacher, actions = Oracle(process), Oracle(process), torch.zeros(4000, 1, 1)
    training_loss(student, process, actions, (actions,), generator(), teacher)
    times, strides = student.asked[-1].T
    assert times.min() == 0.0 and strides.min() == 1 / 32 and strides.max() == 1.0
    assert (times + strides).max() <= 1.0 and torch.equal(strides * 32, (strides * 32).round())
    with pytest.raises(PolicyError, match="teacher"):
        training_loss(student, process, actions, (actions,), generator())


def test_pairs_for_rectified_flow_belong_together() -> None:
    actions = torch.randn((8, 4, 2), generator=generator(1))
    oracle = Oracle(FlowPath())
    sampler = ChunkSampler(oracle, FlowPath(), SolverConfig(kind="euler", steps=4))
    noise, made = reflow_pairs(sampler, (actions,), (4, 2), generator())
    torch.testing.assert_close(made, actions)
    assert noise.std() == pytest.approx(1.0, abs=0.3)
    assert flow_loss(oracle, FlowPath(), noise, made, (actions,), generator()) < 1e-6
    assert flow_loss(oracle, FlowPath(), noise.flip(0), made.flip(0), (actions,), generator()) > 0.01


Draw = Callable[[int, torch.Generator], Tensor]


def two_modes(count: int, source: torch.Generator) -> Tensor:
    side = torch.randint(0, 2, (count, 1, 1), generator=source) * 2.0 - 1.0
    return 0.6 * side + 0.05 * torch.randn((count, 2, 1), generator=source)


def one_mode(count: int, source: torch.Generator) -> Tensor:
    return 0.4 + 0.3 * torch.randn((count, 2, 1), generator=source)


def train(process: Process, draw: Draw, steps: int) -> Denoiser:
    told = isinstance(process, FlowPath) and process.objective == "shortcut"
    torch.manual_seed(0)
    net = build_net(ExpertConfig(embed_dim=32, layers=1, heads=2, step_conditioned=told), SIZES)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    source, condition = generator(5), (torch.zeros(256, 1, 1),)
    for _ in range(steps):
        optimizer.zero_grad()
        training_loss(net, process, draw(256, source), condition, source).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def sample(net: Denoiser, process: Process, solver: SolverConfig, count: int = 1000) -> Tensor:
    noise = torch.randn((count, 2, 1), generator=generator(7))
    chunks: Tensor = ChunkSampler(net, process, solver)(noise, None, torch.zeros(count, 1, 1))
    return chunks


def assert_two_modes(chunks: Tensor, near: float) -> None:
    """Both sides are chosen, and `near` of all chunks are at one of them: not between, not one action on each side."""
    means = chunks.mean(dim=(1, 2))
    assert 0.3 < float((means > 0).float().mean()) < 0.7
    assert float(((means.abs() - 0.6).abs() < 0.2).float().mean()) > near


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (DiffusionChain(train_steps=50), SolverConfig(kind="ddim", steps=10)),
        (FlowPath(), SolverConfig(kind="euler", steps=10)),
    ],
)
def test_two_ways_to_act_stay_two(process: Process, solver: SolverConfig) -> None:
    assert_two_modes(sample(train(process, two_modes, 200), process, solver), near=0.85)


def test_a_shortcut_model_needs_one_step_where_a_flow_gives_the_mean() -> None:
    process = FlowPath(objective="shortcut")
    net = train(process, two_modes, 350)
    assert_two_modes(sample(net, process, SolverConfig(kind="euler", steps=1)), near=0.75)
    assert_two_modes(sample(net, process, SolverConfig(kind="euler", steps=32)), near=0.95)
    flow = sample(train(FlowPath(), two_modes, 60), FlowPath(), SolverConfig(kind="euler", steps=1))
    assert flow.abs().mean() < 0.3


def test_a_trained_flow_gives_the_deviation_that_its_euler_steps_allow() -> None:
    chunks = sample(train(FlowPath(), one_mode, 150), FlowPath(), SolverConfig(kind="euler", steps=10))
    deviation, mean = 1.0, 0.0
    for index in range(10):  # the exact velocity of normal data is linear in the noisy actions
        time = index / 10
        gain = (time * 0.3**2 - (1.0 - time)) / (time**2 * 0.3**2 + (1.0 - time) ** 2)
        mean, deviation = mean + (0.4 + gain * (mean - time * 0.4)) / 10, deviation * (1.0 + gain / 10)
    assert float(chunks.mean()) == pytest.approx(mean, abs=0.04)
    assert float(chunks.std()) == pytest.approx(deviation, rel=0.15)
