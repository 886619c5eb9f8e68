"""From groups and overrides on the command line to one checked `StackConfig`, with hydra.

    robot=franka task=peg_insertion policy=diffusion algorithm=residual_td3 learner.target_steps=5000

Group choices are the entries of `GROUPS`. Every record of the schema becomes a hydra structured config, so a wrong
key, type or choice is found before anything starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robot_stack.config.policies import POLICY_PRESETS
from robot_stack.config.robots import ROBOT_PRESETS
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS
from robot_stack.learner.rewards.settings import REWARD_PRESETS

GROUPS: dict[str, Mapping[str, msgspec.Struct]] = {
    "robot": ROBOT_PRESETS,
    "task": {task.name: task for preset in ROBOT_PRESETS.values() for task in preset.tasks()},
    "policy": POLICY_PRESETS,
    "algorithm": ALGORITHM_PRESETS,
    "reward": REWARD_PRESETS,
}
DEFAULTS = {"robot": "franka", "policy": "diffusion", "algorithm": "residual_td3", "reward": "task_predicate"}
_ROOT = "stack"
_DICTIONARIES = (
    "cameras.",
    "cluster.robots.",
    "ros2_node.cameras.",
    "ros2_node.intrinsics.",
    "ros2_node.joint_names.",
    "ros2_node.poses.",
    "robot.env_kwargs.",
    "robot.observation_keys.",
    "robot.limits.lower.",
    "robot.limits.upper.",
    "robot.limits.max_velocity.",
    "robot.limits.max_acceleration.",
    "teleop.devices.",
    "teleop.robots.",
)


def compose_config(overrides: Sequence[str]) -> StackConfig:
    """The configuration these overrides give; ConfigError says which one is wrong and what would be right.

    Where no task is chosen it is the robot's first.
    """
    _refuse_tags(overrides)
    overrides = [_into_dictionary(override) for override in overrides]
    _register(_default_task(overrides))
    GlobalHydra.instance().clear()
    try:
        with initialize(config_path=None, version_base="1.3"):
            composed = compose(config_name=_ROOT, overrides=list(overrides))
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        return msgspec.convert(plain, StackConfig)
    except (HydraException, OmegaConfBaseException, msgspec.ValidationError) as error:
        raise ConfigError(_explain(error, overrides)) from error


def _into_dictionary(override: str) -> str:
    """Hydra wants `++` before a new key of a dictionary; whoever writes the key means it."""
    return f"++{override}" if override.startswith(_DICTIONARIES) else override


def _refuse_tags(overrides: Sequence[str]) -> None:
    """What kind of network, process or robot a block describes is said by the group; the block alone cannot change."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        group, dot, _ = key.partition(".")
        choices = GROUPS.get(group, {}) if dot else {}
        if any(key in _tag_keys(f"{group}.", record) for record in choices.values()):
            names = ", ".join(sorted(choices))
            raise ConfigError(f"'{key}' cannot be set: choose another {group} with {group}=..., one of {names}")


def _tag_keys(prefix: str, record: msgspec.Struct) -> set[str]:
    config = type(record).__struct_config__
    keys = {prefix + config.tag_field} if config.tag_field is not None else set()
    for info in msgspec.structs.fields(type(record)):
        value = getattr(record, info.name)
        if isinstance(value, msgspec.Struct):
            keys |= _tag_keys(f"{prefix}{info.name}.", value)
    return keys


def _default_task(overrides: Sequence[str]) -> str:
    chosen = [override.partition("=")[2] for override in overrides if override.startswith("robot=")]
    preset = ROBOT_PRESETS.get(chosen[-1] if chosen else DEFAULTS["robot"], ROBOT_PRESETS[DEFAULTS["robot"]])
    return preset.default_task


def _register(task: str) -> None:
    store = ConfigStore.instance()
    for group, choices in GROUPS.items():
        for name, record in choices.items():
            store.store(group=group, name=name, node=_node(record))
    defaults = [{group: choice} for group, choice in (DEFAULTS | {"task": task}).items()]
    root: dict[str, Any] = {"defaults": [*defaults, "_self_"]}
    for field in msgspec.structs.fields(StackConfig):
        if field.name not in GROUPS:
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            root[field.name] = _node(default) if isinstance(default, msgspec.Struct) else default
    store.store(name=_ROOT, node=root)


def _node(record: msgspec.Struct) -> Any:
    """A hydra structured config (a dataclass instance) with the fields, types and values of the record."""
    fields: list[tuple[str, Any, Any]] = []
    tag = type(record).__struct_config__.tag
    if tag is not None:
        fields.append((type(record).__struct_config__.tag_field or "kind", str, dataclasses.field(default=tag)))
    hints = typing.get_type_hints(type(record))
    for info in msgspec.structs.fields(type(record)):
        fields.append(_field(info.name, hints[info.name], getattr(record, info.name)))
    return dataclasses.make_dataclass(type(record).__name__, fields)()


def _field(name: str, hint: Any, value: Any) -> tuple[str, Any, Any]:
    if value is MISSING:
        return name, Any, dataclasses.field(default=MISSING)
    if isinstance(value, msgspec.Struct):
        node = _node(value)
        return name, type(node), dataclasses.field(default_factory=lambda: node)
    if isinstance(value, tuple):
        element = typing.get_args(hint)[0]
        items = list(value)
        return name, list[element], dataclasses.field(default_factory=lambda: list(items))  # type: ignore[valid-type]
    if isinstance(value, dict):
        content = dict(value)
        return name, dict[str, Any], dataclasses.field(default_factory=lambda: dict(content))
    plain = hint if hint in (int, float, bool, str) else Any
    return name, plain, dataclasses.field(default=value)


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    words = str(cause).strip().splitlines()[0]
    for override in overrides:
        group, _, choice = override.partition("=")
        if group in GROUPS and choice not in GROUPS[group]:
            close = difflib.get_close_matches(choice, GROUPS[group], n=1)
            hint = f"; did you mean {group}={close[0]}?" if close else ""
            return f"there is no {group} called '{choice}'; there are: {', '.join(sorted(GROUPS[group]))}{hint}"
        known = _known_keys()
        key = group.lstrip("+~")
        if key not in GROUPS and key not in known and not key.startswith(_DICTIONARIES):
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else "; see robot-stack config for all keys"
            return f"there is no configuration key '{key}'{hint}"
    return f"configuration: {words} (given: {' '.join(overrides) or 'no overrides'})"


def _known_keys() -> list[str]:
    keys: list[str] = []

    def walk(prefix: str, record: Any) -> None:
        for info in msgspec.structs.fields(type(record)):
            value = getattr(record, info.name)
            keys.append(prefix + info.name)
            if isinstance(value, msgspec.Struct):
                walk(prefix + info.name + ".", value)

    for group, choices in GROUPS.items():
        for record in choices.values():
            walk(group + ".", record)
    for field in msgspec.structs.fields(StackConfig):
        if field.name not in GROUPS:
            keys.append(field.name)
            if isinstance(field.default, msgspec.Struct):
                walk(field.name + ".", field.default)
    return keys
