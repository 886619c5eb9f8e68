"""A whole sampler as one ONNX graph, unrolled at its schedule: blocks that are skipped do not exist in it."""

from __future__ import annotations

import hashlib
import io
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from policies.generative.backend import Arrays, EagerBackend, FixedSampler, check_against_eager
from policies.generative.digest import weights_sha256
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import MissingDependencyError, PolicyError
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import Array, FloatArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

OPSET = 17
DIGEST_BYTES = 32
MAX_WEIGHT_BYTES = 1_900_000_000  # a protobuf message ends at 2 GiB
SLOWING_OPTIMIZER = "MatMulAddFusion"  # puts two reshapes round every product: a tenth slower on chunks of one row
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


class OnnxBackend:
    """ONNX Runtime on the CPU, for one row at a time; more rows go through eager PyTorch.

    The first chunk takes seconds to minutes, for building the graph (it grows with the number of blocks that the
    schedule computes): let it be one that no robot waits for. The graph is kept in `cache` under a hash of everything
    it depends on; a damaged file is made anew. The first chunk of every start is checked against eager.
    MissingDependencyError without ONNX Runtime; PolicyError if the check fails, or for a network of more than 1.9 GB.
    """

    def __init__(self, sampler: ChunkSampler, cache: Path, threads: int = 1) -> None:
        _check_installed()
        self._eager = EagerBackend(sampler)
        self._cache, self._threads = cache, threads
        self._session: InferenceSession | None = None

    def sample(self, noise: FloatArray, step_noise: FloatArray | None, condition: Arrays) -> FloatArray:
        if len(noise) != 1:
            return self._eager.sample(noise, step_noise, condition)
        arrays = named_inputs(noise, step_noise, condition)
        if self._session is None:
            self._session = self._checked_session(arrays, self._eager.sample(noise, step_noise, condition))
        return _run(self._session, arrays)

    def _checked_session(self, arrays: dict[str, Array], expected: FloatArray) -> InferenceSession:
        path = self._cache / f"{graph_key(self._eager.module.sampler, arrays)}.graph"
        kept = _read(path)
        if kept is not None:
            try:
                return _checked(_session(kept, self._threads), arrays, expected)
            except PolicyError as error:
                logger.warning("%s is made anew: %s", path, error)
        started = time.perf_counter()
        content = export(self._eager.module, arrays)
        session = _checked(_session(content, self._threads), arrays, expected)
        write_atomically(path, hashlib.sha256(content).digest() + content)
        logger.info("%s: built in %.1f s, %d bytes", path, time.perf_counter() - started, len(content))
        return session


def named_inputs(noise: FloatArray, step_noise: FloatArray | None, condition: Arrays) -> dict[str, Array]:
    """The inputs of a graph: noise, step_noise (of a stochastic solver), condition_0 and so on."""
    fresh = {} if step_noise is None else {"step_noise": step_noise}
    return {"noise": noise, **fresh, **{f"condition_{number}": part for number, part in enumerate(condition)}}


def export(module: FixedSampler, arrays: dict[str, Array]) -> bytes:
    """The sampler as an ONNX model for inputs of these names, shapes and dtypes; its output is called chunks.

    PolicyError if the network is too large for one file.
    """
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    if size > MAX_WEIGHT_BYTES:
        raise PolicyError(
            f"the network has {size} bytes of weights; allowed with backend=onnx: {MAX_WEIGHT_BYTES} (take "
            "backend=compiled)"
        )
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: that Python's decisions become constants, which is wanted
        # Tracing builds an unrolled graph many times faster than torch.export does, and one that runs faster.
        torch.onnx.export(
            _Flat(module).eval(),
            tuple(torch.from_numpy(array) for array in arrays.values()),
            file,  # type: ignore[arg-type]  # a stream is taken, too
            dynamo=False,
            input_names=list(arrays),
            output_names=["chunks"],
            opset_version=OPSET,
        )
    return file.getvalue()


def graph_key(sampler: ChunkSampler, arrays: dict[str, Array]) -> str:
    """Hash of what the graph depends on. That it is this network's is checked by running it, too."""
    parts = [
        weights_sha256(sampler.denoiser),
        repr(sampler.denoiser),
        repr(sampler.process),
        repr(sampler.calls),
        repr(sampler.schedule),
        repr([(name, array.dtype.str, array.shape) for name, array in arrays.items()]),
        repr([version(package) for package in PACKAGES]),
        str(OPSET),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class _Flat(nn.Module):
    """The sampler with tensors only as arguments: without `step_noise` where the solver takes none."""

    def __init__(self, module: FixedSampler) -> None:
        super().__init__()
        self.module = module

    def forward(self, *values: Tensor) -> Tensor:
        fresh = self.module.sampler.is_stochastic
        chunks: Tensor = self.module(values[0], values[1] if fresh else None, *values[1 + fresh :])
        return chunks


def _session(content: bytes, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # waiting threads sleep: the cores are shared with cameras and the control loop
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOWING_OPTIMIZER]
        )
    except Exception as error:  # its classes have no common base but Exception
        raise PolicyError(f"ONNX Runtime cannot read the graph: {error}") from error


def _run(session: InferenceSession, arrays: dict[str, Array]) -> FloatArray:
    chunks: FloatArray = session.run(None, arrays)[0]
    return chunks


def _checked(session: InferenceSession, arrays: dict[str, Array], expected: FloatArray) -> InferenceSession:
    try:
        found = _run(session, arrays)
    except Exception as error:  # its classes have no common base but Exception
        raise PolicyError(f"ONNX Runtime cannot run the graph: {error}") from error
    check_against_eager("onnx", found, expected)
    return session


def _read(path: Path) -> bytes | None:
    """The model in a cache file; None if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, model = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return model if hashlib.sha256(model).digest() == digest else None


def _check_installed() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise MissingDependencyError(error.name or "onnxruntime", "fast", "backend=onnx") from error
    del onnx, onnxruntime, onnxscript
