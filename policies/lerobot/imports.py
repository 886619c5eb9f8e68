"""LeRobot's own classes, imported when first needed.

LeRobot 0.4.4 asks for an older torch and many packages of its own: it lives in an environment of its own, never in the
stack's (`benchmarks/lerobot-policy-constraints.txt` lists what its policies need).
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from robot_stack.core.errors import MissingDependencyError, PolicyError

CLASSES = {
    "diffusion": ("lerobot.policies.diffusion.modeling_diffusion", "DiffusionPolicy"),
    "act": ("lerobot.policies.act.modeling_act", "ACTPolicy"),
}
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class LeRobotMissingError(MissingDependencyError):
    """LeRobot is not in this environment."""

    def __init__(self) -> None:
        Exception.__init__(
            self,
            "LeRobot is needed to run its checkpoints and is not installed here. It wants an environment of its own: "
            "make lerobot-env, then load the checkpoint in a program that .venv-lerobot/bin/python runs",
        )


def policy_class(kind: str) -> Any:
    """LeRobot's class of that kind, `diffusion` or `act`; LeRobotMissingError where LeRobot is not installed."""
    if importlib.util.find_spec("lerobot") is None:
        raise LeRobotMissingError
    _declare_operators()
    module, name = CLASSES[kind]
    return getattr(importlib.import_module(module), name)


def network_config(folder: Path, kind: str) -> Any:
    """LeRobot's record of the `config.json` in that folder; PolicyError if this version of LeRobot cannot read it."""
    policy_class(kind)  # its import registers the record's class
    base = importlib.import_module("lerobot.configs.policies").PreTrainedConfig
    try:
        return base.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # its parser's classes have no common base but Exception
        raise PolicyError(f"LeRobot cannot read {folder / 'config.json'}: {error}") from error


def _declare_operators() -> None:
    """torchvision from the package index is built for CUDA: beside a CPU torch its compiled operators do not load, and
    its import ends with an error for want of two names. No policy calls them; declaring them is enough."""
    if torch.version.cuda is not None:
        return
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _BOXES)
