"""Back-ends of a policy: the same chunks as eager PyTorch, and graphs without the blocks that are skipped."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from policies.acceleration.calibration import make_schedule
from policies.acceleration.schedule import CacheSchedule
from policies.generative.backend import EagerBackend, FixedSampler, check_against_eager
from policies.generative.compiled_backend import CompiledBackend
from policies.generative.config import DiffusionChain, NetConfig, Process, SolverConfig
from policies.generative.onnx_backend import OnnxBackend, export, graph_key, named_inputs
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime import backend_maker
from policies.generative.runtime_config import RuntimeConfig
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, FloatArray
from tests.generative_kit import EXPERT, FLOW, TRANSFORMER, UNET, make_policy, observations

pytest.importorskip("onnxruntime")

ONE_LAYER = msgspec.structs.replace(TRANSFORMER, layers=1)
TOLERANCE = 2e-5
"""Of a chunk in normalised units (range 2), float32 against float64."""

CHAIN = DiffusionChain(train_steps=4)
DDPM = SolverConfig(kind="ddpm", steps=4)
DDIM = SolverConfig(kind="ddim", steps=4)
EULER = SolverConfig(kind="euler", steps=4)
NETS: list[tuple[NetConfig, Process, SolverConfig]] = [
    (TRANSFORMER, CHAIN, DDPM),
    (UNET, CHAIN, DDIM),
    (EXPERT, FLOW, EULER),
]


def cached(policy: GenerativePolicy, budget: int = 2) -> GenerativePolicy:
    schedule = make_schedule(policy, observations(2), "adaptive", budget, union=1)
    return policy.with_solver(policy.config.solver, schedule)


def in_float64(policy: GenerativePolicy) -> FloatArray:
    """The chunk of the first observation in normalised units, by the sampler in double precision."""
    seen = observations(1)
    noise, fresh = policy.noise(seen)
    sampler = copy.deepcopy(policy.sampler).double()
    for module in sampler.modules():
        if isinstance(module, nn.Linear):  # what a time is made of is float32
            module.register_forward_pre_hook(lambda layer, values: (values[0].to(layer.weight.dtype),))
    doubles = [torch.from_numpy(part).double() for part in policy.condition(seen)]
    with torch.no_grad():
        chunk = sampler(
            torch.from_numpy(noise).double(), None if fresh is None else torch.from_numpy(fresh).double(), *doubles
        )
    assert chunk.dtype == torch.float64
    return chunk.numpy()


def sampled(policy: GenerativePolicy, count: int = 1) -> FloatArray:
    seen = observations(count)
    noise, fresh = policy.noise(seen)
    return policy.backend.sample(noise, fresh, policy.condition(seen))


def inputs(policy: GenerativePolicy) -> dict[str, Array]:
    seen = observations(1)
    return named_inputs(*policy.noise(seen), policy.condition(seen))


@pytest.mark.parametrize(("net", "process", "solver"), NETS)
@pytest.mark.parametrize("with_cache", [False, True])
def test_onnx_and_eager_are_double_precision_rounded(
    net: NetConfig, process: Process, solver: SolverConfig, with_cache: bool, tmp_path: Path
) -> None:
    policy = make_policy(net, process, solver)
    policy = cached(policy) if with_cache else policy
    exact = in_float64(policy)
    np.testing.assert_allclose(sampled(policy), exact, atol=TOLERANCE)
    on_onnx = policy.with_backend(backend_maker(RuntimeConfig(backend="onnx"), tmp_path))
    assert isinstance(on_onnx.backend, OnnxBackend)
    np.testing.assert_allclose(sampled(on_onnx), exact, atol=TOLERANCE)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_compiled_with_a_cache_is_double_precision_rounded(tmp_path: Path) -> None:
    policy = cached(make_policy(ONE_LAYER, CHAIN, SolverConfig(kind="ddim", steps=2)), budget=1)
    compiled = policy.with_backend(backend_maker(RuntimeConfig(backend="compiled"), tmp_path))
    assert isinstance(compiled.backend, CompiledBackend)
    np.testing.assert_allclose(sampled(compiled), in_float64(policy), atol=TOLERANCE)
    np.testing.assert_array_equal(sampled(compiled, count=2), sampled(policy, count=2))  # eager for several rows


def test_eager_is_the_sampler_itself_with_its_clock_computed_beforehand() -> None:
    policy, seen = make_policy(ONE_LAYER, CHAIN, DDPM), observations(3)
    noise, fresh = policy.noise(seen)
    condition = policy.condition(seen)
    with torch.inference_mode():
        plain = policy.sampler(
            torch.from_numpy(noise), torch.from_numpy(fresh), *(torch.from_numpy(part) for part in condition)
        )
    backend = EagerBackend(policy.sampler)
    clocks = []
    net = policy.sampler.denoiser
    net.clock = lambda *arguments: clocks.append(arguments)  # type: ignore[method-assign, assignment]
    np.testing.assert_array_equal(backend.sample(noise, fresh, condition), plain.numpy())
    assert not clocks


def test_several_rows_are_those_of_eager(tmp_path: Path) -> None:
    policy = make_policy(ONE_LAYER, CHAIN, DDIM)
    on_onnx = policy.with_backend(backend_maker(RuntimeConfig(backend="onnx"), tmp_path))
    np.testing.assert_array_equal(sampled(on_onnx, count=3), sampled(policy, count=3))
    assert not list(tmp_path.iterdir())  # and no graph was built for it


def products(policy: GenerativePolicy, schedule: CacheSchedule | None) -> int:
    """Matrix products in the exported graph."""
    import onnx

    sampler = ChunkSampler(policy.sampler.denoiser, policy.config.process, policy.config.solver, schedule)
    graph = onnx.load_from_string(export(FixedSampler(sampler), inputs(policy))).graph
    kinds = Counter(node.op_type for node in graph.node)
    return kinds["MatMul"] + kinds["Gemm"]


def test_skipped_blocks_are_not_in_the_graph() -> None:
    policy = make_policy(TRANSFORMER, CHAIN, DDIM)
    schedule = make_schedule(policy, observations(2), "adaptive", 2, union=2)
    per_kind = {"self": 4, "cross": 4, "feed": 2}  # linear layers, and two products of an attention
    skipped = sum(
        per_kind[name.partition(".")[2]] * (schedule.calls - len(row))
        for name, row in zip(schedule.blocks, schedule.updates, strict=True)
    )
    full = products(policy, None)
    once = 1 + 2 + 2  # tokens, their MLP, keys and values of two layers: the context
    assert full == once + schedule.calls * (2 + 2 * sum(per_kind.values()))  # nothing of the clock is left
    assert products(policy, schedule) == full - skipped


def test_a_kept_graph_is_used_again_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    policy = make_policy(ONE_LAYER, CHAIN, DDIM)
    maker = backend_maker(RuntimeConfig(backend="onnx"), tmp_path)
    expected = sampled(policy.with_backend(maker))
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    for damaged in (b"", written[:-50] + bytes(50)):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(sampled(policy.with_backend(maker)), expected)
        assert path.read_bytes() != damaged
    kept = path.stat()
    np.testing.assert_array_equal(sampled(policy.with_backend(maker)), expected)
    assert path.stat().st_mtime_ns == kept.st_mtime_ns
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_whole_graph_of_another_network_is_not_run(tmp_path: Path) -> None:
    """As if the code of the network had changed under the same weights: the check against eager finds it."""
    policy, other = make_policy(ONE_LAYER, CHAIN, DDIM), make_policy(ONE_LAYER, CHAIN, DDIM, seed=1)
    maker = backend_maker(RuntimeConfig(backend="onnx"), tmp_path)
    expected = sampled(policy.with_backend(maker))
    (path,) = tmp_path.iterdir()
    sampled(other.with_backend(maker))
    (wrong,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(wrong.read_bytes())
    np.testing.assert_array_equal(sampled(policy.with_backend(maker)), expected)
    assert path.read_bytes() != wrong.read_bytes()


def test_the_graphs_name_depends_on_everything_that_the_graph_depends_on() -> None:
    policy = make_policy(ONE_LAYER, CHAIN, DDIM)
    arrays = inputs(policy)
    schedule = make_schedule(policy, (), "uniform", 3)
    other_shapes = {**arrays, "condition_0": np.zeros((1, 3, 3), np.float32)}
    keys = {
        graph_key(policy.sampler, arrays),
        graph_key(policy.sampler, other_shapes),
        graph_key(make_policy(ONE_LAYER, CHAIN, DDIM, seed=1).sampler, arrays),
        graph_key(make_policy(ONE_LAYER, CHAIN, DDPM).sampler, arrays),
        graph_key(policy.with_solver(DDIM, schedule).sampler, arrays),
    }
    assert len(keys) == 5
    assert graph_key(make_policy(ONE_LAYER, CHAIN, DDIM).sampler, arrays) in keys


def test_another_chunk_than_eagers_is_refused() -> None:
    chunk = np.zeros((1, 8, 2), np.float32)
    check_against_eager("some", chunk + 1e-4, chunk)
    for wrong in (chunk + 0.1, chunk[:, :4], np.full_like(chunk, np.nan)):
        with pytest.raises(PolicyError, match="back-end 'some'"):
            check_against_eager("some", wrong, chunk)


def test_the_automatic_backend_is_onnx_on_the_cpu_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    maker = backend_maker(RuntimeConfig(backend="auto"), tmp_path)
    assert maker is not None and isinstance(policy.with_backend(maker).backend, OnnxBackend)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert backend_maker(RuntimeConfig(backend="auto"), tmp_path) is None


def test_runtimes_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: 1 or more"):
        RuntimeConfig(threads=0)
    with pytest.raises(ConfigError, match="backend=compiled for cuda"):
        RuntimeConfig(backend="onnx", device="cuda")
    assert backend_maker(RuntimeConfig(), tmp_path) is None
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            backend_maker(RuntimeConfig(device="cuda"), tmp_path)
