"""The G1's driver, safe state and simulated robot over real DDS on the loopback interface."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import numpy as np
import pytest
from msgspec import structs

from hardware.unitree_g1 import dex3, loco, messages
from hardware.unitree_g1.arm_sdk import FAREWELLS, ArmSdk
from hardware.unitree_g1.bus import (
    ARM_COMMAND_TOPIC,
    LOW_STATE_TOPIC,
    hand_command_topic,
    request_topic,
    response_topic,
)
from hardware.unitree_g1.codec import HandCommand, LowCommand, LowState
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.dds import DdsLink, RawReader, RawWriter
from hardware.unitree_g1.dds_bus import DdsBus
from hardware.unitree_g1.dds_safe_state import G1DdsSafeState
from hardware.unitree_g1.dds_services import SimulatedServices
from hardware.unitree_g1.dds_simulator import PERIOD_S, G1DdsSimulator
from hardware.unitree_g1.driver import G1
from hardware.unitree_g1.joints import ARM_SDK_MOTORS, WAIST_MOTORS, WEIGHT_MOTOR
from hardware.unitree_g1.ros2_bus import Ros2Bus
from hardware.unitree_g1.rpc import (
    SERVICES,
    SPORT,
    Request,
    Response,
    ServiceCaller,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from hardware.unitree_g1.sim import SimulatedG1
from hardware.unitree_g1.state import MAX_DAMAGED_IN_A_ROW
from robot_stack.core.clock import ManualClock, s_to_ns
from robot_stack.core.errors import ConfigError, MissingDependencyError, RobotError
from robot_stack.core.scene_messages import InjectFault, VendorFault
from robot_stack.core.specs import ENVIRONMENT_STATE
from robot_stack.transport.ros2.link import Ros2Link
from tests.unit.test_g1_codec import claim_domain

TASK = "g1_bimanual_lift"
DOMAIN = claim_domain()
CONFIG = G1BusConfig(domain_id=DOMAIN, weight_rise_s=0.2, weight_fall_s=0.4, connect_timeout_s=20.0)
AXES = list(ARM_SDK_MOTORS)
ELBOW = 3
WAIST_YAW = 14
# Away from the table and the box: upper arms out, forearms up.
OUTWARD_RAD = np.array([0, 0.15, 0, -0.2, 0.1, 0, 0.1, 0, -0.15, 0, -0.2, -0.1, 0, -0.1, 0.05, 0, 0])


class TiltableG1(SimulatedG1):
    """Its IMU can be told to be tilted: the simulated pelvis never is."""

    pitch_rad = 0.0

    def imu(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        quat, gyroscope, accelerometer = super().imu()
        quat[:] = math.cos(self.pitch_rad / 2), 0.0, math.sin(self.pitch_rad / 2), 0.0
        return quat, gyroscope, accelerometer


@dataclass
class Rig:
    """One simulated robot and one driver in this process; time is the clock's. `spy` hears every arm_sdk message."""

    config: G1BusConfig = CONFIG
    clock: ManualClock = field(default_factory=lambda: ManualClock(s_to_ns(1.0)))

    def __post_init__(self) -> None:
        self.world = TiltableG1("g1", TASK, hands=self.config.hands)
        self.simulator = G1DdsSimulator(self.world, self.config)
        self.robot = G1("g1", TASK, self.config, clock=self.clock)
        self.link = DdsLink(self.config.domain_id, self.config.interface)
        self.states: RawReader = self.link.reader(LOW_STATE_TOPIC, messages.LOW_STATE)
        self.spy: RawReader = self.link.reader(ARM_COMMAND_TOPIC, messages.LOW_COMMAND, 5000)

    def open(self, *, connect: bool = True) -> Rig:
        self.simulator.open()
        self.simulator.reset(1)
        if connect:
            with ticking(self.simulator.tick):
                self.robot.connect()
            self.step(5)
            self.robot.hold()
        return self

    def close(self) -> None:
        self.robot.close()
        self.simulator.close()
        del self.spy, self.states
        self.link.close()

    def tick(self) -> None:
        self.simulator.tick()
        self.clock.advance_ns(s_to_ns(PERIOD_S))

    def step(self, ticks: int, setpoint: np.ndarray | None = None) -> str:
        """Alternate simulator and driver, who sends the setpoint or is idle; the last fault."""
        fault = ""
        for _ in range(ticks):
            self.tick()
            fault = self.robot.read().fault
            if setpoint is None:
                self.robot.idle()
            else:
                self.robot.send(setpoint)
        return fault

    def engage(self) -> np.ndarray:
        """Full authority at the measured pose; that pose."""
        self.robot.engage()
        pose = self.robot.measured_setpoint()
        self.step(110, pose)
        assert self.robot.weight == 1.0
        return pose

    def commands(self) -> list[LowCommand]:
        return [LowCommand(cdr) for cdr in self.spy.take()]

    def publish_state(self, edit: Callable[[LowState], None], *, seal: bool = True) -> None:
        """Put one altered state on the network, in the robot's place."""
        state = self.state()
        state.record["tick"] = state.tick + 1
        edit(state)
        cdr = state.seal() if seal else bytes(state.cdr)
        writer: RawWriter = self.link.writer(LOW_STATE_TOPIC, messages.LOW_STATE)
        writer.write(cdr)

    def state(self) -> LowState:
        """The simulated robot's next state, writable."""
        self.states.take()
        self.tick()
        return LowState(bytearray(self.states.take()[-1]))


class ticking:
    """Calls a function every 2 ms on another thread while the block runs."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._stop.wait(PERIOD_S):
                self._tick()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    rig = Rig().open()
    yield rig
    rig.close()


@pytest.fixture
def rig(shared: Rig) -> Rig:
    """The shared rig with everything as at the start: models are compiled once."""
    shared.simulator.inject(InjectFault(fault=VendorFault.NONE))
    shared.simulator.services.owner = "ai"
    shared.simulator.services.fsm_id = loco.FSM_WALK
    shared.world.pitch_rad = 0.0
    shared.robot.close()
    shared.simulator.reset(1)
    with ticking(shared.simulator.tick):
        shared.robot.connect()
    shared.step(5)
    shared.robot.hold()
    shared.spy.take()
    return shared


def weights(commands: list[LowCommand]) -> np.ndarray:
    return np.array([float(command.motor["q"][WEIGHT_MOTOR]) for command in commands])


# ---- authority --------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_engage(rig: Rig) -> None:
    rig.step(50)
    rig.step(50, rig.robot.measured_setpoint())
    rig.robot.release()
    rig.step(50)
    assert rig.commands() == []
    assert rig.simulator.weight == 0.0


def test_the_first_command_is_the_measured_pose_and_complete(rig: Rig) -> None:
    rig.robot.engage()
    pose = rig.robot.measured_setpoint()
    rig.robot.send(pose)
    (command,) = rig.commands()
    np.testing.assert_array_equal(command.motor["q"][AXES], pose.astype(np.float32))
    np.testing.assert_array_equal(command.motor["dq"], 0.0)
    assert 0.0 < weights([command])[0] <= PERIOD_S / CONFIG.weight_rise_s + 1e-6
    assert command.crc_is_good()
    assert int(command.record["mode_machine"]) == 5
    assert command.modes.tolist() == [1 if motor in AXES else 0 for motor in range(35)]
    for motor in AXES:
        scale = CONFIG.waist_gain_scale if motor in WAIST_MOTORS else 1.0
        assert command.motor["kp"][motor] == CONFIG.kp * scale
        assert command.motor["kd"][motor] == CONFIG.kd * scale
    legs = command.motor[:12]
    assert not any(legs[name].any() for name in ("q", "dq", "tau", "kp", "kd"))


def test_the_weight_rises_and_falls_in_small_equal_steps(rig: Rig) -> None:
    pose = rig.engage()
    up = weights(rig.commands())
    steps = np.diff(np.concatenate([[0.0], up]))
    assert steps.max() <= PERIOD_S / CONFIG.weight_rise_s + 1e-6
    assert (steps >= 0.0).all() and up[-1] == 1.0

    rig.robot.release()
    rig.step(5, pose)  # a stop ramp may still send
    assert 0.9 < rig.robot.weight < 1.0
    rig.step(400)
    down = weights(rig.commands())
    steps = np.diff(np.concatenate([[1.0], down]))
    assert steps.min() >= -PERIOD_S / CONFIG.weight_fall_s - 1e-6
    assert (steps <= 0.0).all()
    assert (down == 0.0).sum() == FAREWELLS
    assert down.size < 5 + 400, "it did not fall silent"
    assert rig.simulator.weight == 0.0
    rig.step(20)
    assert rig.commands() == []


def test_engaging_again_while_the_weight_falls_goes_on_from_there(rig: Rig) -> None:
    rig.engage()
    rig.robot.release()
    rig.step(100)
    left = rig.robot.weight
    assert 0.3 < left < 0.7
    rig.commands()
    rig.robot.engage()
    rig.robot.send(rig.robot.measured_setpoint())
    assert weights(rig.commands())[0] == pytest.approx(left + PERIOD_S / CONFIG.weight_rise_s, abs=1e-6)


def test_the_arms_follow_a_motion(rig: Rig) -> None:
    pose = rig.engage()
    goal = pose + OUTWARD_RAD
    for share in np.linspace(0.0, 1.0, 300):
        rig.step(1, pose + share * (goal - pose))
    velocity = rig.commands()[-1].motor["dq"][AXES]
    np.testing.assert_allclose(velocity, (goal - pose) / (299 * PERIOD_S), atol=0.02)
    assert rig.step(300, goal) == ""
    np.testing.assert_allclose(rig.robot.measured_setpoint(), goal, atol=0.03)
    np.testing.assert_allclose(rig.simulator.world.measured_setpoint(), goal, atol=0.03)
    assert rig.simulator.ignored_crc == rig.simulator.ignored_mode == 0


def test_a_target_that_is_not_finite_is_not_sent(rig: Rig) -> None:
    pose = rig.engage()
    rig.commands()
    pose[5] = np.nan
    with pytest.raises(RobotError, match="not finite"):
        rig.robot.send(pose)
    assert rig.commands() == []


def test_ramps_need_a_time() -> None:
    config = structs.replace(CONFIG, weight_fall_s=0.0)
    with pytest.raises(ConfigError, match="weight_fall_s"):
        ArmSdk(DdsBus(config), config, tick_rate_hz=500.0, max_velocity_rad_s=np.ones(17))


# ---- what the robot's side does ---------------------------------------------------------------------------------


def arm_command(edit: Callable[[LowCommand], None]) -> LowCommand:
    command = LowCommand()
    command.record["mode_machine"] = 5
    command.motor["kp"][AXES] = 60.0
    command.motor["q"][WEIGHT_MOTOR] = 1.0
    edit(command)
    return command


def test_commands_with_a_wrong_checksum_or_mode_are_ignored(rig: Rig) -> None:
    writer = rig.link.writer(ARM_COMMAND_TOPIC, messages.LOW_COMMAND)
    crc, mode = rig.simulator.ignored_crc, rig.simulator.ignored_mode
    damaged = bytearray(arm_command(lambda command: None).seal())
    damaged[500] ^= 1
    writer.write(bytes(damaged))
    rig.tick()
    assert (rig.simulator.ignored_crc, rig.simulator.weight) == (crc + 1, 0.0)

    def other_mode(command: LowCommand) -> None:
        command.record["mode_machine"] = 6

    writer.write(arm_command(other_mode).seal())
    rig.tick()
    assert (rig.simulator.ignored_mode, rig.simulator.weight) == (mode + 1, 0.0)
    writer.write(arm_command(lambda command: None).seal())
    rig.tick()
    assert rig.simulator.weight == 1.0


def test_the_last_target_stays_when_the_sender_dies(rig: Rig) -> None:
    pose = rig.engage()
    goal = pose.copy()
    goal[ELBOW] += 0.3
    rig.step(300, goal)
    for _ in range(500):
        rig.tick()
    assert rig.simulator.weight == 1.0
    assert rig.world.measured.position_rad[AXES[ELBOW]] == pytest.approx(goal[ELBOW], abs=0.03)


def test_without_authority_the_arms_stay_in_their_own_pose(rig: Rig) -> None:
    before = rig.world.measured.position_rad
    rig.step(500)
    np.testing.assert_allclose(rig.world.measured.position_rad, before, atol=0.01)


def test_a_released_motion_service_makes_arm_sdk_void(rig: Rig) -> None:
    pose = rig.engage()
    pose[ELBOW] += 0.3
    rig.simulator.services.owner = ""
    before = rig.world.measured.position_rad[AXES[ELBOW]]
    rig.step(200, pose)
    assert rig.world.measured.position_rad[AXES[ELBOW]] == pytest.approx(before, abs=0.02)


def test_a_stuck_joint_does_not_move_and_the_others_do(rig: Rig) -> None:
    pose = rig.engage()
    rig.simulator.inject(InjectFault(fault=VendorFault.STUCK_JOINT, axis=ELBOW))
    goal = pose.copy()
    goal[[ELBOW, WAIST_YAW]] += 0.15
    rig.step(300, goal)
    moved = rig.robot.measured_setpoint() - pose
    assert abs(moved[ELBOW]) < 0.02
    assert moved[WAIST_YAW] == pytest.approx(0.15, abs=0.03)
    with pytest.raises(RobotError, match="axis 17"):
        rig.simulator.inject(InjectFault(fault=VendorFault.STUCK_JOINT, axis=17))


def test_lost_packets_are_survived(rig: Rig) -> None:
    rig.simulator.inject(InjectFault(fault=VendorFault.LOST_PACKETS, share=0.3))
    pose = rig.engage()
    pose[WAIST_YAW] += 0.15
    assert rig.step(300, pose) == ""
    np.testing.assert_allclose(rig.robot.measured_setpoint(), pose, atol=0.03)
    rig.simulator.inject(InjectFault(fault=VendorFault.LOST_PACKETS, share=1.0))
    assert "no state for" in rig.step(60, pose)


# ---- faults -----------------------------------------------------------------------------------------------------


def test_a_robot_that_falls_silent_is_a_fault(rig: Rig) -> None:
    assert rig.robot.read().fault == ""
    stamp_ns = rig.robot.read().stamp_ns
    rig.clock.advance_ns(s_to_ns(CONFIG.max_state_age_s) + 10)
    reading = rig.robot.read()
    assert "no state for 50 ms" in reading.fault and "rt/lowstate" in reading.fault
    assert reading.stamp_ns == stamp_ns
    with pytest.raises(RobotError, match="cannot be engaged"):
        rig.robot.engage()


def test_a_frozen_tick_is_a_fault(rig: Rig) -> None:
    rig.simulator.inject(InjectFault(fault=VendorFault.FROZEN_STATE))
    assert rig.step(20) == ""
    assert "frozen" in rig.step(20)


def test_another_mode_machine_is_a_fault(rig: Rig) -> None:
    rig.simulator.inject(InjectFault(fault=VendorFault.WRONG_LIMITS))
    assert "mode_machine changed from 5 to 11" in rig.step(1)


def test_a_tilted_robot_is_damped_and_given_back(rig: Rig) -> None:
    pose = rig.engage()
    rig.world.pitch_rad = 0.9
    assert rig.step(10, pose) == ""
    rig.world.pitch_rad = -1.1
    fault = rig.step(3, pose)
    assert "tilted by 1.10 rad" in fault
    assert rig.simulator.services.fsm_id == loco.FSM_DAMP
    assert rig.simulator.weight == 0.0


def test_a_tilt_without_authority_is_a_fault_and_nothing_more(rig: Rig) -> None:
    rig.world.pitch_rad = 1.5
    assert "tilted by 1.50 rad" in rig.step(200)
    assert rig.simulator.services.fsm_id == loco.FSM_WALK


def set_orientation(quat_wxyz: tuple[float, ...], state: LowState) -> None:
    state.imu["quaternion"] = quat_wxyz


def test_an_imu_without_orientation_is_a_fault_but_does_not_make_the_robot_fall(rig: Rig) -> None:
    rig.engage()
    for quaternion in ((0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 0.0)):
        rig.publish_state(partial(set_orientation, quaternion))
        assert "tells no orientation" in rig.robot.read().fault
    rig.tick()
    assert rig.simulator.services.fsm_id == loco.FSM_WALK
    assert rig.robot.weight == 1.0


def test_a_motion_service_that_is_released_is_a_fault(rig: Rig) -> None:
    rig.simulator.services.owner = ""
    assert "no motion service" in rig.step(600)


def test_the_remotes_damping_is_a_fault_that_stays_until_it_stands_again(rig: Rig) -> None:
    rig.simulator.inject(InjectFault(fault=VendorFault.RUNSTOP))
    assert "is damped and holds no pose" in rig.step(300)
    assert "is damped and holds no pose" in rig.step(300)
    rig.simulator.inject(InjectFault(fault=VendorFault.NONE))
    assert rig.step(300) == ""


def test_damaged_states_are_dropped_and_a_run_of_them_is_a_fault(rig: Rig) -> None:
    stamp_ns = rig.robot.read().stamp_ns
    pose = rig.robot.measured_setpoint()
    for count in range(MAX_DAMAGED_IN_A_ROW):
        assert rig.robot.read().fault == "", count
        rig.publish_state(lambda state: state.motor["q"].fill(1.0), seal=False)
        reading = rig.robot.read()
        assert reading.stamp_ns == stamp_ns
    assert "wrong checksum" in reading.fault
    np.testing.assert_array_equal(rig.robot.measured_setpoint(), pose)
    assert rig.step(1) == ""


def test_motor_errors_and_heat_are_faults(rig: Rig) -> None:
    def error(state: LowState) -> None:
        state.motor["motorstate"][18] = 0x20

    def heat(state: LowState) -> None:
        state.motor["temperature"][15, 1] = 101

    def mild(state: LowState) -> None:
        state.motor["temperature"][15, 1] = 100

    rig.publish_state(error)
    assert "left_elbow reports error word 0x00000020" in rig.robot.read().fault

    def unknown(state: LowState) -> None:
        state.motor["q"][28] = np.nan

    rig.publish_state(unknown)
    assert "right_wrist_yaw reports a position or velocity that is not finite" in rig.robot.read().fault
    rig.publish_state(mild)
    assert rig.robot.read().fault == ""
    rig.publish_state(heat)
    assert "left_shoulder_pitch is at 101 degrees" in rig.robot.read().fault


def test_a_restart_of_the_robot_is_a_fault(rig: Rig) -> None:
    rig.step(10)

    def earlier(state: LowState) -> None:
        state.record["tick"] = 1

    rig.publish_state(earlier)
    assert "restarted" in rig.robot.read().fault


def test_a_silent_locomotion_service_is_a_fault(rig: Rig) -> None:
    services = rig.simulator.services
    answer = services.answer
    try:
        services.answer = lambda service, request, time_s: Response(id=-1, api_id=request.api_id)  # type: ignore[method-assign]
        assert "stopped answering" in rig.step(900)
    finally:
        services.answer = answer  # type: ignore[method-assign]


def test_emergency_stop_damps_and_drops_all_authority(rig: Rig) -> None:
    pose = rig.engage()
    rig.commands()
    rig.robot.emergency_stop()
    assert weights(rig.commands()).tolist() == [0.0]
    rig.tick()
    assert rig.simulator.services.fsm_id == loco.FSM_DAMP
    rig.step(50, pose)
    assert set(weights(rig.commands())) == {0.0}
    assert "damped" in rig.step(200)


# ---- connecting -------------------------------------------------------------------------------------------------


def test_no_robot_and_no_owner_are_refused(rig: Rig) -> None:
    rig.robot.close()
    hasty = G1("g1", TASK, structs.replace(CONFIG, connect_timeout_s=0.2))
    with pytest.raises(RobotError, match=r"no good state on .rt/lowstate. within 0\.2 s"):
        hasty.connect()
    rig.simulator.services.owner = ""
    with ticking(rig.simulator.tick), pytest.raises(RobotError, match="no motion service"):
        rig.robot.connect()
    rig.simulator.services.owner = "ai"
    with ticking(rig.simulator.tick):
        rig.robot.connect()
    assert rig.robot.loco.owner == "ai"


def test_a_robot_of_an_unknown_variant_is_refused(rig: Rig) -> None:
    state = rig.state()
    rig.robot.close()
    writer = rig.link.writer(LOW_STATE_TOPIC, messages.LOW_STATE)

    def publish() -> None:
        state.record["mode_machine"] = 3
        writer.write(state.seal())

    with ticking(publish), pytest.raises(RobotError, match="mode_machine 3"):
        rig.robot.connect()
    assert rig.commands() == []


def test_the_spec_is_the_simulated_robots_without_its_scene(rig: Rig) -> None:
    ours, theirs = rig.robot.spec, rig.world.spec
    assert not ours.simulated and ours.action == theirs.action
    assert ours.observation == {
        name: feature for name, feature in theirs.observation.items() if name != ENVIRONMENT_STATE
    }
    assert rig.robot.read().features.keys() == ours.observation.keys()
    assert rig.robot.external_effort() is None
    rig.robot.close()
    with pytest.raises(RobotError, match="not connected"):
        rig.robot.read()


def test_unknown_back_ends_and_missing_ros_packages_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="choose one of dds, ros2"):
        G1("g1", TASK, CONFIG, backend="udp")
    try:
        import unitree_hg  # noqa: F401
    except ImportError:
        with pytest.raises((RobotError, MissingDependencyError), match="unitree_ros2"):
            Ros2Bus(CONFIG).open()
        return
    pytest.skip("Unitree's ROS 2 packages are installed here")


WITHOUT_CYCLONEDDS = """
import sys
sys.modules["cyclonedds"] = None
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.driver import G1
from robot_stack.core.errors import MissingDependencyError
robot = G1("g1", "g1_bimanual_lift", G1BusConfig())
assert robot.spec.model == "unitree_g1"
try:
    robot.connect()
except MissingDependencyError as error:
    print(error)
"""


def test_without_cyclonedds_the_driver_says_what_to_install() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_CYCLONEDDS], capture_output=True, text=True, check=True, timeout=120
    )
    assert "robot-stack[g1]" in result.stdout


# ---- services ---------------------------------------------------------------------------------------------------


def test_walking_is_bounded_in_time_and_speed(rig: Rig) -> None:
    for duration_s in (864000.0, 0.51, 0.0, -1.0, math.inf, math.nan):
        with pytest.raises(RobotError, match=r"at most 0\.5 s"):
            loco.velocity_parameter(0.1, 0.0, 0.0, duration_s)
    with pytest.raises(RobotError, match="finite"):
        loco.velocity_parameter(math.nan, 0.0, 0.0, 0.1)
    assert loco.velocity_parameter(9.0, -9.0, 9.0, 0.5) == {"velocity": [0.3, -0.3, 0.3], "duration": 0.5}

    rig.robot.loco.move(0.2, 0.0, -0.1, 0.1, rig.clock.now_ns())
    rig.step(2)
    assert rig.simulator.base_velocity == (0.2, 0.0, -0.1)
    rig.step(60)
    assert rig.simulator.base_velocity == (0.0, 0.0, 0.0)


class MemoryLink:
    """Requests and responses in lists."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.responses: list[bytes] = []

    def send_request(self, service: str, cdr: bytes) -> None:
        self.requests.append(decode_request(cdr))

    def take_responses(self, service: str) -> list[bytes]:
        taken, self.responses = self.responses, []
        return taken


def test_calls_are_repeated_and_given_up_and_others_answers_ignored() -> None:
    link = MemoryLink()
    caller = ServiceCaller(link, SPORT, timeout_s=0.1)
    call = caller.call(7001, {}, 0, tries=3)
    other = caller.call(7002, {}, 0)
    for now_s in (0.05, 0.15, 0.2, 0.3, 0.35, 0.45):
        link.responses = [encode_response(Response(id=call.request.id + 77, api_id=7001)), b"damaged"]
        caller.poll(s_to_ns(now_s))
    assert [request.id for request in link.requests].count(call.request.id) == 3
    assert call.done and "did not answer" in call.failed and other.done
    link.responses = [encode_response(Response(id=call.request.id, api_id=7001))]
    caller.poll(s_to_ns(0.5))
    assert call.response is None

    call = caller.call(7001, {}, s_to_ns(1.0))
    link.responses = [encode_response(Response(id=call.request.id, api_id=7001, data='{"data": 500}'))]
    caller.poll(s_to_ns(1.01))
    assert call.response is not None and loco.integer_answer(call.response) == 500


@pytest.mark.parametrize("parameter", ["", "[]", '{"data": "x"}', '{"velocity": 3}', "not json", '{"velocity": [1]}'])
def test_bad_requests_are_answered_with_an_error(rig: Rig, parameter: str) -> None:
    writer = rig.link.writer(request_topic(SPORT), messages.REQUEST)
    reader = rig.link.reader(response_topic(SPORT), messages.RESPONSE, 8)
    for api_id in (7101, 7105, 4711):
        writer.write(encode_request(Request(id=9, api_id=api_id, parameter=parameter)))
        rig.tick()
        answers = [decode_response(cdr) for cdr in reader.take()]
        assert [answer.code != 0 for answer in answers if answer.id == 9] == [True]
    assert rig.simulator.services.fsm_id == loco.FSM_WALK


def test_garbage_answers_say_nothing() -> None:
    for data in ("", "null", "7", "[]", '{"data": "x"}', "{"):
        answer = Response(id=1, api_id=7001, data=data)
        assert loco.integer_answer(answer) is None
        assert loco.motion_owner(answer) == ""
    assert loco.motion_owner(Response(id=1, api_id=1001, data=json.dumps({"name": "ai"}))) == "ai"


# ---- safe state -------------------------------------------------------------------------------------------------


@pytest.fixture
def keeper() -> Iterator[G1DdsSafeState]:
    safe_state = G1DdsSafeState(CONFIG)
    safe_state.connect()
    yield safe_state
    safe_state.close()


def test_the_safe_state_takes_over_a_dead_servers_authority_and_gives_it_back(rig: Rig, keeper: G1DdsSafeState) -> None:
    pose = rig.engage()
    goal = pose.copy()
    goal[ELBOW] += 0.3
    for _ in range(300):
        rig.step(1, goal)
        keeper.watch()
    assert keeper.weight == 1.0
    rig.commands()
    writer = rig.link.writer(request_topic(SPORT), messages.REQUEST)
    parameter = json.dumps(loco.velocity_parameter(0.3, 0.0, 0.0, 0.5))
    writer.write(encode_request(Request(id=1, api_id=loco.SET_VELOCITY, parameter=parameter)))
    rig.tick()
    assert rig.simulator.base_velocity == (0.3, 0.0, 0.0)

    measured = rig.world.measured.position_rad[AXES]
    started_s = time.monotonic()
    with ticking(rig.simulator.tick):
        keeper.make_safe()
    assert time.monotonic() - started_s < CONFIG.weight_fall_s + 5.0
    commands = rig.commands()
    down = weights(commands)
    steps = np.diff(np.concatenate([[1.0], down]))
    assert (steps <= 0.0).all() and steps.min() >= -PERIOD_S / CONFIG.weight_fall_s - 1e-6
    assert down[-1] == 0.0 and rig.simulator.weight == 0.0
    assert all(command.crc_is_good() and int(command.record["mode_machine"]) == 5 for command in commands)
    np.testing.assert_allclose(commands[0].motor["q"][AXES], measured, atol=1e-3)
    np.testing.assert_array_equal(commands[0].motor["q"][AXES], commands[-1].motor["q"][AXES])
    assert rig.simulator.base_velocity == (0.0, 0.0, 0.0)
    assert rig.simulator.services.fsm_id == loco.FSM_WALK


SERVER = """
import sys, time
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.driver import G1
robot = G1("g1", "g1_bimanual_lift", G1BusConfig(domain_id=int(sys.argv[1]), weight_rise_s=0.2, max_state_age_s=5.0))
robot.connect()
robot.engage()
pose = robot.measured_setpoint()
while True:
    robot.read()
    robot.send(pose)
    time.sleep(0.002)
"""


def test_a_killed_server_in_another_process_is_made_safe_within_200_ms(rig: Rig, keeper: G1DdsSafeState) -> None:
    def tick_and_watch() -> None:
        rig.simulator.tick()
        keeper.watch()

    server = subprocess.Popen([sys.executable, "-c", SERVER, str(DOMAIN)])
    try:
        with ticking(tick_and_watch):
            deadline_s = time.monotonic() + 60.0
            while rig.simulator.weight < 1.0:
                assert time.monotonic() < deadline_s and server.poll() is None, "the server did not take authority"
                time.sleep(0.01)
    finally:
        server.kill()
        server.wait()
    for _ in range(200):
        rig.simulator.tick()
    assert rig.simulator.weight == 1.0
    weight_seen: list[tuple[float, float]] = []

    def tick_and_note() -> None:
        rig.simulator.tick()
        weight_seen.append((time.monotonic(), rig.simulator.weight))

    with ticking(tick_and_note):
        killed_s = time.monotonic()
        keeper.make_safe()
    first_effect_s = next(when for when, weight in weight_seen if weight < 1.0)
    assert first_effect_s - killed_s < 0.2
    assert rig.simulator.weight == 0.0


def test_the_safe_state_is_silent_until_then_and_never_takes_authority(rig: Rig, keeper: G1DdsSafeState) -> None:
    for _ in range(50):
        rig.tick()
        keeper.watch()
    assert rig.commands() == []
    with ticking(rig.simulator.tick):
        keeper.make_safe()
    assert set(weights(rig.commands())) == {0.0}


def test_the_safe_state_works_without_any_state_of_the_robot(rig: Rig) -> None:
    pose = rig.engage()
    keeper = G1DdsSafeState(CONFIG)
    keeper.connect()
    rig.robot.send(pose)
    keeper.watch()
    rig.commands()
    keeper.make_safe()
    keeper.close()
    commands = rig.commands()
    np.testing.assert_allclose(commands[0].motor["q"][AXES], pose, atol=1e-6)
    assert weights(commands)[0] > 0.9 and weights(commands)[-1] == 0.0


@pytest.mark.parametrize("with_state", [True, False])
def test_the_safe_state_survives_whatever_a_server_sent_last(
    rig: Rig, keeper: G1DdsSafeState, with_state: bool
) -> None:
    def nonsense(command: LowCommand) -> None:
        command.motor["q"].fill(np.nan)
        command.motor["tau"].fill(np.inf)

    if with_state:
        rig.tick()
    rig.link.writer(ARM_COMMAND_TOPIC, messages.LOW_COMMAND).write(arm_command(nonsense).seal())
    keeper.watch()
    rig.commands()
    keeper.make_safe()
    commands = rig.commands()
    assert weights(commands)[0] == (pytest.approx(1.0, abs=0.01) if with_state else 0.0)
    assert weights(commands)[-1] == 0.0
    assert all(np.isfinite(command.motor[name]).all() for command in commands for name in ("q", "tau"))


def test_the_safe_state_leaves_a_tilted_robot_alone_that_it_has_no_authority_over(
    rig: Rig, keeper: G1DdsSafeState
) -> None:
    rig.world.pitch_rad = 1.2
    rig.tick()
    keeper.watch()
    with ticking(rig.simulator.tick):
        keeper.make_safe()
    assert rig.simulator.services.fsm_id == loco.FSM_WALK


def test_the_safe_state_damps_a_robot_that_tilts(rig: Rig, keeper: G1DdsSafeState) -> None:
    pose = rig.engage()
    rig.world.pitch_rad = 1.2
    rig.robot.send(pose)
    rig.tick()
    keeper.watch()
    with ticking(rig.simulator.tick):
        keeper.make_safe()
    assert rig.simulator.services.fsm_id == loco.FSM_DAMP
    assert rig.simulator.weight == 0.0


# ---- hands ------------------------------------------------------------------------------------------------------


def test_hand_mode_bytes_and_stop_form() -> None:
    assert dex3.mode_byte(3) == 0b0001_0011
    assert dex3.mode_byte(6, timeout=True) == 0b1001_0110
    stop = HandCommand(dex3.stop_message())
    assert stop.motor["mode"].tolist() == [0x90 + motor for motor in range(7)]
    assert not any(stop.motor[name].any() for name in ("q", "dq", "tau", "kp", "kd"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("order", sorted(dex3.ORDERS))
def test_openings_survive_the_way_to_joints_and_back(side: str, order: str) -> None:
    synergy = dex3.HandSynergy(side, structs.replace(CONFIG, dex3_right_order=order))
    for opening in np.linspace(0.0, 1.0, 11):
        assert synergy.opening(synergy.joints(float(opening))) == pytest.approx(opening, abs=1e-9)
    assert (synergy.joints(2.0) == synergy.joints(1.0)).all()
    sign = -1.0 if side == "right" else 1.0
    closed = sign * synergy.joints(0.0)
    assert closed[1] > 0.0 and closed[2] > 0.0 and (closed[3:] < 0.0).all()


def test_an_unknown_finger_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="index_first"):
        dex3.HandSynergy("right", structs.replace(CONFIG, dex3_right_order="thumb_first"))


def test_the_hands_follow_and_are_let_go() -> None:
    config = structs.replace(CONFIG, hands="dex3")
    rig = Rig(config).open()
    try:
        spies = [rig.link.reader(hand_command_topic(side), messages.HAND_COMMAND, 500) for side in ("left", "right")]
        rig.step(20)
        assert [spy.take() for spy in spies] == [[], []]
        pose = rig.engage()
        np.testing.assert_allclose(pose[17:], 1.0, atol=0.05)
        pose[17:] = 0.2, 0.7
        rig.step(400, pose)
        np.testing.assert_allclose(rig.robot.measured_setpoint()[17:], [0.2, 0.7], atol=0.08)
        assert 95 <= len(spies[0].take()) <= 110
        rig.robot.release()
        rig.step(300)
        for spy in spies:
            assert HandCommand(spy.take()[-1]).motor["kp"].sum() == 0.0
    finally:
        rig.close()


# ---- the same driver through ROS 2 ------------------------------------------------------------------------------


class RosRobot:
    """A robot on ROS 2 topics: states at every spin, answers to requests, and what arm_sdk was told, all serialised."""

    def __init__(self, domain_id: int, message_type: type) -> None:
        self.link = Ros2Link("robot", domain_id=domain_id)
        self.link.open()
        self.services = SimulatedServices()
        self.commands: list[LowCommand] = []
        self._state = LowState()
        self._state.record["mode_machine"] = 5
        self._state.imu["quaternion"] = 1.0, 0.0, 0.0, 0.0
        node = self.link.node
        self._states = node.create_publisher(message_type, "/lowstate", 1)
        node.create_subscription(message_type, "/arm_sdk", self._take_command, 10, raw=True)
        self._answers = {}
        for service in SERVICES:
            self._answers[service] = node.create_publisher(message_type, f"/api/{service}/response", 10)
            answer = partial(self._answer, service)
            node.create_subscription(message_type, f"/api/{service}/request", answer, 10, raw=True)

    def _take_command(self, cdr: bytes) -> None:
        self.commands.append(LowCommand(cdr))

    def _answer(self, service: str, cdr: bytes) -> None:
        response = self.services.answer(service, decode_request(cdr), 0.0)
        self._answers[service].publish(encode_response(response))

    def tick(self) -> None:
        self._state.record["tick"] += 1
        self._states.publish(self._state.seal())
        self.link.spin()


def test_the_driver_speaks_the_same_bytes_through_ros_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real ROS 2 nodes and topics. Unitree's message packages are not to be had here: their names stand on a message of
    ROS 2, which the middleware never looks into, because everything is serialised already."""
    std_msgs = pytest.importorskip("std_msgs.msg", reason="ROS 2's std_msgs is not installed")
    names = {"unitree_hg": ("LowCmd", "LowState", "HandCmd", "HandState"), "unitree_api": ("Request", "Response")}
    for package, types in names.items():
        module = ModuleType(f"{package}.msg")
        for name in types:
            setattr(module, name, std_msgs.String)
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.msg", module)

    config = structs.replace(CONFIG, domain_id=claim_domain(), weight_fall_s=0.1, max_state_age_s=5.0)
    vendor, robot = RosRobot(config.domain_id, std_msgs.String), G1("g1", TASK, config, backend="ros2")
    try:
        with ticking(vendor.tick):
            robot.connect()
            robot.engage()
            for _ in range(100):
                assert robot.read().fault == ""
                robot.send(np.full(17, 0.25))
                time.sleep(PERIOD_S)
            robot.emergency_stop()
            deadline_s = time.monotonic() + 20.0
            while vendor.services.fsm_id != loco.FSM_DAMP or weights(vendor.commands)[-1] > 0.0:
                assert time.monotonic() < deadline_s, "damping or weight 0 did not arrive within 20 s"
                robot.read()
                robot.idle()
                time.sleep(PERIOD_S)
        assert all(command.crc_is_good() for command in vendor.commands)
        assert weights(vendor.commands).max() > 0.3
        np.testing.assert_array_equal(vendor.commands[-1].motor["q"][AXES], 0.25)
    finally:
        robot.close()
        vendor.link.close()
