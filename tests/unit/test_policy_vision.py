"""The image encoder: where it looks while training and afterwards, and that it sees where things are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from policies.common.observation_tokens import ObservationTokens
from policies.common.sizes import Sizes
from policies.common.vision import ImageEncoder, spatial_softmax
from policies.common.vision_config import VisionConfig
from robot_stack.core.errors import ConfigError

CONFIG = VisionConfig(channels=(8, 16), keypoints=8, crop=0.75)
SIZE = (24, 32)
CROP = (18, 24)


def make_encoder(config: VisionConfig = CONFIG) -> ImageEncoder:
    torch.manual_seed(0)
    encoder = ImageEncoder(config, *SIZE)
    with torch.no_grad():
        encoder.to_points.weight.mul_(20.0)  # sharp points
    return encoder


def numbered_pixels(count: int) -> Tensor:
    """Images whose pixels tell their own row and column."""
    image = torch.zeros((count, *SIZE, 3), dtype=torch.uint8)
    image[..., 0] = torch.arange(SIZE[0], dtype=torch.uint8)[:, None]
    image[..., 1] = torch.arange(SIZE[1], dtype=torch.uint8)
    return image


def corners(encoder: ImageEncoder, images: Tensor, frames: int = 1) -> Tensor:
    """(N, 2): where the crops that the encoder looks at begin; checks that they are whole windows of the images."""
    seen: list[Tensor] = []
    handle = encoder.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(images, frames)
    handle.remove()
    pixels = ((seen[0] + 1.0) * 127.5).round()
    assert pixels.shape[2:] == CROP
    corner = pixels[:, :2, 0, 0]
    rows = corner[:, 0, None] + torch.arange(CROP[0])
    columns = corner[:, 1, None] + torch.arange(CROP[1])
    assert torch.equal(pixels[:, 0], rows[:, :, None].expand_as(pixels[:, 0]))
    assert torch.equal(pixels[:, 1], columns[:, None, :].expand_as(pixels[:, 1]))
    return corner


def blob(row: int, column: int) -> Tensor:
    image = torch.full((1, *SIZE, 3), 128, dtype=torch.uint8)
    image[:, row - 2 : row + 2, column - 2 : column + 2] = 255
    return image


def test_points_of_the_spatial_softmax_are_where_the_maps_are_bright() -> None:
    maps = torch.full((1, 2, 5, 9), -50.0)
    maps[0, 0, 0, 8] = 50.0  # top right
    maps[0, 1, 2, 4] = 50.0  # the middle
    torch.testing.assert_close(spatial_softmax(maps), torch.tensor([[1.0, -1.0, 0.0, 0.0]]))


def test_every_image_has_a_random_crop_while_training_and_the_central_one_afterwards() -> None:
    encoder = make_encoder()
    first, second = corners(encoder, numbered_pixels(64)), corners(encoder, numbered_pixels(64))
    assert not torch.equal(first, second)
    for axis, free in enumerate((6, 8)):
        assert set(first[:, axis].tolist()) == set(range(free + 1))  # every place, the last one included
    encoder.eval()
    assert torch.equal(corners(encoder, numbered_pixels(3)), torch.tensor([[3.0, 4.0]] * 3))


def test_frames_of_one_history_share_their_crop() -> None:
    corner = corners(make_encoder(), numbered_pixels(60), frames=3).view(20, 3, 2)
    assert torch.equal(corner, corner[:, :1].expand_as(corner))
    assert len({tuple(place) for place in corner[:, 0].tolist()}) > 5


def test_training_and_evaluation_differ_unless_nothing_is_cropped() -> None:
    images = torch.randint(0, 256, (4, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    encoder = make_encoder()
    trained, evaluated = encoder(images), encoder.eval()(images)
    assert not torch.allclose(trained, evaluated)
    assert torch.equal(evaluated, encoder(images))
    whole = make_encoder(VisionConfig(channels=(8, 16), keypoints=8, crop=1.0))
    assert torch.equal(whole(images), whole.eval()(images))


@torch.no_grad()
def test_points_move_along_with_an_object() -> None:
    encoder = make_encoder().eval()
    before = encoder(blob(10, 14)).view(-1, 2)
    aside = (encoder(blob(10, 18)).view(-1, 2) - before).abs().mean(dim=0)
    below = (encoder(blob(14, 14)).view(-1, 2) - before).abs().mean(dim=0)
    assert aside[0] > 0.05 and aside[0] > 2.0 * aside[1]
    assert below[1] > 0.05 and below[1] > 2.0 * below[0]


def test_cameras_of_different_sizes_give_one_token_and_each_matters() -> None:
    torch.manual_seed(0)
    sizes = Sizes(horizon=4, action_dim=2, history=2, vector_dim=3, images=(SIZE, (40, 20)))
    tokens = ObservationTokens(sizes, CONFIG, 16).eval()
    shapes = ((3, 2, *SIZE, 3), (3, 2, 40, 20, 3))
    images = [torch.randint(0, 256, shape, dtype=torch.uint8) for shape in shapes]
    before = tokens((torch.zeros(3, 2, 3), *images))
    assert before.shape == (3, 2, 16)
    for camera in range(2):
        changed = [image.clone() for image in images]
        changed[camera][1, 0] = 255 - changed[camera][1, 0]
        moved = (tokens((torch.zeros(3, 2, 3), *changed)) - before).abs().amax(dim=-1)
        assert moved[1, 0] > 1e-4
        moved[1, 0] = 0.0
        assert moved.max() < 1e-6  # neither another row nor another observation


def test_images_without_room_for_a_place_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"8x32 pixels, cropped to 6x24.*above 8"):
        ImageEncoder(VisionConfig(channels=(8, 8, 8), crop=0.75), 8, 32)


def test_the_encoder_becomes_a_graph_without_decisions() -> None:
    encoder: nn.Module = make_encoder().eval()
    images = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    graph = torch.export.export(encoder, (images,)).module()
    torch.testing.assert_close(graph(255 - images), encoder(255 - images))


def test_gradients_of_many_large_images_through_narrow_stages_do_not_crash() -> None:
    """In torch 2.13 the gradient of a strided 1x1 convolution did, for just these sizes."""
    encoder = ImageEncoder(VisionConfig(channels=(8, 8)), 128, 128).train()
    images = torch.randint(0, 256, (128, 128, 128, 3), dtype=torch.uint8)
    encoder(images).square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in encoder.parameters())
