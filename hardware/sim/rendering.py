"""The one place that imports MuJoCo, and off-screen RGB rendering without a display.

MuJoCo chooses its OpenGL back-end from the environment variable MUJOCO_GL at import and offers no other way, and its
default needs a display. So the variable is set here, before the import, unless the user has set it: EGL (GPU, or
Mesa in software), else OSMesa, else none: then the physics works and cameras say what is missing. Everything else
imports `mujoco` from this module.
"""

from __future__ import annotations

import ctypes.util
import os

from msgspec import Struct

from robot_stack.core.errors import ConfigError, MissingDependencyError, RobotError
from robot_stack.core.messages import Array
from robot_stack.core.specs import IMAGES, Feature

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}


def choose_gl_backend() -> str:
    """Set MUJOCO_GL to a back-end this machine has, unless it is set, and return it."""
    if not os.environ.get("MUJOCO_GL"):
        found = [backend for backend, library in _LIBRARIES.items() if ctypes.util.find_library(library)]
        os.environ["MUJOCO_GL"] = found[0] if found else "disable"
    return os.environ["MUJOCO_GL"]


GL_BACKEND = choose_gl_backend()

try:
    import mujoco
except ImportError as error:
    raise MissingDependencyError("mujoco", "sim", "simulated robots") from error

__all__ = ["GL_BACKEND", "CameraConfig", "CameraRenderer", "choose_gl_backend", "image_features", "mujoco"]


class CameraConfig(Struct, frozen=True, kw_only=True):
    """A camera of the model that is offered as `observation.images.<name>`. Sizes in pixels."""

    name: str
    width: int = 128
    height: int = 128


def image_features(cameras: tuple[CameraConfig, ...]) -> dict[str, Feature]:
    """One uint8 (height, width, 3) feature per camera."""
    return {IMAGES + camera.name: Feature(dtype="uint8", shape=(camera.height, camera.width, 3)) for camera in cameras}


class CameraRenderer:
    """Renders named cameras of one model. The OpenGL contexts belong to the thread of the first `render`."""

    def __init__(self, model: mujoco.MjModel, cameras: tuple[CameraConfig, ...]) -> None:
        for camera in cameras:
            if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera.name) < 0:
                known = ", ".join(model.camera(index).name for index in range(model.ncam))
                raise ConfigError(f"the model has no camera '{camera.name}'; it has {known or 'none'}")
        self._model = model
        self._cameras = {camera.name: camera for camera in cameras}
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # markers are for people, no camera sees them
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}

    def render(self, data: mujoco.MjData, name: str) -> Array:
        """RGB image (height, width, 3) uint8."""
        camera = self._cameras.get(name)
        if camera is None:
            raise ConfigError(
                f"camera '{name}' is not offered; configured cameras: {', '.join(self._cameras) or 'none'}"
            )
        renderer = self._renderer(camera)
        renderer.update_scene(data, camera=name, scene_option=self._options)
        image: Array = renderer.render()
        return image

    def _renderer(self, camera: CameraConfig) -> mujoco.Renderer:
        size = (camera.height, camera.width)
        if size not in self._renderers:
            renderer = self._open_renderer(size)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = False
            self._renderers[size] = renderer
        return self._renderers[size]

    def _open_renderer(self, size: tuple[int, int]) -> mujoco.Renderer:
        try:
            return mujoco.Renderer(self._model, *size, max_geom=200)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise RobotError(
                f"cannot render off-screen with MUJOCO_GL={GL_BACKEND} ({error}); install EGL (Debian: libegl1 and "
                "libgl1-mesa-dri) or OSMesa (libosmesa6), or run without cameras"
            ) from error

    def close(self) -> None:
        """Release the OpenGL contexts; harmless if there is none."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
