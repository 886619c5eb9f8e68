"""Windows over demonstrations: never across episodes, whatever the lengths; pictures decoded early or late."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.common.normalization import fit_min_max
from policies.diffusion.config import TransformerConfig
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from robot_stack.buffer.images import ImageCodec, encode_image
from robot_stack.core.errors import PolicyError
from robot_stack.learner.imitation_data import (
    DecodedImages,
    DemonstrationArrays,
    EncodedImages,
    EpisodeIndex,
    Windows,
    image_rows,
)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    history=st.integers(1, 5),
    horizon=st.integers(1, 12),
    data=st.data(),
)
def test_windows_equal_a_slow_reference(lengths: list[int], history: int, horizon: int, data: st.DataObject) -> None:
    total = sum(lengths)
    rows = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=8))
    past, ahead = [], []
    for row in rows:
        first = 0
        for length in lengths:
            episode = list(range(first, first + length))
            if row in episode:
                before = episode[: episode.index(row) + 1]
                after = episode[episode.index(row) :]
                past.append(([episode[0]] * history + before)[-history:])
                ahead.append((after + [episode[-1]] * horizon)[:horizon])
            first += length
    index = EpisodeIndex(np.cumsum(lengths))
    wanted = np.asarray(rows)
    assert index.past(wanted, history).tolist() == past
    assert index.ahead(wanted, horizon).tolist() == ahead


def test_a_batch_is_what_the_policy_would_read() -> None:
    rng = np.random.default_rng(0)
    vectors, action = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    pixels = rng.integers(0, 255, (7, 4, 5, 3), dtype=np.uint8)
    data = DemonstrationArrays(vectors, action, np.array([3, 7]), images=(DecodedImages(pixels),))
    config = GenerativeConfig(
        net=TransformerConfig(),
        process=DiffusionChain(),
        solver=SolverConfig(),
        observation=fit_min_max(vectors[:3]),
        action=fit_min_max(action),
    )
    windows = Windows(data, config, history=2, horizon=3, device=torch.device("cpu"))
    chunk, (seen, pictures) = windows.batch(np.array([3, 2]))
    np.testing.assert_array_equal(chunk[0], config.action.normalize(action[[3, 4, 5]]))
    np.testing.assert_array_equal(chunk[1], config.action.normalize(action[[2, 2, 2]]))
    np.testing.assert_array_equal(seen[0], config.observation.normalize(vectors[[3, 3]]).clip(-1, 1))
    np.testing.assert_array_equal(pictures[1], pixels[[1, 2]])
    assert seen.dtype == chunk.dtype == torch.float32 and pictures.dtype == torch.uint8


def test_pictures_are_the_same_decoded_early_or_late() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 255, (6, 1, 1, 3), dtype=np.uint8) + np.arange(16, dtype=np.uint8)[None, :, None, None]
    pixels = np.ascontiguousarray(np.broadcast_to(smooth, (6, 16, 24, 3)))
    stored = [encode_image(one, ImageCodec.JPEG if number % 2 else ImageCodec.RAW) for number, one in enumerate(pixels)]
    early, late = image_rows(stored), image_rows(stored, budget_bytes=1000)
    assert isinstance(early, DecodedImages) and isinstance(late, EncodedImages)
    rows = np.array([[5, 5], [0, 3], [1, 5]])
    np.testing.assert_array_equal(early.take(rows), late.take(rows))
    assert early.take(rows).shape == (3, 2, 16, 24, 3)
    np.testing.assert_array_equal(early.take(np.array([0, 2, 4])), pixels[[0, 2, 4]])
    assert np.abs(early.take(np.array([1])).astype(int) - pixels[1]).max() < 12


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(PolicyError, match="must all be alike"):
        image_rows([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)])
    with pytest.raises(PolicyError, match="uint8"):
        DecodedImages(np.zeros((2, 4, 4, 1), np.uint8))


def test_the_fingerprint_sees_every_part() -> None:
    def arrays(**changes: object) -> str:
        parts: dict[str, object] = {
            "vector": np.zeros((4, 2), np.float32),
            "action": np.zeros((4, 1), np.float32),
            "episode_ends": np.array([2, 4]),
            "images": (DecodedImages(np.zeros((4, 2, 2, 3), np.uint8)),),
            "instruction": np.zeros(4, np.int64),
            "instructions": ("go",),
        }
        return DemonstrationArrays(**(parts | changes)).sha256()  # type: ignore[arg-type]

    found = {
        arrays(),
        arrays(vector=np.ones((4, 2), np.float32)),
        arrays(action=np.ones((4, 1), np.float32)),
        arrays(episode_ends=np.array([1, 4])),
        arrays(images=(DecodedImages(np.ones((4, 2, 2, 3), np.uint8)),)),
        arrays(instructions=("stop",)),
        arrays(instruction=None),
    }
    assert len(found) == 7
