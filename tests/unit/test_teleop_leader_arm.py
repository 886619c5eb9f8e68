"""A leader arm on its serial bus leads a simulated Franka, joint by joint, through the seat and the safety filter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from robot_stack.config.robots.base import Setting
from robot_stack.config.robots.franka import FrankaConfig
from robot_stack.core.clock import s_to_ns
from robot_stack.core.handling import Handling
from robot_stack.core.seat import Intent
from robot_stack.teleop.device_link import Look
from robot_stack.teleop.devices.leader_arm import LeaderArm
from robot_stack.teleop.devices.settings import LeaderArmSettings, LeaderJoint
from robot_stack.teleop.pilot import Body, Pilot
from tests.device_kit import DynamixelBus
from tests.seat_kit import GuardedRobot, Person, show

pytest.importorskip("dynamixel_sdk")

BEGIN, END, TICKS = 6, 45, 60
TURNED_RAD = TICKS * 2 * math.pi / 4096


def test_a_leader_arm_leads_a_franka_joint_by_joint(tmp_path: Path) -> None:
    sim = FrankaConfig(action_space="joint_delta").simulated(Setting("peg_insertion"))
    robot = GuardedRobot(sim)
    joints = tuple(
        LeaderJoint(name=f"fr3_joint{number}", id=number, sign=-1 if number == 4 else 1) for number in range(1, 8)
    )
    settings = LeaderArmSettings(name="gello", port=str(tmp_path / "arm"), joints=joints)
    handling, goals = Handling(robot.spec), list[np.ndarray]()
    pilot = Pilot(settings, robot.spec, Intent.RECOVER, begun=1)
    with DynamixelBus(tmp_path / "arm", {number: 100 * number for number in range(1, 8)}) as bus:
        arm = LeaderArm(settings)
        arm.open()

        def plan(number: int, person: Person) -> None:
            state, now_ns = robot.guard.state(), person.clock.now_ns()
            if number == BEGIN + 2:
                bus.ticks.update({2: bus.ticks[2] - TICKS, 4: bus.ticks[4] + TICKS})
            reading = arm.read(0.02)
            assert reading is not None
            pilot.switch_until_ns = now_ns + s_to_ns(0.2) if number >= BEGIN else 0
            look = Look(reading=replace(reading, stamp_ns=now_ns), problem="", begun=1)
            wanted = pilot.look(now_ns, look, Body(features=state.features, came_ns=now_ns))
            if number >= BEGIN:
                assert wanted is not None and person.wants(wanted.intent, wanted.moves) == ""
                goals.append(handling.goal(state.features))
            if number == END:
                person.wants(Intent.HOLD)
                person.wants(Intent.FINISH)

        try:
            show(plan, robot=robot, act=lambda observation, state: np.zeros(7, np.float32))
        finally:
            arm.close()
    moved = goals[-1] - goals[0]
    wanted_rad = np.array([0.0, -TURNED_RAD, 0.0, -TURNED_RAD, 0.0, 0.0, 0.0])
    assert np.abs(moved - wanted_rad).max() < 0.004
    assert np.abs(goals[2] - goals[0]).max() < 1e-4  # engaged far from the robot's own angles, and nothing jumped
