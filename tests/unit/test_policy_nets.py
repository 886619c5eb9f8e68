"""The networks behind generative policies: what they read, and what happens when blocks are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from policies.acceleration.schedule import CacheSchedule
from policies.common.denoiser import Denoiser, Tensors
from policies.common.normalization import MinMaxNormalizer
from policies.common.observation_tokens import ObservationTokens
from policies.common.sizes import Sizes
from policies.common.vision_config import VisionConfig
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.diffusion.unet import DiffusionUNet
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net
from policies.generative.config import DiffusionChain, FlowPath, GenerativeConfig, NetConfig, Process, SolverConfig
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import ConfigError

VISION = VisionConfig(channels=(8,), keypoints=4)
SIZES = Sizes(horizon=8, action_dim=2, history=3, vector_dim=3, images=((8, 12), (10, 6)))
CONFIGS: dict[str, NetConfig] = {
    "transformer": TransformerConfig(embed_dim=16, layers=2, heads=2, vision=VISION),
    "unet": UNetConfig(channels=(8, 16), kernel=3, groups=4, time_dim=8, vision=VISION),
    "expert": ExpertConfig(embed_dim=16, layers=2, heads=2, vision=VISION),
    "stepping expert": ExpertConfig(embed_dim=16, layers=2, heads=2, step_conditioned=True, vision=VISION),
}
BATCH, CALLS = 3, 5


def make_net(name: str) -> Denoiser:
    """An evaluated network all of whose parameters matter."""
    torch.manual_seed(0)
    net = build_net(CONFIGS[name], SIZES)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return net.eval().requires_grad_(False)


def make_sampler(net: Denoiser, schedule: CacheSchedule | None = None) -> ChunkSampler:
    process: Process = DiffusionChain(train_steps=20)
    return ChunkSampler(net, process, SolverConfig(kind="ddim", steps=CALLS), schedule)


def make_schedule(net: Denoiser, updates: tuple[tuple[int, ...], ...]) -> CacheSchedule:
    return CacheSchedule(method="test", calls=CALLS, blocks=net.block_names, updates=updates, belongs_to="")


def draw(seed: int = 1) -> tuple[Tensor, Tensors]:
    """Noisy actions and a condition."""
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(0, 256, (BATCH, SIZES.history, *size, 3), dtype=torch.uint8, generator=generator)
        for size in SIZES.images
    ]
    vector = torch.rand((BATCH, SIZES.history, SIZES.vector_dim), generator=generator) * 2 - 1
    return torch.randn((BATCH, SIZES.horizon, SIZES.action_dim), generator=generator), (vector, *images)


def call(net: Denoiser, actions: Tensor, condition: Tensors, time: float = 7.0, stride: float = 0.25) -> Tensor:
    estimate: Tensor = net(actions, torch.full((BATCH,), time), torch.full((BATCH,), stride), condition)
    return estimate


@pytest.mark.parametrize("name", CONFIGS)
def test_the_estimate_depends_on_everything_it_should(name: str) -> None:
    net = make_net(name)
    actions, condition = draw()
    before = call(net, actions, condition)
    assert before.shape == actions.shape and before.dtype == torch.float32
    assert (call(net, actions, condition, time=8.0) - before).abs().max() > 1e-4
    assert (call(net, actions, condition, time=0.5) - call(net, actions, condition, time=0.6)).abs().max() > 1e-4
    assert (call(net, actions + 0.1, condition) - before).abs().max() > 1e-4
    for part in range(len(condition)):
        for frame in range(SIZES.history):
            other = list(condition)
            other[part] = condition[part].clone()
            other[part][1, frame] = 1 - other[part][1, frame]
            change = (call(net, actions, tuple(other)) - before).abs().amax(dim=(1, 2))
            assert change[1] > 1e-5, (part, frame)
            assert change[0] < 1e-6 and change[2] < 1e-6  # rows do not mix
    swapped = tuple(part.flip(1) for part in condition)
    assert (call(net, actions, swapped) - before).abs().max() > 1e-5  # which one was earlier matters


def test_only_an_expert_that_is_told_reads_the_stride() -> None:
    actions, condition = draw()
    for name in CONFIGS:
        net = make_net(name)
        change = (call(net, actions, condition, stride=0.5) - call(net, actions, condition)).abs().max()
        assert (change > 1e-4) == (name == "stepping expert")


def test_an_expert_that_is_told_the_stride_begins_as_the_flow_whose_weights_it_gets() -> None:
    flow = make_net("expert")
    torch.manual_seed(1)
    told = build_net(CONFIGS["stepping expert"], SIZES).eval()
    absent, unexpected = told.load_state_dict(flow.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("stride_mlp.") for name in absent)
    actions, condition = draw()
    for stride in (1.0, 0.1):
        assert torch.equal(call(told, actions, condition, stride=stride), call(flow, actions, condition))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_time_for_all_rows_and_a_time_for_each_row_give_the_same(name: str) -> None:
    net = make_net(name)
    actions, condition = draw()
    times, strides = torch.tensor([3.0, 11.0, 0.5]), torch.tensor([0.5, 0.25, 0.125])
    together = net(actions, times, strides, condition)
    for row in range(BATCH):
        own = slice(row, row + 1)
        single = net(actions[own], times[own], strides[own], tuple(part[own] for part in condition))
        torch.testing.assert_close(together[own], single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "causal"), [("transformer", True), ("unet", False), ("expert", False)])
def test_actions_see_later_ones_except_in_the_causal_transformer(name: str, causal: bool) -> None:
    net = make_net(name)
    actions, condition = draw()
    changed = actions.clone()
    changed[:, 3] += 1.0
    change = (call(net, changed, condition) - call(net, actions, condition)).abs().amax(dim=(0, 2))
    assert change[3:].min() > 1e-5
    assert (change[:3].max() < 1e-6) == causal


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_are_numbered_in_the_order_in_which_they_are_computed(name: str) -> None:
    net = make_net(name)
    actions, condition = draw()
    order: list[int] = []

    class Recording:
        def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
            order.append(block)
            return compute()

    net.step(actions, net.clock(torch.zeros(1), torch.zeros(1)), net.context(condition), Recording())
    assert order == list(range(len(net.block_names)))
    assert len(set(net.block_names)) == len(net.block_names)
    assert all(len(block.split(".")) == 2 for block in net.block_names)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_schedule_with_every_call_equals_none_bit_for_bit(name: str) -> None:
    net = make_net(name)
    noise, condition = draw()
    every = make_schedule(net, tuple(tuple(range(CALLS)) for _ in net.block_names))
    assert torch.equal(make_sampler(net, every)(noise, None, *condition), make_sampler(net)(noise, None, *condition))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_block_is_computed_exactly_when_its_schedule_says(name: str) -> None:
    net = make_net(name)
    noise, condition = draw()
    whole = make_sampler(net)(noise, None, *condition)
    blocks = len(net.block_names)
    updates = tuple((0, *(step for step in range(1, CALLS) if (block + step) % 3 == 0)) for block in range(blocks))
    computed: Counter[int] = Counter()
    for block, part in enumerate(parts(net)):
        part.register_forward_hook(lambda module, inputs, output, block=block: computed.update([block]))
    kept = make_sampler(net, make_schedule(net, updates))(noise, None, *condition)
    assert [computed[block] for block in range(blocks)] == [len(row) for row in updates]
    assert kept.isfinite().all() and (kept - whole).abs().max() > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kept_block_changes_what_comes_out(name: str) -> None:
    net = make_net(name)
    noise, condition = draw()
    whole = make_sampler(net)(noise, None, *condition)
    for kept in range(len(net.block_names)):
        updates = tuple((0,) if block == kept else tuple(range(CALLS)) for block in range(len(net.block_names)))
        chunks = make_sampler(net, make_schedule(net, updates))(noise, None, *condition)
        assert not torch.equal(chunks, whole), net.block_names[kept]


def parts(net: Denoiser) -> list[nn.Module]:
    """For each block a module that runs exactly when the block is computed."""
    if isinstance(net, DiffusionUNet):
        return list(net.residuals)
    layers = net.get_submodule("layers").children()
    return [layer.get_submodule(part) for layer in layers for part in ("self_out", "cross_out", "feed_out")]


def test_gates_of_the_expert_start_at_zero_and_are_not_kept() -> None:
    torch.manual_seed(0)
    net = build_net(CONFIGS["expert"], SIZES).eval()
    actions, condition = draw()

    class Garbage:
        def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
            return compute() + 100.0

    clock, context = net.clock(torch.full((1,), 0.3), torch.zeros(1)), net.context(condition)
    torch.testing.assert_close(net.step(actions, clock, context, Garbage()), call(net, actions, condition, time=0.3))


def test_deep_blocks_of_the_u_net_are_all_below_its_top() -> None:
    sizes = Sizes(horizon=8, action_dim=2, history=1, vector_dim=3)
    net = DiffusionUNet(UNetConfig(channels=(8, 16, 8), groups=4, time_dim=8), sizes)
    top = {"down0.0", "down0.1", "up0.0", "up0.1"}
    assert set(net.block_names) - set(net.deep_blocks) == top
    assert list(net.block_names)[:3] == ["down0.0", "down0.1", "down1.0"]
    assert len(net.block_names) == 2 * (3 + 1 + 2)


@pytest.mark.parametrize(("horizon", "channels"), [(6, (8, 16, 8)), (5, (8, 8)), (7, (8, 8))])
def test_horizons_that_cannot_be_halved_are_refused(horizon: int, channels: tuple[int, ...]) -> None:
    sizes = Sizes(horizon=horizon, action_dim=2, history=1, vector_dim=3)
    with pytest.raises(ConfigError, match=f"horizon is {horizon}; allowed: .* multiples of {2 ** (len(channels) - 1)}"):
        DiffusionUNet(UNetConfig(channels=channels, groups=4), sizes)
    single = DiffusionUNet(UNetConfig(channels=(8,), groups=4, time_dim=8), sizes).eval()
    condition = (torch.zeros(1, 1, 3),)
    assert single(torch.zeros(1, horizon, 2), torch.ones(1), torch.zeros(1), condition).shape == (1, horizon, 2)


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("expert", FlowPath(objective="shortcut")),
        ("transformer", FlowPath(objective="consistency")),
        ("stepping expert", FlowPath()),
        ("stepping expert", DiffusionChain()),
    ],
)
def test_networks_are_told_the_stride_exactly_where_it_is_trained(name: str, process: Process) -> None:
    unit = MinMaxNormalizer(centre=(0.0,), half_range=(1.0,))
    with pytest.raises(ConfigError, match="step_conditioned"):
        GenerativeConfig(net=CONFIGS[name], process=process, solver=SolverConfig(), observation=unit, action=unit)


def test_octaves_make_small_differences_count() -> None:
    sizes = Sizes(horizon=8, action_dim=2, history=1, vector_dim=3)
    near, far = torch.zeros(1, 1, 3), torch.full((1, 1, 3), 0.01)

    def difference(detail: int) -> float:
        torch.manual_seed(0)
        tokens = ObservationTokens(sizes, VisionConfig(), 64, detail)
        return float((tokens((near,)) - tokens((far,))).norm().detach() / tokens.mix.weight.std().detach())

    assert difference(4) > 10.0 * difference(0)
    assert ObservationTokens(sizes, VisionConfig(), 64, 2).mix.in_features == 3 * (1 + 2 * 2)


@pytest.mark.parametrize(
    "config",
    [
        lambda detail: TransformerConfig(detail=detail),
        lambda detail: UNetConfig(detail=detail),
        lambda detail: ExpertConfig(detail=detail),
    ],
)
def test_every_network_takes_octaves_and_refuses_less_than_none(config: Callable[[int], NetConfig]) -> None:
    sizes = Sizes(horizon=8, action_dim=2, history=1, vector_dim=3)

    def parameters(detail: int) -> int:
        return sum(value.numel() for value in build_net(config(detail), sizes).parameters())

    assert parameters(3) > parameters(0)
    with pytest.raises(ConfigError, match=r"net\.detail is -1; allowed: 0 or more"):
        config(-1)
