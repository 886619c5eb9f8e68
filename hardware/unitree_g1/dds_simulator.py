"""The G1's side of its DDS network with our MuJoCo world behind it: states at 500 Hz, `arm_sdk`, hands, services.

It copies what the robot does not do: no check that a target is finite or in range, none of its age. A command is
ignored only for a wrong checksum or mode_machine. The last target stays in force when its sender dies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.vendor import VendorSimulator
from hardware.unitree_g1 import messages
from hardware.unitree_g1.bus import (
    ARM_COMMAND_TOPIC,
    LOW_STATE_TOPIC,
    SERVICE_DEPTH,
    hand_command_topic,
    hand_state_topic,
    request_topic,
    response_topic,
)
from hardware.unitree_g1.codec import MOTORS, HandCommand, HandState, LowCommand, LowState
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.dds import DdsLink, RawReader, RawWriter
from hardware.unitree_g1.dds_services import SimulatedServices
from hardware.unitree_g1.dex3 import HandSynergy
from hardware.unitree_g1.embodiment import REST_ARMS_RAD
from hardware.unitree_g1.joints import ARM_SDK_MOTORS, MOTOR_COUNT, SIDES, WEIGHT_MOTOR
from hardware.unitree_g1.kinematics import G1Kinematics
from hardware.unitree_g1.limits import default_limits
from hardware.unitree_g1.loco import FSM_DAMP, FSM_WALK
from hardware.unitree_g1.rpc import SERVICES, decode_request, encode_response
from hardware.unitree_g1.sim import SimulatedG1
from robot_stack.core.errors import MessageError, RobotError
from robot_stack.core.scene_messages import InjectFault, VendorFault

FloatVector = NDArray[np.float64]

PERIOD_S = 0.002
MODE_MACHINE = 5
OTHER_MODE_MACHINE = 11

HOLD_KP, HOLD_KD = 300.0, 5.0
STUCK_KP, STUCK_KD = 2000.0, 50.0
DAMP_KD = 5.0
ROOM_TEMPERATURE_C = 30

_SDK = np.array(ARM_SDK_MOTORS)


@dataclass(slots=True)
class _Targets:
    """Of 29 motors, (29,) each."""

    q: FloatVector
    dq: FloatVector
    kp: FloatVector
    kd: FloatVector
    tau: FloatVector


@dataclass(frozen=True, slots=True)
class _Network:
    link: DdsLink
    readers: dict[str, RawReader]
    writers: dict[str, RawWriter]


class G1DdsSimulator(VendorSimulator):
    """See `VendorSimulator`. Below weight 1 the arms are blended with the pose that locomotion holds by itself: the
    start pose of the scene.

    `ignored_crc`, `ignored_mode`: how many commands were dropped for a wrong checksum or mode_machine.
    """

    def __init__(self, world: SimulatedG1, config: G1BusConfig) -> None:
        self._world = world
        self._config = config
        self._network: _Network | None = None
        self._state = _new_state()
        self._hand_states = {side: HandState() for side in SIDES}
        self._synergies = {side: HandSynergy(side, config) for side in SIDES}
        self._own: _Targets | None = None
        self._kinematics: G1Kinematics | None = None
        self._command: LowCommand | None = None
        self._opening: FloatVector = np.ones(2)
        self._fault = InjectFault(fault=VendorFault.NONE)
        self._stuck_rad = 0.0
        self._rng = np.random.default_rng(0)
        self._frozen = b""
        self._tick = 0
        self.services = SimulatedServices()
        self.ignored_crc = 0
        self.ignored_mode = 0

    @property
    def world(self) -> SimulatedG1:
        return self._world

    @property
    def period_s(self) -> float:
        return PERIOD_S

    @property
    def weight(self) -> float:
        """Authority of arm_sdk in force now; the robot takes whatever it is told, cut to 0..1."""
        if self._command is None:
            return 0.0
        return min(max(float(self._command.motor["q"][WEIGHT_MOTOR]), 0.0), 1.0)

    @property
    def base_velocity(self) -> tuple[float, float, float]:
        """What the base is told to do now: forward, left (m/s), turn (rad/s). The simulated pelvis does not move."""
        return self.services.velocity(self._tick * PERIOD_S)

    # ---- life -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._world.connect()
        self._forget()
        link = DdsLink(self._config.domain_id, self._config.interface)
        readers = {ARM_COMMAND_TOPIC: link.reader(ARM_COMMAND_TOPIC, messages.LOW_COMMAND)}
        writers = {LOW_STATE_TOPIC: link.writer(LOW_STATE_TOPIC, messages.LOW_STATE)}
        for service in SERVICES:
            request, response = request_topic(service), response_topic(service)
            readers[request] = link.reader(request, messages.REQUEST, SERVICE_DEPTH)
            writers[response] = link.writer(response, messages.RESPONSE, SERVICE_DEPTH)
        for side in SIDES if self._config.hands != "none" else ():
            command, state = hand_command_topic(side), hand_state_topic(side)
            readers[command] = link.reader(command, messages.HAND_COMMAND)
            writers[state] = link.writer(state, messages.HAND_STATE)
        self._network = _Network(link, readers, writers)

    def close(self) -> None:
        if self._network is not None:
            self._network.readers.clear()
            self._network.writers.clear()
            self._network.link.close()
            self._network = None
        self._world.close()

    @property
    def _open(self) -> _Network:
        if self._network is None:
            raise RobotError("the simulated G1 is not on the network; call open() first")
        return self._network

    def reset(self, seed: int) -> None:
        self._world.reset(seed)
        self._forget()
        if self._fault.fault not in (VendorFault.RUNSTOP, VendorFault.REFLEX):
            self.services.fsm_id = FSM_WALK

    def _forget(self) -> None:
        measured = self._world.measured
        gains = np.full(MOTOR_COUNT, HOLD_KP), np.full(MOTOR_COUNT, HOLD_KD)
        gravity = self._gravity_torque(measured.position_rad)
        self._own = _Targets(measured.position_rad, np.zeros(MOTOR_COUNT), *gains, gravity)
        self._command = None
        self._opening = measured.gripper
        self._rng = np.random.default_rng(0)

    def _gravity_torque(self, position_rad: FloatVector) -> FloatVector:
        if self._kinematics is None:
            hands = self._config.hands
            self._kinematics = G1Kinematics(default_limits(hands, MODE_MACHINE), hands, REST_ARMS_RAD)
        return self._kinematics.gravity_torque(position_rad)

    def inject(self, fault: InjectFault) -> None:
        """LOST_PACKETS, STUCK_JOINT, FROZEN_STATE, WRONG_LIMITS (another mode_machine); RUNSTOP and REFLEX damp the
        robot, as its remote does. NONE ends all of it; a damped robot then stands again."""
        self._fault = fault
        self._frozen = bytes(self._state.cdr)
        if fault.fault is VendorFault.STUCK_JOINT:
            if not 0 <= fault.axis < len(_SDK):
                raise RobotError(f"the simulated G1 has no axis {fault.axis} to get stuck; choose 0 to {len(_SDK) - 1}")
            self._stuck_rad = float(self._world.measured.position_rad[_SDK[fault.axis]])
        if fault.fault in (VendorFault.RUNSTOP, VendorFault.REFLEX):
            self.services.fsm_id = FSM_DAMP
        elif fault.fault is VendorFault.NONE and self.services.limp:
            self.services.fsm_id = FSM_WALK

    def _lost(self) -> bool:
        return self._fault.fault is VendorFault.LOST_PACKETS and bool(self._rng.random() < self._fault.share)

    # ---- one period -------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self._take_commands()
        self._answer_requests()
        targets = self._targets()
        self._world.command_motors(targets.q, targets.dq, targets.kp, targets.kd, targets.tau)
        self._world.command_grippers(self._opening)
        self._world.advance(PERIOD_S)
        self._tick += 1
        self._publish()

    def _take_commands(self) -> None:
        readers = self._open.readers
        for cdr in readers[ARM_COMMAND_TOPIC].take():
            if not self._lost():
                self._take_arm_command(cdr)
        for index, side in enumerate(SIDES):
            if hand_command_topic(side) in readers:
                for cdr in readers[hand_command_topic(side)].take():
                    self._take_hand_command(index, HandCommand(cdr))

    def _take_arm_command(self, cdr: bytes) -> None:
        command = LowCommand(cdr)
        if not command.crc_is_good():
            self.ignored_crc += 1
        elif int(command.record["mode_machine"]) != self._mode_machine:
            self.ignored_mode += 1
        else:
            self._command = command

    @property
    def _mode_machine(self) -> int:
        return OTHER_MODE_MACHINE if self._fault.fault is VendorFault.WRONG_LIMITS else MODE_MACHINE

    def _take_hand_command(self, index: int, command: HandCommand) -> None:
        """A hand without gains, as after its stop message, stays where it is."""
        if (command.motor["kp"] > 0.0).any():
            self._opening[index] = self._synergies[SIDES[index]].opening(command.motor["q"].astype(np.float64))
        else:
            self._opening[index] = self._world.measured.gripper[index]

    def _answer_requests(self) -> None:
        network = self._open
        for service in SERVICES:
            for cdr in network.readers[request_topic(service)].take():
                try:
                    request = decode_request(cdr)
                except MessageError:
                    continue
                response = self.services.answer(service, request, self._tick * PERIOD_S)
                if not request.no_reply:
                    network.writers[response_topic(service)].write(encode_response(response))

    def _targets(self) -> _Targets:
        """What the motors are told: locomotion's own pose, arm_sdk blended over it, limp if damped."""
        own = self._own
        if own is None:
            raise RobotError("the simulated G1 is not on the network; call open() first")
        if self.services.limp:
            damping = np.full(MOTOR_COUNT, DAMP_KD if self.services.fsm_id == FSM_DAMP else 0.0)
            zero = np.zeros(MOTOR_COUNT)
            return _Targets(own.q, zero, zero, damping, zero)
        targets = _Targets(own.q.copy(), own.dq.copy(), own.kp.copy(), own.kd.copy(), own.tau.copy())
        weight = self.weight if self.services.owner else 0.0
        if self._command is not None and weight > 0.0:
            for name in ("q", "dq", "kp", "kd", "tau"):
                mine = getattr(targets, name)
                mine[_SDK] = (1.0 - weight) * mine[_SDK] + weight * self._command.motor[name][_SDK]
        if self._fault.fault is VendorFault.STUCK_JOINT:
            motor = _SDK[self._fault.axis]
            targets.q[motor], targets.dq[motor], targets.tau[motor] = self._stuck_rad, 0.0, 0.0
            targets.kp[motor], targets.kd[motor] = STUCK_KP, STUCK_KD
        return targets

    def _publish(self) -> None:
        network = self._open
        if self._fault.fault is VendorFault.FROZEN_STATE:
            network.writers[LOW_STATE_TOPIC].write(self._frozen)
            return
        self._fill_state()
        cdr = self._state.seal()
        if not self._lost():
            network.writers[LOW_STATE_TOPIC].write(cdr)
        for index, side in enumerate(SIDES):
            writer = network.writers.get(hand_state_topic(side))
            if writer is not None:
                state = self._hand_states[side]
                state.motor["q"] = self._synergies[side].joints(float(self._world.measured.gripper[index]))
                writer.write(bytes(state.cdr))

    def _fill_state(self) -> None:
        state, motor = self._state, self._state.motor
        motor["q"][:MOTOR_COUNT], motor["dq"][:MOTOR_COUNT], motor["tau_est"][:MOTOR_COUNT] = self._world.motor_state()
        quat_wxyz, state.imu["gyroscope"], state.imu["accelerometer"] = self._world.imu()
        state.imu["quaternion"] = quat_wxyz
        state.imu["rpy"] = _roll_pitch_yaw(quat_wxyz)
        state.record["tick"] = self._tick % 2**32
        state.record["mode_machine"] = self._mode_machine


def _new_state() -> LowState:
    """What never changes: every motor is enabled and at room temperature."""
    state = LowState()
    state.modes = np.array([1] * MOTOR_COUNT + [0] * (MOTORS - MOTOR_COUNT), dtype=np.uint8)
    state.motor["temperature"][:MOTOR_COUNT] = ROOM_TEMPERATURE_C
    return state


def _roll_pitch_yaw(quat_wxyz: FloatVector) -> tuple[float, float, float]:
    w, x, y, z = (float(value) for value in quat_wxyz)
    roll = math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y))
    pitch = math.asin(min(max(2.0 * (w * y - z * x), -1.0), 1.0))
    return roll, pitch, math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
