"""What a vendor-side simulator tells and is asked, beside the vendor's interface. See `robot_stack.core.messages`."""

from __future__ import annotations

import enum

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.core.messages import Done, Failed, Features, FloatArray, Hello, TaskStatus


class SceneState(Struct, frozen=True, kw_only=True, tag=True):
    """What a vendor-side simulator tells beside the vendor's own interface: scene, truth, verdict of the task.

    `seq` counts published states of this boot, `episode_seed` is the scene's. `measured` is the simulator's own
    measured setpoint: whoever treats a robot as simulated checks the driver's against it. `instruction`: what the scene
    asks for, in words.
    """

    boot: str
    seq: int
    stamp_ns: int
    episode_seed: int
    environment_state: FloatArray
    measured: NDArray[np.float64]
    task: TaskStatus
    ground_truth: Features
    images: Features
    instruction: str = ""


class ResetScene(Struct, frozen=True, kw_only=True, tag=True):
    seed: int


class GetScene(Struct, frozen=True, kw_only=True, tag=True):
    cameras: tuple[str, ...] = ()


class VendorFault(enum.Enum):
    """What a vendor-side simulator can be told to suffer; NONE ends it."""

    NONE = "none"
    LOST_PACKETS = "lost_packets"
    STUCK_JOINT = "stuck_joint"
    REFLEX = "reflex"
    RUNSTOP = "runstop"
    FROZEN_STATE = "frozen_state"
    WRONG_LIMITS = "wrong_limits"


class InjectFault(Struct, frozen=True, kw_only=True, tag=True):
    """`axis`: of the setpoint, for a stuck joint; `share`: of the packets, for lost ones."""

    fault: VendorFault
    axis: int = 0
    share: float = 0.3


SceneRequest = Hello | ResetScene | GetScene | InjectFault
SceneReply = SceneState | Done | Failed
