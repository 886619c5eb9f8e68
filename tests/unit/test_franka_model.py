"""The model against values that were computed independently from the same published parameters."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.franka.model import (
    ARM_JOINTS,
    FINGER_JOINTS,
    FLANGE_SITE,
    READY_RAD,
    STIFF_GAINS,
    TCP_SITE,
    WRIST_CAMERA,
    FrankaModel,
    build_franka,
)
from hardware.sim.rendering import mujoco

TABLE = FrankaModel(gains=STIFF_GAINS, gravity_compensation=0.0, friction_scale=1.0, timestep_s=0.002)


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return build_franka(TABLE).compile()


def at(model: mujoco.MjModel, joints_rad: tuple[float, ...]) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:7] = joints_rad
    data.qpos[7:] = 0.04
    mujoco.mj_forward(model, data)
    return data


def dh_flange(joints_rad: tuple[float, ...]) -> np.ndarray:
    """Flange pose (4, 4) as a product of modified Denavit-Hartenberg transforms."""
    quarter = np.pi / 2
    rows = [
        (0.0, 0.0, 0.333),
        (0.0, -quarter, 0.0),
        (0.0, quarter, 0.316),
        (0.0825, quarter, 0.0),
        (-0.0825, -quarter, 0.384),
        (0.0, quarter, 0.0),
        (0.088, quarter, 0.0),
    ]
    pose = np.eye(4)
    for (a, alpha, d), theta in zip(rows, joints_rad, strict=True):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(theta), np.sin(theta)
        pose = pose @ np.array(
            [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        )
    flange = np.eye(4)
    flange[2, 3] = 0.107
    return pose @ flange


@pytest.mark.parametrize(
    "joints", [READY_RAD, (0.0,) * 7, (0, 0, 0, -1.57079, 0, 1.57079, -0.7853), (0.3, -0.5, 0.7, -1.9, 0.4, 1.8, -0.6)]
)
def test_flange_pose_equals_the_dh_product(model: mujoco.MjModel, joints: tuple[float, ...]) -> None:
    flange = at(model, joints).site(FLANGE_SITE)
    expected = dh_flange(joints)
    np.testing.assert_allclose(flange.xpos, expected[:3, 3], atol=2e-5)
    np.testing.assert_allclose(flange.xmat.reshape(3, 3), expected[:3, :3], atol=2e-5)


def test_tool_hand_and_camera_at_the_ready_pose(model: mujoco.MjModel) -> None:
    data = at(model, READY_RAD)
    np.testing.assert_allclose(data.site(FLANGE_SITE).xpos, [0.30689, 0, 0.59028], atol=1e-4)
    np.testing.assert_allclose(data.site(TCP_SITE).xpos, [0.30689, 0, 0.48688], atol=1e-4)
    np.testing.assert_allclose(data.body("hand").xmat.reshape(3, 3), np.diag([1.0, -1.0, -1.0]), atol=1e-4)
    camera = data.cam(WRIST_CAMERA)
    rotation = camera.xmat.reshape(3, 3)
    np.testing.assert_allclose(camera.xpos, [0.35339, 0.02, 0.55428], atol=1e-4)
    np.testing.assert_allclose(-rotation[:, 2], [0, 0, -1], atol=1e-4)
    np.testing.assert_allclose(rotation[:, 1], [1, 0, 0], atol=1e-4)


def test_tcp_at_a_general_pose(model: mujoco.MjModel) -> None:
    data = at(model, (0.3, -0.5, 0.7, -1.9, 0.4, 1.8, -0.6))
    np.testing.assert_allclose(data.site(TCP_SITE).xpos, [0.15997, 0.47385, 0.56775], atol=1e-4)


def test_masses_centre_of_mass_and_gravity_torques(model: mujoco.MjModel) -> None:
    data = at(model, READY_RAD)
    mass = {model.body(index).name: float(model.body_mass[index]) for index in range(model.nbody)}
    assert sum(mass[f"link{number}"] for number in range(1, 8)) == pytest.approx(15.495, abs=1e-3)
    assert mass["hand"] + mass["left_finger"] + mass["right_finger"] == pytest.approx(0.7126, abs=1e-3)
    assert sum(mass.values()) == pytest.approx(18.604, abs=1e-3)
    np.testing.assert_allclose(data.subtree_com[0], [0.0189, 0.00313, 0.47535], atol=1e-4)
    torques = [0, -3.8540, -0.58538, 22.257, 0.71542, 2.2029, 0]
    np.testing.assert_allclose(data.qfrc_bias[:7], torques, atol=1e-3)


def test_stiff_gains_hold_the_ready_pose_and_close_the_fingers(model: mujoco.MjModel) -> None:
    data = at(model, READY_RAD)
    height = data.site(FLANGE_SITE).xpos[2]
    data.ctrl[:] = (*READY_RAD, 0.04)
    mujoco.mj_step(model, data, 2500)
    assert np.abs(data.qpos[:7] - READY_RAD).max() == pytest.approx(0.0064, abs=1e-4)
    assert data.site(FLANGE_SITE).xpos[2] - height == pytest.approx(-0.0034, abs=1e-4)
    np.testing.assert_allclose(data.qpos[7:], 0.04, atol=1e-4)
    assert np.abs(data.qvel).max() < 1e-6
    data.ctrl[7] = 0.0
    mujoco.mj_step(model, data, 1500)
    np.testing.assert_allclose(data.qpos[7:], 0.0, atol=1e-4)
    for pad in ("left_finger_pad", "right_finger_pad"):
        np.testing.assert_allclose(data.site(pad).xpos, data.site(TCP_SITE).xpos, atol=1e-4)


def test_gravity_compensation_leaves_nothing_to_hold() -> None:
    model = build_franka(FrankaModel()).compile()
    data = at(model, READY_RAD)
    data.ctrl[:] = (*READY_RAD, 0.04)
    mujoco.mj_step(model, data, 400)
    assert np.abs(data.qpos[:7] - READY_RAD).max() < 1e-6


def test_joints_are_named_and_limited_as_on_the_robot(model: mujoco.MjModel) -> None:
    assert [model.joint(index).name for index in range(model.njnt)] == [*ARM_JOINTS, *FINGER_JOINTS]
    assert model.jnt_limited.all()
    np.testing.assert_allclose(model.joint("fr3_joint4").range, [-3.077, -0.1169])
    np.testing.assert_allclose(model.actuator("fr3_joint6").forcerange, [-12, 12])
