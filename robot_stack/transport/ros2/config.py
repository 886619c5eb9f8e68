"""Settings of the ROS 2 node beside a robot server."""

from __future__ import annotations

import re

from msgspec import Struct, field

from robot_stack.core.errors import ConfigError

HEADING, THREE_ANGLES, QUATERNION = 1, 3, 4
_ROS_NAME = re.compile(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")


class Ros2NodeConfig(Struct, frozen=True, kw_only=True):
    """What a robot server looks like in ROS 2.

    namespace: of all topics and services; keep it apart from the vendor's own, whose `joint_states` the robot's driver
    may be reading. node_name: of the lifecycle node. domain_id: DDS domain, -1 for the environment's ROS_DOMAIN_ID.
    loopback_only: false to reach other machines; ROS 2 without SROS2 asks nobody for a key.
    frame_prefix: before every frame_id, `franka_1/`. base_frame: frame of poses and wrench, '' for the model's own.
    joint_names: our name of a joint (without its unit) -> its name in ROS, where it differs from the model's table in
    `names.py`.
    poses: topic -> elements of `observation.state`, beside the poses that are found by their names: x, y, z, and then
    the heading of an upright frame; or `yaw, tilt_x, tilt_y` (heading of the x axis and horizontal part of a z axis
    that points down); or a rotation vector, whose three names end in `_rad`; or a quaternion w, x, y, z.
    cameras: name -> address of a camera process (`camera.frame`). intrinsics: camera -> fx, fy, cx, cy in pixels, and
    five plumb_bob coefficients if it has them; a camera without is published as uncalibrated.
    reliable_images: images with reliable instead of best-effort delivery.
    allow_activation: let ROS 2 arm a robot that is not simulated, and clear its fault; both are acts of a person who
    stands beside it.
    operator_key: key for the services, '' for a node that only watches. viewer_key: key for watching.
    """

    namespace: str = "robot_stack"
    node_name: str = "robot"
    domain_id: int = -1
    loopback_only: bool = True
    frame_prefix: str = ""
    base_frame: str = ""
    joint_names: dict[str, str] = field(default_factory=dict)
    poses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)
    intrinsics: dict[str, tuple[float, ...]] = field(default_factory=dict)
    reliable_images: bool = False
    allow_activation: bool = False
    operator_key: str = "operator"
    viewer_key: str = "viewer"

    def __post_init__(self) -> None:
        if self.namespace and not _ROS_NAME.fullmatch(self.namespace):
            raise ConfigError(
                f"ros2_node.namespace = '{self.namespace}' is no ROS 2 namespace: letters, digits and '_', parts "
                "separated by '/', no part beginning with a digit"
            )
        for topic, names in self.poses.items():
            if len(names) - 3 not in (HEADING, THREE_ANGLES, QUATERNION):
                raise ConfigError(
                    f"ros2_node.poses.{topic} names {len(names)} elements; give x, y, z and then yaw, or yaw, tilt_x, "
                    "tilt_y, or a rotation vector, or a quaternion w, x, y, z"
                )
        for camera, values in self.intrinsics.items():
            if len(values) not in (4, 9):
                raise ConfigError(
                    f"ros2_node.intrinsics.{camera} has {len(values)} numbers; give fx, fy, cx, cy and, for a lens "
                    "with distortion, k1, k2, p1, p2, k3"
                )
