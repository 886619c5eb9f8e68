"""The model against values that were computed independently from the same published parameters."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.sim.rendering import mujoco
from hardware.stretch import limits
from hardware.stretch.geometry import stretch_geometry
from hardware.stretch.joints import ARM_SEGMENTS, GRIPPER, LIFT, SETPOINT_NAMES, WRIST_PITCH, WRIST_YAW
from hardware.stretch.kinematics import StretchKinematics, aperture_of_slide, slide_of_aperture
from hardware.stretch.model import (
    ARM_TENDON,
    BASE,
    FINGER_PER_SLIDE,
    FINGERS,
    GRASP_SITE,
    GRIPPER_BODY,
    GRIPPER_CAMERA,
    GRIPPER_SLIDE,
    HEAD_CAMERA,
    NAVIGATION_CAMERA,
    WHEELS,
    StretchModel,
    build_stretch,
)

CHECKED = StretchModel(timestep_s=0.002)  # as the values were computed


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return build_stretch(CHECKED).compile()


def at_home(model: mujoco.MjModel) -> mujoco.MjData:
    """Lift 0.6 m, arm 0.1 m, everything else 0."""
    data = mujoco.MjData(model)
    data.joint("joint_lift").qpos = 0.6
    for segment in ARM_SEGMENTS:
        data.joint(segment).qpos = 0.025
    mujoco.mj_forward(model, data)
    data.actuator("joint_lift").ctrl = 0.6
    data.actuator(ARM_TENDON).ctrl = 0.1
    return data


def set_fingers(model: mujoco.MjModel, data: mujoco.MjData, slide_m: float) -> None:
    data.joint(GRIPPER_SLIDE).qpos = slide_m
    for finger in FINGERS:
        data.joint(finger).qpos = slide_m * FINGER_PER_SLIDE
    mujoco.mj_forward(model, data)


def test_mass_and_centre_of_mass(model: mujoco.MjModel) -> None:
    assert model.body_mass.sum() == pytest.approx(24.839, abs=1e-3)
    np.testing.assert_allclose(at_home(model).subtree_com[0], [-0.08249, 0.00473, 0.2994], atol=1e-4)


def test_gripper_at_the_zero_and_home_poses(model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.site(GRASP_SITE).xpos, [-0.02125, -0.41485, 0.11475], atol=1e-4)
    data = at_home(model)
    np.testing.assert_allclose(data.site(GRASP_SITE).xpos, [-0.02125, -0.51485, 0.71475], atol=1e-4)
    np.testing.assert_allclose(data.body(GRIPPER_BODY).xpos, [-0.02125, -0.28485, 0.71475], atol=1e-4)
    # the tool's x axis points where the gripper does, its z axis up
    np.testing.assert_allclose(data.site(GRASP_SITE).xmat.reshape(3, 3), [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-4)


@pytest.mark.parametrize(
    ("camera", "position", "looks", "up"),
    [
        (GRIPPER_CAMERA, (-0.01225, -0.34125, 0.77769), (0, -0.985, -0.174), (0, -0.174, 0.985)),
        (HEAD_CAMERA, (0.0454, -0.00294, 1.32219), (1, 0, 0), (0, 0, 1)),
        (NAVIGATION_CAMERA, (0.0448, 0.05236, 1.26069), (1, 0, 0), (0, 0, 1)),
    ],
)
def test_cameras_at_home(
    model: mujoco.MjModel, camera: str, position: tuple[float, ...], looks: tuple[float, ...], up: tuple[float, ...]
) -> None:
    seen = at_home(model).cam(camera)
    rotation = seen.xmat.reshape(3, 3)
    np.testing.assert_allclose(seen.xpos, position, atol=1e-4)
    np.testing.assert_allclose(-rotation[:, 2], looks, atol=1e-3)
    np.testing.assert_allclose(rotation[:, 1], up, atol=1e-3)


@pytest.mark.parametrize(("slide_m", "apart_m"), [(-0.02, 0.0023), (0.0, 0.0687), (0.04, 0.2054)])
def test_finger_tips_are_as_far_apart_as_on_the_robot(model: mujoco.MjModel, slide_m: float, apart_m: float) -> None:
    data = mujoco.MjData(model)
    set_fingers(model, data, slide_m)
    tips = [data.body(f"rubber_tip_{side}").xpos for side in ("left", "right")]
    assert np.linalg.norm(tips[0] - tips[1]) == pytest.approx(apart_m, abs=1e-4)


@pytest.mark.parametrize("aperture_m", [0.0, 0.03, 0.06, limits.GRIPPER_MAX_APERTURE_M])
def test_the_aperture_is_the_gap_between_the_tips(model: mujoco.MjModel, aperture_m: float) -> None:
    data = mujoco.MjData(model)
    slide_m = slide_of_aperture(aperture_m)
    assert aperture_of_slide(slide_m) == pytest.approx(aperture_m, abs=1e-12)
    set_fingers(model, data, slide_m)
    rods = [int(model.body(f"rubber_tip_{side}").geomadr[0]) + 1 for side in ("left", "right")]
    gap_m = mujoco.mj_geomDistance(model, data, *rods, 1.0, None)
    assert gap_m == pytest.approx(aperture_m, abs=4e-3)  # linear in the angle, as the vendor has it


def test_it_stands_still_on_its_wheels(model: mujoco.MjModel) -> None:
    data = at_home(model)
    mujoco.mj_step(model, data, 5000)
    base = data.body(BASE).xpos
    assert base[2] == pytest.approx(-0.0001, abs=2e-4)
    assert np.linalg.norm(base[:2]) < 1e-4
    assert float(data.joint("joint_lift").qpos[0]) == pytest.approx(0.6, abs=1e-3)
    for segment in ARM_SEGMENTS:
        assert float(data.joint(segment).qpos[0]) == pytest.approx(0.025, abs=1e-4)
    assert np.abs(data.qvel).max() < 2e-4


@pytest.mark.parametrize(("left", "right", "speed_m_s", "turn_rad_s"), [(6, 6, 0.29, 0.0), (-6, 6, 0.0, 1.81)])
def test_wheels_drive_and_turn_the_base(
    model: mujoco.MjModel, left: float, right: float, speed_m_s: float, turn_rad_s: float
) -> None:
    data = at_home(model)
    data.actuator(WHEELS[0]).ctrl, data.actuator(WHEELS[1]).ctrl = left, right
    mujoco.mj_step(model, data, 1000)
    forward = data.body(BASE).xmat.reshape(3, 3)[:, 0]
    assert forward @ data.joint("base_free").qvel[:3] == pytest.approx(speed_m_s, abs=0.02)
    assert float(data.joint("base_free").qvel[5]) == pytest.approx(turn_rad_s, abs=0.02)
    data.ctrl[[model.actuator(wheel).id for wheel in WHEELS]] = 0.0
    mujoco.mj_step(model, data, 2000)
    assert np.abs(data.joint("base_free").qvel).max() < 1e-4


def test_kinematics_agree_with_the_world_it_is_driven_in(model: mujoco.MjModel) -> None:
    kinematics = StretchKinematics()
    setpoint = np.zeros(len(SETPOINT_NAMES))
    setpoint[[LIFT, 3]] = (0.6, 0.1)
    setpoint[:2] = (5.0, 1.0)  # where the base is does not matter in the base frame
    position, rotation = kinematics.gripper_pose(setpoint)
    home = at_home(model).site(GRASP_SITE)
    np.testing.assert_allclose(position, home.xpos, atol=1e-9)
    np.testing.assert_allclose(rotation, home.xmat.reshape(3, 3), atol=1e-9)


def test_limits_are_the_vendors_and_consistent() -> None:
    ours = limits.default_limits()
    assert ours.names == SETPOINT_NAMES
    assert (np.asarray(ours.lower) < np.asarray(ours.upper)).all()
    for rates in (ours.max_velocity, ours.max_acceleration, ours.max_jerk):
        assert len(rates) == len(SETPOINT_NAMES)
        assert (np.asarray(rates) > 0).all()
    assert ours.max_velocity[:4] == (0.1, 0.3, 0.11, 0.14)
    assert ours.max_acceleration[:4] == (0.15, 0.5, 0.2, 0.14)
    assert ours.upper[GRIPPER] == 0.09


# ---- geometry ---------------------------------------------------------------------------------------------------

STOW = np.array([0.0, 0.0, 0.23, 0.0, 3.14, -0.4, 0.0, 0.0, 0.0, 0.0])
HOME = np.array([0.0, 0.0, 0.6, 0.1, 0.0, 0.0, 0.0, 0.09, 0.0, 0.0])


def changed(posture: np.ndarray, axis: int, value: float) -> np.ndarray:
    result = posture.copy()
    result[axis] = value
    return result


@pytest.mark.parametrize("posture", [STOW, HOME], ids=["stow", "home"])
def test_common_postures_are_clear(posture: np.ndarray) -> None:
    geometry = stretch_geometry()
    clearance = geometry.look(posture)
    assert clearance.self_distance_m > geometry.min_self_distance_m
    assert clearance.points_m.shape == (3, 3)
    assert (clearance.points_m > geometry.box_lower_m).all()
    assert (clearance.points_m < geometry.box_upper_m).all()


@pytest.mark.parametrize(
    "posture",
    [
        changed(HOME, LIFT, 0.0) * [1, 1, 1, 0, 1, 1, 1, 1, 1, 1],  # the wrist in the base
        changed(STOW, WRIST_PITCH, 0.45),  # the fingers in the lift's carriage
        changed(STOW, GRIPPER, 0.09),  # an opened finger at the mast
        changed(STOW, WRIST_YAW, 4.0),  # the hand in the arm
    ],
)
def test_the_hand_in_the_robots_own_body_is_seen(posture: np.ndarray) -> None:
    geometry = stretch_geometry()
    assert geometry.look(posture).self_distance_m < geometry.min_self_distance_m


def test_the_floor_is_out_of_bounds() -> None:
    geometry = stretch_geometry()
    low = changed(changed(HOME, LIFT, 0.1), WRIST_PITCH, -1.4)
    assert (geometry.look(low).points_m[:, 2] < geometry.box_lower_m[2]).any()


def test_distances_do_not_jump() -> None:
    """A small change of a posture changes the distance little, wherever the hand is: no false alarms."""
    geometry = stretch_geometry()
    rng = np.random.default_rng(0)
    ours = limits.default_limits()
    for _ in range(300):
        posture = rng.uniform(np.maximum(ours.lower, -5.0), np.minimum(ours.upper, 5.0))
        posture[[WRIST_YAW, WRIST_PITCH, 6]] = np.round(posture[[WRIST_YAW, WRIST_PITCH, 6]] / (np.pi / 2)) * np.pi / 2
        there = geometry.look(posture).self_distance_m
        if there <= 0.0:
            continue
        beside = geometry.look(posture + rng.uniform(-1e-4, 1e-4, len(posture))).self_distance_m
        assert beside == pytest.approx(there, abs=1e-3)
