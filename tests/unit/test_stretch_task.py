"""Reach and grasp with its expert: the verdict, what is observed of the scene, and that the filter lets it through."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hardware.sim.rendering import CameraConfig
from hardware.stretch.experts import StretchReachGraspExpert
from hardware.stretch.sim import SimulatedStretch
from hardware.stretch.tasks import ReachGraspConfig, StretchReachGrasp
from robot_stack.core.clock import ManualClock
from robot_stack.core.messages import FloatArray
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.safety.motion import MotionFilter

TICKS = 10
TICK_S = 0.01
CONFIG = ReachGraspConfig()


class Rollouts:
    """Episodes as a robot server runs them, safety filter included; counts what the filter held back."""

    def __init__(self, task: str | StretchReachGrasp = "stretch_reach_grasp") -> None:
        self.robot = SimulatedStretch("stretch", task, clock=ManualClock())
        self.robot.connect()
        self.expert = StretchReachGraspExpert(self.robot.spec)
        self.motion = MotionFilter(self.robot.limits, TICK_S, self.robot.geometry)
        self.held_back: Counter[str] = Counter()

    def begin(self, seed: int) -> None:
        self.robot.reset(seed)
        self.expert.reset(seed)
        self.motion.start(self.robot.measured_setpoint())

    def step(self, action: FloatArray) -> None:
        goal = self.robot.resolve(action)
        for tick in range(TICKS):
            self.robot.send(self.motion.toward(goal, TICKS * TICK_S - TICK_S * tick))
            self.held_back[self.motion.held_back.value] += 1
            self.robot.advance(TICK_S)

    def run(self, seed: int, *, noise: float = 0.0, deceived: bool = False) -> bool:
        """Success of one episode; `deceived`: the expert is told the observed place of the cube, not the true one."""
        self.begin(seed)
        rng = np.random.default_rng(seed)
        lower, upper = self.robot.spec.action.lower_array(), self.robot.spec.action.upper_array()
        for _ in range(self.robot.spec.max_episode_steps):
            truth = self.robot.ground_truth()
            if deceived:
                truth["object_minus_gripper_m"][:2] += truth["observation_bias_m"]
            action = self.expert.act(self.robot.read().features, truth)
            noisy = action + rng.normal(0.0, noise, action.shape) * (upper - lower) / 2
            self.step(np.clip(noisy, lower, upper).astype(np.float32))
            status = self.robot.task_status()
            assert status.reward == float(status.success) == float(status.terminated)
            if status.terminated:
                break
        return status.success


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return Rollouts()


def test_the_expert_grasps_despite_noise_and_no_part_of_its_work_is_forbidden(rollouts: Rollouts) -> None:
    rollouts.held_back.clear()
    assert sum(rollouts.run(seed, noise=0.05) for seed in range(10)) >= 9
    assert not {"workspace", "self_collision", "energy"} & set(rollouts.held_back)


def test_what_is_observed_alone_does_not_suffice(rollouts: Rollouts) -> None:
    told = [rollouts.run(seed, deceived=True) for seed in range(20, 36)]
    assert 4 <= sum(told) <= 14


def test_a_held_cube_follows_the_gripper_and_falls_when_it_opens(rollouts: Rollouts) -> None:
    assert rollouts.run(1)
    robot = rollouts.robot
    before = robot.ground_truth()["object_minus_gripper_m"]
    for _ in range(15):
        rollouts.step(np.array([-0.01, 0.0, -0.01, 0.1, 0.0], dtype=np.float32))
    truth = robot.ground_truth()
    assert truth["object_height_m"][0] > CONFIG.lift_height_m - 0.01
    assert np.linalg.norm(truth["object_minus_gripper_m"]) == pytest.approx(np.linalg.norm(before), abs=5e-3)
    aperture = dict(zip(robot.spec.observation[STATE].names, robot.read().features[STATE], strict=True))
    assert 0.03 < aperture["gripper_aperture_m"] < CONFIG.object_width_m + 0.005
    for _ in range(10):
        rollouts.step(np.array([0.0, 0.0, 0.0, 0.0, 1.0], dtype=np.float32))
    assert not robot.task_status().success
    assert robot.ground_truth()["object_height_m"][0] < 0.01


def test_the_cube_must_be_high_held_and_slow() -> None:
    rollouts = Rollouts()
    assert rollouts.run(2)
    data = rollouts.robot._open.world.data
    cube = data.joint("object")
    pose, velocity = cube.qpos.copy(), cube.qvel.copy()

    def verdict() -> bool:
        rollouts.robot._open.world.forward()
        return rollouts.robot.task_status().success

    assert verdict()
    cube.qvel[2] = 0.1
    assert not verdict()
    cube.qvel = velocity
    cube.qpos[0] += 0.05
    assert not verdict()
    cube.qpos = pose
    assert verdict()
    cube.qpos[2] -= 0.05
    assert not verdict()


def test_the_observed_cube_is_off_by_the_bias_and_nothing_else(rollouts: Rollouts) -> None:
    robot = rollouts.robot
    biases = []
    for seed in range(20):
        robot.reset(seed)
        truth, observed = robot.ground_truth(), robot.read().features[ENVIRONMENT_STATE].astype(np.float64)
        error = observed[:3] - truth["object_minus_gripper_m"]
        np.testing.assert_allclose(error, [*truth["observation_bias_m"], 0.0], atol=1e-6)
        assert observed[3] == pytest.approx(truth["object_turn_rad"][0], abs=1e-6)
        assert observed[4] == pytest.approx(0.0, abs=1e-3)
        biases.append(truth["observation_bias_m"])
    spread = np.abs(biases)
    assert CONFIG.observation_bias_range_m / 2 < spread.max() <= CONFIG.observation_bias_range_m


def test_the_cube_is_observed_in_the_frame_of_the_base(rollouts: Rollouts) -> None:
    """Turning the base turns what is observed against it, the gripper being where it was in that frame."""
    robot = rollouts.robot
    robot.reset(3)
    in_base = robot.read().features[STATE][:3] + robot.ground_truth()["object_minus_gripper_m"]
    robot.command_joint("base_rotation_rad", 0.3)
    robot.advance(2.0)
    truth = robot.ground_truth()
    turn = truth["base_pose_xyyaw"][2]
    assert turn == pytest.approx(0.3, abs=0.01)
    moved = in_base[:2] - truth["base_pose_xyyaw"][:2]
    back = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    seen = robot.read().features[STATE][:3] + truth["object_minus_gripper_m"]
    np.testing.assert_allclose(seen[:2], back @ moved, atol=2e-3)


def test_scenes_lie_on_the_stand_within_reach(rollouts: Rollouts) -> None:
    robot = rollouts.robot
    places = []
    for seed in range(40):
        robot.reset(seed)
        place = robot._open.world.data.joint("object").qpos[:3].copy()
        robot.advance(0.2)
        np.testing.assert_allclose(robot._open.world.data.joint("object").qpos[:3], place, atol=1e-3)
        places.append(place[:2] - CONFIG.centre_m)
    spread = np.abs(places).max(axis=0)
    reach = np.array([CONFIG.object_x_range_m, CONFIG.object_y_range_m])
    assert (spread <= reach).all()
    assert (spread > 0.8 * reach).all()


def test_cameras_see_the_cube() -> None:
    cameras = tuple(CameraConfig(name=name) for name in ("front", "d405_rgb", "d435i_rgb_upright", "nav_rgb"))
    robot = SimulatedStretch("stretch", "stretch_reach_grasp", cameras=cameras[:1], view_cameras=cameras)
    robot.connect()
    try:
        assert robot.cameras == tuple(camera.name for camera in cameras)
        for camera in cameras:
            image = robot.render(camera.name).astype(np.int64)
            green = (image[..., 1] > 1.5 * image[..., 0]) & (image[..., 1] > 60)
            assert green.sum() > 10, camera.name
    finally:
        robot.close()
