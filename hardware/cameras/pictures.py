"""What every driver checks about a picture before it leaves the driver."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Array
from robot_stack.core.protocols import CameraSpec


def checked_image(spec: CameraSpec, image: Array) -> NDArray[np.uint8]:
    """The image, contiguous; RobotError unless it is uint8 RGB (height, width, 3) of the camera's size."""
    check(spec, "picture", image, (spec.height, spec.width, 3), "uint8")
    return np.ascontiguousarray(image, dtype=np.uint8)


def checked_depth(spec: CameraSpec, depth_mm: Array) -> NDArray[np.uint16]:
    """The depth, contiguous; RobotError unless it is uint16 in mm (height, width) of the camera's size."""
    check(spec, "depth", depth_mm, (spec.height, spec.width), "uint16")
    return np.ascontiguousarray(depth_mm, dtype=np.uint16)


def check(spec: CameraSpec, what: str, pixels: Array, shape: tuple[int, ...], dtype: str) -> None:
    if pixels.shape != shape or pixels.dtype.name != dtype:
        raise RobotError(
            f"camera '{spec.name}' ({spec.model}): a {what} of shape {pixels.shape} {pixels.dtype.name} came, expected "
            f"{shape} {dtype}; set the camera's width and height, or the format that the device sends"
        )


def not_connected(spec: CameraSpec) -> RobotError:
    return RobotError(f"camera '{spec.name}' ({spec.model}) is not connected; call connect first")


def check_size(spec: CameraSpec, width: int, height: int) -> None:
    """RobotError unless a device that is about to be used has the camera's size; before a picture is decoded."""
    if (width, height) != (spec.width, spec.height):
        raise RobotError(
            f"camera '{spec.name}' ({spec.model}) delivers {width}x{height}, expected {spec.width}x{spec.height}; set "
            "width and height to what the device has, or choose another of its modes"
        )
