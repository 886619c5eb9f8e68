"""Any Gymnasium environment with a bounded Box action space, standing in for robot and task.

Time here is counted in actions: an accepted action makes the environment take one step, when its control period is
over, and the world waits while there is none. So a stop stops everything, also where actions are relative, and an
action is never executed twice. The setpoint is the action itself: the safety filter checks the environment's own
bounds and limits no rates. An episode that ended stays still until `reset`.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from hardware.gymnasium.features import flat_features, observation_features, observe
from robot_stack.core.errors import ConfigError, MissingDependencyError, RobotError
from robot_stack.core.messages import Array, Features, FloatArray, TaskStatus
from robot_stack.core.protocols import Reading, Setpoint, SetpointLimits, SimulatedRobot
from robot_stack.core.specs import RobotSpec, vector

# Ticks are summed in floating point: a period is over when it is complete to within this share of it.
_PERIOD_TOLERANCE = 1e-6


class GymnasiumRobot(SimulatedRobot):
    """Drives one Gymnasium environment as a `SimulatedRobot`.

    Args:
        name: unique name of this robot.
        env_id: the environment's id. `namespace/Name-v0` imports the package `namespace` first; write
            `package:Id-v0` where the two differ.
        task: name of the task in the robot's spec.
        observation_keys: (feature name, path in the environment's observation) pairs. The path goes through Dict
            spaces (`pixels.front`); "" is the whole observation.
        control_rate_hz: how often the environment takes an action; the server ticks at the same rate.
        max_episode_steps: the episode is truncated after so many actions.
        env_kwargs: keyword arguments for the environment's constructor.
        success_key: entry of the step's info that says whether the task succeeded; "" takes `terminated`.
        names: names of the elements of `action` and of vector features; where absent `a0`, `state0`, ...
        cameras: names of the images that the environment's `render` gives, in its order; () where it has none.
        command_timeout_s: see `RobotSpec`.
        relative_to, reach: where not "", a vector feature in the units of the action: a robot's action is then an
            offset of at most `reach` from what that feature holds when it is taken, and the setpoint is the sum.

    `spec` and `limits` make the environment when first read (this loads its files, but steps nothing); the
    constructor does not. Offscreen MuJoCo environments draw through EGL unless `MUJOCO_GL` was set.
    """

    def __init__(
        self,
        name: str,
        env_id: str,
        *,
        task: str,
        observation_keys: tuple[tuple[str, str], ...],
        control_rate_hz: float,
        max_episode_steps: int,
        env_kwargs: Mapping[str, bool | int | float | str] | None = None,
        success_key: str = "is_success",
        names: Mapping[str, tuple[str, ...]] | None = None,
        cameras: tuple[str, ...] = ("render",),
        command_timeout_s: float = 0.5,
        relative_to: str = "",
        reach: float = 0.0,
    ) -> None:
        self._name = name
        self._env_id = env_id
        self._task = task
        self._observation_keys = tuple((feature, path) for feature, path in observation_keys)
        self._control_rate_hz = control_rate_hz
        self._max_episode_steps = max_episode_steps
        self._env_kwargs = dict(env_kwargs or {})
        self._success_key = success_key
        self._names = {key: tuple(value) for key, value in (names or {}).items()}
        self._cameras = tuple(cameras)
        self._command_timeout_s = command_timeout_s
        self._relative_to, self._reach = relative_to, reach

        self._env: Any = None
        self._spec: RobotSpec | None = None
        self._randomness = _ProcessWideRandomness()
        self._connected = False
        self._features: Features = {}
        self._info: Features = {}
        self._status = TaskStatus(reward=0.0, success=False, terminated=False)
        self._action_due = False
        self._setpoint: Setpoint | None = None
        self._elapsed_s = 0.0

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RobotSpec:
        if self._spec is None:
            self._spec = self._describe(self._environment())
        return self._spec

    @property
    def limits(self) -> SetpointLimits:
        names = self.spec.action.names
        lower, upper = self._bounds(self._environment())
        unlimited = (float("inf"),) * len(names)
        return SetpointLimits(
            names=names,
            lower=lower,
            upper=upper,
            max_velocity=unlimited,
            max_acceleration=unlimited,
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        return self._cameras

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Make the environment and set up the scene of seed 0, so that there is a state to read."""
        self._environment()
        self._connected = True
        self.reset(0)

    def close(self) -> None:
        self._connected = False
        if self._env is not None:
            self._env.close()
            self._env = None

    # ---- commands ---------------------------------------------------------------------------------------------

    def measured_setpoint(self) -> Setpoint:
        """The setpoint (A,) nearest to zero. An environment does not say which action would change nothing, and need
        not: while no action is due its world waits, so this one is never executed."""
        return np.clip(np.zeros(len(self.spec.action.names)), *self._bounds(self._environment()))

    def resolve(self, action: FloatArray) -> Setpoint:
        """The action (A,) itself, or the place that it is the offset to, inside the environment's bounds; it is due for
        one environment step from now on."""
        self._action_due = True
        setpoint = np.asarray(action, dtype=np.float64)
        if not self._relative_to:
            return setpoint
        return np.clip(setpoint + self._features[self._relative_to], *self._bounds(self._environment()))

    def send(self, setpoint: Setpoint) -> None:
        """Keep the setpoint (A,) for the environment step that is due, if one is."""
        self._require_connection()
        if setpoint.shape != self.spec.action.shape:
            raise RobotError(
                f"robot '{self._name}' ({self._env_id}): setpoint has shape {setpoint.shape}, "
                f"it must have {self.spec.action.shape}"
            )
        self._setpoint = setpoint.copy()

    def hold(self) -> None:
        """Forget an action that was not executed yet."""
        self._action_due = False
        self._setpoint = None

    # ---- the world --------------------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed; everything random in the environment follows from the seed alone."""
        self._require_connection()
        self._randomness.seed(seed)
        with self._randomness.lent():
            observation, info = self._env.reset(seed=seed)
        self._status = TaskStatus(reward=0.0, success=False, terminated=False)
        self.hold()
        self._elapsed_s = 0.0
        self._observe(observation, info)

    def advance(self, duration_s: float) -> None:
        """Move time on; a control period that ends takes the environment step that is due, if one is."""
        self._require_connection()
        period_s = 1.0 / self._control_rate_hz
        self._elapsed_s += duration_s
        periods = math.floor(self._elapsed_s / period_s + _PERIOD_TOLERANCE)
        if periods == 0:
            return
        self._elapsed_s = max(0.0, self._elapsed_s - periods * period_s)
        if self._action_due and self._setpoint is not None and not (self._status.terminated or self._status.truncated):
            self._step(self._setpoint)
        self.hold()

    def read(self) -> Reading:
        """The present observation. Its stamp is now: between two steps the world does not change."""
        self._require_connection()
        return Reading(stamp_ns=time.monotonic_ns(), features=dict(self._features))

    def task_status(self) -> TaskStatus:
        """The outcome of the last environment step; nothing yet right after `reset`."""
        return self._status

    def ground_truth(self) -> Features:
        """The observation's features, and every numeric entry of the environment's info as `info.<key>` float32."""
        return {**{key: value.copy() for key, value in self._features.items()}, **self._info}

    def render(self, camera: str) -> Array:
        """RGB image (height, width, 3) uint8 of that camera."""
        self._require_connection()
        if camera not in self._cameras:
            raise RobotError(f"robot '{self._name}' has no camera '{camera}'; it has: {', '.join(self._cameras)}")
        rendered = self._env.render()
        images = list(rendered) if isinstance(rendered, (list, tuple)) else [rendered]
        index = self._cameras.index(camera)
        image = np.asarray(images[index]) if index < len(images) else np.empty(0)
        if image.shape[2:] != (3,) or image.dtype != np.uint8:
            raise RobotError(
                f"robot '{self._name}' ({self._env_id}): render gave {len(images)} image(s) and for '{camera}' "
                f"{image.dtype}{list(image.shape)} instead of uint8 [height, width, 3]; set cameras to what it renders"
            )
        return image

    # ---- inside -----------------------------------------------------------------------------------------------

    def _environment(self) -> Any:
        if self._env is None:
            self._env = _make(self._env_id, self._max_episode_steps, self._env_kwargs, bool(self._cameras))
        return self._env

    def _bounds(self, env: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of the environment's own actions."""
        space = env.action_space
        bounds = [np.asarray(getattr(space, side, np.inf), dtype=np.float64) for side in ("low", "high")]
        if bounds[0].ndim != 1 or not np.all(np.isfinite(bounds)):
            raise ConfigError(
                f"robot '{self._name}': {self._env_id} has the action space {space}; a robot needs a Box of shape (n,) "
                "with finite bounds; wrap the environment (gymnasium.wrappers.RescaleAction) and register the result"
            )
        lower, upper = (tuple(float(value) for value in bound) for bound in bounds)
        return lower, upper

    def _describe(self, env: Any) -> RobotSpec:
        lower, upper = self._bounds(env)
        observation = observation_features(env.observation_space, self._observation_keys, self._names)
        if self._relative_to:
            if self._relative_to not in observation or observation[self._relative_to].shape != (len(lower),):
                raise ConfigError(
                    f"robot '{self._name}': relative_to is '{self._relative_to}'; allowed: a feature of "
                    f"{len(lower)} elements, as the action has, out of {', '.join(observation)}"
                )
            if self._reach <= 0.0:
                raise ConfigError(f"robot '{self._name}': reach is {self._reach}; allowed: above 0 with relative_to")
            lower, upper = (-self._reach,) * len(lower), (self._reach,) * len(lower)
        names = self._names.get("action", tuple(f"a{index}" for index in range(len(lower))))
        if len(names) != len(lower):
            raise ConfigError(f"robot '{self._name}': {len(names)} names for an action of {len(lower)} elements")
        return RobotSpec(
            name=self._name,
            model=f"gymnasium:{self._env_id}",
            task=self._task,
            simulated=True,
            control_rate_hz=self._control_rate_hz,
            tick_rate_hz=self._control_rate_hz,
            command_timeout_s=self._command_timeout_s,
            max_episode_steps=self._max_episode_steps,
            action=vector(names, lower, upper),
            observation=observation,
        )

    def _step(self, action: Setpoint) -> None:
        space = self._env.action_space
        with self._randomness.lent():
            observation, reward, terminated, truncated, info = self._env.step(action.astype(space.dtype))
        if self._success_key and self._success_key not in info:
            raise RobotError(
                f"robot '{self._name}': {self._env_id} gives no '{self._success_key}' in its info; "
                f"set success_key to one of: {', '.join(map(str, info))}, or to '' for 'terminated'"
            )
        self._status = TaskStatus(
            reward=float(reward),
            success=bool(info[self._success_key]) if self._success_key else bool(terminated),
            terminated=bool(terminated),
            truncated=bool(truncated) and not terminated,
        )
        self._observe(observation, info)

    def _observe(self, observation: Any, info: Mapping[str, Any]) -> None:
        self._features = observe(observation, self._observation_keys, self.spec.observation)
        self._info = flat_features(info)

    def _require_connection(self) -> None:
        if not self._connected:
            raise RobotError(f"robot '{self._name}' ({self._env_id}) is not connected; call connect() first")


class _ProcessWideRandomness:
    """Seeds of numpy's and Python's process-wide generators, for environments that draw from them.

    Some environments ignore the seed of `reset` in part (gym-hil places its cube with `np.random.uniform`). The
    environment is lent generators seeded from the episode; the process gets its own back after every call.
    """

    def __init__(self) -> None:
        self._numpy = np.random.RandomState(0).get_state()
        self._python = random.Random(0).getstate()

    def seed(self, seed: int) -> None:
        self._numpy = np.random.RandomState(seed % 2**32).get_state()
        self._python = random.Random(seed).getstate()

    @contextmanager
    def lent(self) -> Iterator[None]:
        own_numpy, own_python = np.random.get_state(), random.getstate()
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        try:
            yield
        finally:
            self._numpy, self._python = np.random.get_state(), random.getstate()
            np.random.set_state(own_numpy)
            random.setstate(own_python)


def _make(env_id: str, max_episode_steps: int, env_kwargs: Mapping[str, Any], rendered: bool) -> Any:
    if sys.platform == "linux":
        # MuJoCo chooses its OpenGL when first imported, and without a display its default cannot draw.
        os.environ.setdefault("MUJOCO_GL", "egl")
    package = env_id.partition(":")[0] if ":" in env_id else env_id.rpartition("/")[0]
    for module in filter(None, ("gymnasium", package)):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(error.name or module, "gymnasium", f"the environment {env_id}") from error
    import gymnasium

    try:
        return gymnasium.make(
            env_id,
            max_episode_steps=max_episode_steps,
            disable_env_checker=True,
            render_mode="rgb_array" if rendered else None,
            **env_kwargs,
        )
    except Exception as error:
        raise RobotError(
            f"cannot make the environment {env_id} with {dict(env_kwargs)}: {error}. "
            "If this is about OpenGL, set MUJOCO_GL=egl (or osmesa) before the process starts"
        ) from error
