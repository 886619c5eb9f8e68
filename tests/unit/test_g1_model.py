"""The G1's model, limits, kinematics and geometry against values computed independently from the same parameters."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.sim.rendering import mujoco
from hardware.unitree_g1.actions import MAX_LEAD_RAD, PalmDelta
from hardware.unitree_g1.embodiment import REST_ARMS_RAD
from hardware.unitree_g1.geometry import g1_geometry, self_collision_pairs
from hardware.unitree_g1.joints import (
    ARM_SDK_MOTORS,
    LEFT_ARM_MOTORS,
    MOTOR_NAMES,
    PARALLEL_MOTORS,
    RIGHT_ARM_MOTORS,
    WAIST_MOTORS,
)
from hardware.unitree_g1.kinematics import G1Kinematics
from hardware.unitree_g1.limits import PARALLEL_TORQUE_NM, default_limits, motor_limits
from hardware.unitree_g1.model import HEAD_CAMERA, PALM_SITES, SOFT_GAINS, G1Model, MotorGains, build_g1
from hardware.unitree_g1.tasks import make_task
from robot_stack.core.errors import ConfigError, RobotError

HOME_LEG = (-0.1, 0.0, 0.0, 0.3, -0.2, 0.0)
HOME = np.array([*HOME_LEG, *HOME_LEG, 0, 0, 0, 0.2, 0.2, 0, 1.28, 0, 0, 0, 0.2, -0.2, 0, 1.28, 0, 0, 0])
LEVEL = np.array([[1.0, 0.0, 0.0, 0.0]] * 2)
TABLE_M = 1e-4


def at(model: mujoco.MjModel, joints_rad: np.ndarray) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[model.nq - 29 :] = joints_rad
    mujoco.mj_forward(model, data)
    return data


@pytest.fixture(scope="module")
def free() -> mujoco.MjModel:
    return build_g1(G1Model(pelvis="free")).compile()


@pytest.fixture(scope="module")
def kinematics() -> G1Kinematics:
    return G1Kinematics(default_limits(), "none", REST_ARMS_RAD)


# ---- model ----------------------------------------------------------------------------------------------------------


def test_sizes_and_mass(free: mujoco.MjModel) -> None:
    assert (free.nq, free.nv, free.nu) == (36, 35, 29)
    assert free.body_subtreemass[0] == pytest.approx(33.341, abs=1e-3)
    assert [free.actuator(index).name for index in range(29)] == [f"{name}_joint" for name in MOTOR_NAMES]


@pytest.mark.parametrize(
    ("body", "position"),
    [
        ("left_wrist_yaw_link", (0.19977, 0.14866, 0.88823)),
        ("right_wrist_yaw_link", (0.19977, -0.14865, 0.88823)),
        ("left_elbow_link", (0.01577, 0.14681, 0.89824)),
        ("torso_link", (-0.00396, 0.0, 0.837)),
        ("left_ankle_roll_link", (0.0, 0.11851, 0.03614)),
    ],
)
def test_links_at_zero(free: mujoco.MjModel, body: str, position: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(at(free, np.zeros(29)).body(body).xpos, position, atol=TABLE_M)


def test_palms_centre_of_mass_and_camera_at_zero(free: mujoco.MjModel) -> None:
    data = at(free, np.zeros(29))
    palms = [data.site(site).xpos for site in PALM_SITES]
    np.testing.assert_allclose(palms, [(0.27977, 0.14865, 0.88823), (0.27977, -0.14864, 0.88823)], atol=TABLE_M)
    np.testing.assert_allclose(data.subtree_com[0], (0.02033, 0.00008, 0.70433), atol=TABLE_M)
    camera = data.camera(HEAD_CAMERA)
    rotation = camera.xmat.reshape(3, 3)
    np.testing.assert_allclose(camera.xpos, (0.05366, 0.01753, 1.26687), atol=TABLE_M)
    np.testing.assert_allclose(-rotation[:, 2], (0.67431, 0, -0.73845), atol=TABLE_M)
    np.testing.assert_allclose(rotation[:, 1], (0.73845, 0, 0.67431), atol=TABLE_M)


def test_wrists_and_feet_at_the_home_pose() -> None:
    model = build_g1(G1Model(pelvis_height_m=0.78368)).compile()
    data = at(model, HOME)
    np.testing.assert_allclose(data.body("left_wrist_yaw_link").xpos, (-0.01696, 0.2218, 0.71458), atol=TABLE_M)
    np.testing.assert_allclose(data.body("right_wrist_yaw_link").xpos, (-0.01696, -0.22179, 0.71458), atol=TABLE_M)
    spheres = (model.geom_type == mujoco.mjtGeom.mjGEOM_SPHERE) & (model.geom_size[:, 0] == 0.005)
    assert spheres.sum() == 8
    assert data.geom_xpos[spheres, 2].min() - 0.005 == pytest.approx(-0.0005, abs=2e-4)


@pytest.mark.parametrize(("pose", "error_rad", "joint"), [("zero", 0.085, "waist_pitch"), ("home", 0.021, None)])
def test_soft_gains_sag_under_gravity_as_computed_elsewhere(pose: str, error_rad: float, joint: str | None) -> None:
    model = build_g1(G1Model(gains=SOFT_GAINS)).compile()
    target = HOME if pose == "home" else np.zeros(29)
    data = at(model, target)
    data.ctrl[:] = np.asarray(SOFT_GAINS.kp) * target
    mujoco.mj_step(model, data, 2500)
    error = np.abs(data.qpos - target)
    assert error.max() == pytest.approx(error_rad, abs=0.001)
    assert np.abs(data.qvel).max() < 1e-3
    if joint is not None:
        assert MOTOR_NAMES[int(error.argmax())] == joint


def test_stiff_gains_stand_on_their_own_feet() -> None:
    part = {"ankle": (250.0, 8.0), "shoulder": (80.0, 3.0), "elbow": (80.0, 3.0), "wrist": (80.0, 3.0)}
    pairs = [next((gain for key, gain in part.items() if key in name), (500.0, 8.0)) for name in MOTOR_NAMES]
    gains = MotorGains(tuple(kp for kp, _ in pairs), tuple(kd for _, kd in pairs))
    spec = build_g1(G1Model(pelvis="free", gains=gains))
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=(1, 1, 0.1), contype=2, conaffinity=3)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 2500)
    assert data.body("pelvis").xpos[2] == pytest.approx(0.791, abs=0.003)


def test_gravity_compensation_leaves_nothing_to_hold() -> None:
    model = build_g1(G1Model(gravity_compensation=1.0)).compile()
    data = at(model, np.zeros(29))
    mujoco.mj_step(model, data, 500)
    np.testing.assert_allclose(data.qpos, 0.0, atol=1e-9)


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_motor_order() -> None:
    assert len(MOTOR_NAMES) == 29
    assert MOTOR_NAMES[3] == "left_knee"
    assert MOTOR_NAMES[12:15] == ("waist_yaw", "waist_roll", "waist_pitch")
    assert MOTOR_NAMES[15] == "left_shoulder_pitch"
    assert MOTOR_NAMES[28] == "right_wrist_yaw"
    assert (*LEFT_ARM_MOTORS, *RIGHT_ARM_MOTORS, *WAIST_MOTORS) == ARM_SDK_MOTORS


@pytest.mark.parametrize("mode_machine", [4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16])
def test_variants_differ_where_the_vendor_says_so(mode_machine: int) -> None:
    limits = motor_limits(mode_machine)
    drives = {
        name: (limits.max_velocity_rad_s[index], limits.max_torque_nm[index]) for index, name in enumerate(MOTOR_NAMES)
    }
    assert drives["left_hip_pitch"] == ((20.0, 139.0) if mode_machine in (10, 11, 12, 15, 16) else (32.0, 88.0))
    assert drives["right_wrist_yaw"] == ((27.0, 13.4) if mode_machine >= 13 else (22.0, 5.0))
    absent = {name for index, name in enumerate(MOTOR_NAMES) if not limits.present[index]}
    assert ("waist_pitch" in absent) == (mode_machine in (4, 6, 9, 10, 12, 14, 16))
    assert ("left_wrist_pitch" in absent) == (mode_machine in (4, 10))
    assert ("left_knee" in absent) == (mode_machine == 9)
    assert (limits.max_torque_nm[list(PARALLEL_MOTORS)] == PARALLEL_TORQUE_NM).all()


def test_rolls_are_mirrored_and_pitches_are_not() -> None:
    limits = motor_limits(5)
    left, right = (MOTOR_NAMES.index(f"{side}_shoulder_roll") for side in ("left", "right"))
    assert (limits.lower_rad[left], limits.upper_rad[left]) == (-1.5882, 2.2515)
    assert (limits.lower_rad[right], limits.upper_rad[right]) == (-2.2515, 1.5882)
    left, right = (MOTOR_NAMES.index(f"{side}_hip_pitch") for side in ("left", "right"))
    assert limits.upper_rad[left] == limits.upper_rad[right] == 2.8798


@pytest.mark.parametrize("mode_machine", [0, 1, 2, 3, 7, 17])
def test_other_variants_are_refused_by_name(mode_machine: int) -> None:
    with pytest.raises(RobotError, match=f"mode_machine {mode_machine} "):
        motor_limits(mode_machine)


def test_a_robot_without_all_seventeen_motors_has_no_setpoint() -> None:
    with pytest.raises(RobotError, match="waist_roll, waist_pitch"):
        default_limits("none", 6)
    with pytest.raises(ConfigError, match="dex3"):
        default_limits("claws")


def test_our_limits_are_narrower_than_the_motors() -> None:
    limits = default_limits("dex3")
    motors = motor_limits(5)
    axes = list(ARM_SDK_MOTORS)
    assert limits.names[0] == "left_shoulder_pitch_rad"
    assert limits.names[16:] == ("waist_pitch_rad", "left_gripper", "right_gripper")
    assert (np.asarray(limits.lower[:17]) > motors.lower_rad[axes]).all()
    assert (np.asarray(limits.upper[:17]) < motors.upper_rad[axes]).all()
    assert set(limits.max_velocity[:14]) == {2.0}
    assert set(limits.max_velocity[14:17]) == {0.5}
    assert set(limits.max_acceleration[:14]) == {8.0}
    assert set(limits.max_acceleration[14:17]) == {2.0}
    assert {len(values) for values in (limits.max_jerk, limits.lower, limits.upper, limits.max_velocity)} == {19}
    assert len(default_limits("none").names) == 17


# ---- kinematics -----------------------------------------------------------------------------------------------------


def motors_at(setpoint: np.ndarray) -> np.ndarray:
    position = np.zeros(29)
    position[list(ARM_SDK_MOTORS)] = setpoint[:17]
    return position


def test_palm_velocities_are_the_derivative_of_positions(kinematics: G1Kinematics) -> None:
    rng = np.random.default_rng(0)
    position, velocity = rng.uniform(-0.4, 0.4, 29), rng.uniform(-1, 1, 29)
    step = 1e-6
    ahead, behind = (kinematics.palms(position + sign * step * velocity, velocity).position_m for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(kinematics.palms(position, velocity).velocity_m_s, expected, atol=1e-6)


def test_gravity_torque_is_that_of_the_whole_model(kinematics: G1Kinematics) -> None:
    position = np.random.default_rng(1).uniform(-0.4, 0.4, 29)
    kinematics.palms(position, np.ones(29))
    data = at(build_g1(G1Model()).compile(), position)
    np.testing.assert_allclose(kinematics.gravity_torque(position), data.qfrc_bias, atol=1e-9)


@pytest.mark.parametrize("waist_rad", [(0.0, 0.0, 0.0), (0.2, -0.1, 0.15)])
def test_inverse_kinematics_reach_with_any_waist(
    kinematics: G1Kinematics, waist_rad: tuple[float, float, float]
) -> None:
    wanted = np.array([[0.28, 0.25, 0.14], [0.26, -0.2, 0.2]])
    start = np.concatenate([REST_ARMS_RAD, waist_rad])
    goal = kinematics.solve(wanted, LEVEL, start, max_iterations=100)
    np.testing.assert_array_equal(goal[14:], waist_rad)
    palms = kinematics.palms(motors_at(goal), np.zeros(29))
    np.testing.assert_allclose(palms.position_m, wanted, atol=1e-3)
    np.testing.assert_allclose(palms.rotation, np.array([np.eye(3)] * 2), atol=5e-3)


def test_what_can_not_be_reached_stays_inside_the_limits(kinematics: G1Kinematics) -> None:
    limits = default_limits()
    far = np.array([[0.9, 0.6, 0.9], [-0.6, 0.3, -0.6]])
    goal = kinematics.solve(far, LEVEL, np.concatenate([REST_ARMS_RAD, np.zeros(3)]), max_iterations=100)
    assert (goal >= np.asarray(limits.lower)).all()
    assert (goal <= np.asarray(limits.upper)).all()


def test_turned_palms_are_turned_back_by_a_bounded_lead(kinematics: G1Kinematics) -> None:
    measured = np.concatenate([REST_ARMS_RAD, np.zeros(3)])
    measured[6] += 0.8
    palms = kinematics.palms(motors_at(measured), np.zeros(29))
    goal = PalmDelta(make_task("g1_bimanual_lift").motion, kinematics).resolve(
        np.zeros(6, dtype=np.float32), measured, palms
    )
    turned = kinematics.palms(motors_at(goal), np.zeros(29)).rotation[0]
    cosine = (np.trace(palms.rotation[0].T @ turned) - 1) / 2
    assert np.arccos(cosine) <= MAX_LEAD_RAD + 0.05


# ---- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hands", ["none", "dex3"])
def test_geometry_knows_far_from_near(hands: str) -> None:
    geometry = g1_geometry(make_task("g1_bimanual_lift"), hands)
    grippers = np.ones(2 if hands == "dex3" else 0)
    rest = geometry.look(np.concatenate([REST_ARMS_RAD, np.zeros(3), grippers]))
    assert rest.points_m.shape == (6, 3)
    assert rest.self_distance_m > geometry.min_self_distance_m
    folded = np.zeros(17)
    folded[[0, 3, 7, 10]] = 0.6, -1.0, 0.6, -1.0  # hands pulled back
    folded[[2, 9]] = -1.2, 1.2  # and turned inwards: through each other and the torso
    assert geometry.look(np.concatenate([folded, grippers])).self_distance_m < geometry.min_self_distance_m


def test_points_are_in_the_pelvis_frame_and_follow_the_waist(kinematics: G1Kinematics) -> None:
    geometry = g1_geometry(make_task("g1_bimanual_lift"), "none")
    setpoint = np.concatenate([REST_ARMS_RAD, [0.4, 0.1, -0.2]])
    palms = kinematics.palms(motors_at(setpoint), np.zeros(29))
    np.testing.assert_allclose(geometry.look(setpoint).points_m[:2], palms.position_m, atol=1e-9)


def test_every_pair_is_two_different_limbs() -> None:
    pairs = self_collision_pairs()
    assert ("left_wrist_yaw_link", "right_wrist_yaw_link") in pairs
    assert ("right_elbow_link", "torso_link") in pairs
    assert ("left_wrist_yaw_link", "right_hip_yaw_link") in pairs
    assert len(set(pairs)) == len(pairs)
    arms = ("elbow", "wrist")
    assert not [pair for pair in pairs if all(any(part in body for part in arms) and "left" in body for body in pair)]
