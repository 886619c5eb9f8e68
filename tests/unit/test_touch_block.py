"""The task that asks in words: its scenes, its verdict, its expert, and the instruction's way to the record."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.franka.sim import SimulatedFranka
from hardware.sim.experts import make_expert
from hardware.sim.rendering import CameraConfig
from hardware.sim.tasks.touch_block import NO_BLOCK, PALETTE, TouchBlock, TouchBlockConfig
from robot_stack.core.clock import ManualClock
from robot_stack.core.codec import pack, unpack
from robot_stack.core.messages import Command, Features, FloatArray, Lifecycle, RobotState
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.edge.alignment import Aligner
from robot_stack.safety.guard import RobotGuard

COLOURS = tuple(PALETTE)
TICK_S = 0.01


class Played:
    """The task behind the same guard as on any robot, in lock-step."""

    def __init__(self, cameras: tuple[CameraConfig, ...] = ()) -> None:
        self.clock = ManualClock()
        self.robot = SimulatedFranka("franka", "touch_block", cameras=cameras, clock=self.clock)
        self.guard = RobotGuard(self.robot, self.clock)
        self.guard.connect()
        self.guard.acquire_lease("s", "test")
        self.guard.transition(Lifecycle.ACTIVE)
        self.expert = make_expert("touch_block", self.robot.spec)
        self._seq = 0

    def step(self, action: FloatArray) -> RobotState:
        self._seq += 1
        deadline_ns = self.clock.now_ns() + 10**9
        self.guard.command(Command(session="s", seq=self._seq, deadline_ns=deadline_ns, action=action))
        for _ in range(10):
            self.guard.tick()
            self.robot.advance(TICK_S)
            self.clock.advance_ns(round(TICK_S * 1e9))
        return self.guard.state()

    def episode(self, seed: int, target: int | None = None) -> RobotState:
        """Played by the expert, who is told to touch `target` where that is not None."""
        self.guard.reset(seed)
        state = self.guard.state()
        for _ in range(self.robot.spec.max_episode_steps):
            truth = dict(_truth(state))
            if target is not None:
                truth["target_block"] = np.array([target])
            state = self.step(self.expert.act(state.features, truth))
            if state.task is not None and state.task.terminated:
                break
        return state


def _truth(state: RobotState) -> Features:
    assert state.ground_truth is not None
    return state.ground_truth


@pytest.fixture(scope="module")
def played() -> Played:
    return Played()


def test_the_expert_touches_the_named_block(played: Played) -> None:
    states = [played.episode(seed) for seed in range(50)]
    assert sum(bool(state.task and state.task.success) for state in states) >= 48
    for state in states:
        assert state.task is not None
        assert state.task.success == (state.task.reward == 1.0)
        assert state.task.success == bool(_truth(state)["touched_block"] == _truth(state)["target_block"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_wrong_block_ends_the_episode_in_failure_and_is_named(played: Played, seed: int) -> None:
    played.guard.reset(seed)
    wrong = (int(played.robot.ground_truth()["target_block"][0]) + 1) % 3
    state = played.episode(seed, wrong)
    assert state.task is not None and state.task.terminated and not state.task.success and state.task.reward == 0.0
    assert _truth(state)["touched_block"].tolist() == [wrong]


def test_nothing_is_touched_in_the_air(played: Played) -> None:
    played.guard.reset(4)
    state = played.step(np.zeros(3, np.float32))
    assert state.task is not None and not state.task.terminated
    assert _truth(state)["touched_block"].tolist() == [NO_BLOCK]


def test_the_instruction_names_the_colour_of_the_target(played: Played) -> None:
    named = set()
    for seed in range(60):
        played.guard.reset(seed)
        state = played.guard.state()
        truth = _truth(state)
        colour = COLOURS[truth["block_colours"][truth["target_block"][0]]]
        assert state.instruction == f"touch the {colour} block"
        named.add(colour)
    assert named == set(COLOURS)


def test_scenes_keep_their_distances_and_their_bounds(played: Played) -> None:
    config = TouchBlockConfig()
    for seed in range(60):
        played.robot.reset(seed)
        truth = played.robot.ground_truth()
        centres = truth["block_positions_m"][:, :2]
        assert (centres >= config.lower_m).all() and (centres <= config.upper_m).all()
        gaps = [np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert min(gaps) >= config.apart_m
        assert len(set(truth["block_colours"].tolist())) == 3
        assert abs(played.robot.measured_setpoint()[0]) < 0.3  # the arm did not come round the other way


def test_numbers_alone_tell_nothing_of_the_scene() -> None:
    """Same start pose, another scene: every vector feature is the same, bit for bit, and only the picture differs."""
    task = TouchBlock(TouchBlockConfig(start_range_m=0.0))
    robot = SimulatedFranka("f", task, clock=ManualClock(), cameras=(CameraConfig(name="front", width=64, height=64),))
    robot.connect()
    try:
        robot.reset(1)
        first, picture = robot.read().features, robot.render("front").copy()
        robot.reset(2)
        second = robot.read().features
        assert {STATE, ENVIRONMENT_STATE} <= first.keys()
        for name, value in first.items():
            np.testing.assert_array_equal(value, second[name])
        assert (robot.render("front") != picture).any()
    finally:
        robot.close()


def test_a_small_picture_shows_all_colours_that_are_there_and_no_other() -> None:
    robot = SimulatedFranka(
        "f", "touch_block", clock=ManualClock(), cameras=(CameraConfig(name="front", width=64, height=64),)
    )
    robot.connect()
    try:
        for seed in range(10):
            robot.reset(seed)
            picture = robot.render("front").astype(np.float64) / 255
            present = {COLOURS[index] for index in robot.ground_truth()["block_colours"]}
            seen = {colour for colour in COLOURS if _pixels_of(picture, PALETTE[colour][:3]) >= 8}
            assert seen == present
    finally:
        robot.close()


def _pixels_of(picture: NDArray[np.float64], rgb: tuple[float, float, float]) -> int:
    """Pixels that have the hue of a colour, in whatever light."""
    wanted = np.asarray(rgb) / np.linalg.norm(rgb)
    bright = np.linalg.norm(picture, axis=-1)
    hue = (picture @ wanted) / np.maximum(bright, 1e-9)
    return int(((hue > 0.99) & (bright > 0.3)).sum())


def test_the_instruction_reaches_the_policy_over_the_wire(played: Played) -> None:
    played.guard.reset(3)
    state: RobotState = unpack(pack(played.guard.state()), RobotState)
    observation = Aligner(played.robot.spec, max_age_s=1.0).observe(state, age_ns=0, episode_seed=3, index=0)
    assert observation.instruction == played.robot.instruction() != ""


def test_a_task_that_is_always_the_same_asks_for_nothing() -> None:
    robot = SimulatedFranka("f", "peg_insertion", clock=ManualClock())
    robot.connect()
    assert robot.instruction() == ""
    assert RobotGuard(robot, ManualClock()).state().instruction == ""
