"""The Unitree G1's upper body: arms and waist through `arm_sdk`, over its own locomotion; optionally Dex3 hands.

Tried against our simulator of the robot's network only, never on hardware. The robot's side checks neither range nor
age of a command, and keeps the last one for ever: everything between an action and the robot is ours.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from hardware.unitree_g1.actions import PALM_DELTA
from hardware.unitree_g1.arm_sdk import AXES, ArmSdk
from hardware.unitree_g1.bus import LOW_STATE_TOPIC, G1Bus
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.dex3 import MAX_STATE_AGE_S, Dex3Hands
from hardware.unitree_g1.embodiment import G1Embodiment, G1Measured
from hardware.unitree_g1.joints import ARM_SDK_MOTORS
from hardware.unitree_g1.loco import FSM_DAMP, Loco
from hardware.unitree_g1.rpc import MOTION_SWITCHER, SPORT
from hardware.unitree_g1.state import StateWatch
from robot_stack.core.clock import Clock, MonotonicClock, Pacer
from robot_stack.core.errors import ConfigError, RobotError, RobotStackError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Reading, Robot, RobotGeometry, Setpoint, SetpointLimits
from robot_stack.core.specs import RobotSpec

logger = logging.getLogger(__name__)

BACKENDS = ("dds", "ros2")
_CONNECT_POLL_S = 0.005
_NO_OWNER = (
    "no motion service drives the robot's motors, so 'rt/arm_sdk' has no effect; leave debug mode and start one with "
    "the remote"
)
_AXES = list(ARM_SDK_MOTORS)


def make_bus(backend: str, config: G1BusConfig) -> G1Bus:
    """The back-end's connection, not yet open. ConfigError for an unknown one."""
    if backend == "dds":
        from hardware.unitree_g1.dds_bus import DdsBus

        return DdsBus(config)
    if backend == "ros2":
        from hardware.unitree_g1.ros2_bus import Ros2Bus

        return Ros2Bus(config)
    raise ConfigError(f"the G1 has no back-end '{backend}'; choose one of {', '.join(BACKENDS)}")


class G1(Robot):
    """A driver, see `Robot`. A setpoint is (17,): arms and waist in rad, then the two grippers' openings with hands.

    Nothing is sent on `rt/arm_sdk` before `engage`. From there every `send` is one message; `release` and `idle` ramp
    the weight back to 0 and then fall silent. `emergency_stop` damps the whole robot: one that stands, falls.

    Args:
        backend: `dds` or `ros2`. bus: a connection to use instead of the back-end's own. action_space: `palm_delta` or
            `joint_delta`.
    """

    def __init__(
        self,
        name: str,
        task: str,
        config: G1BusConfig,
        *,
        backend: str = "dds",
        bus: G1Bus | None = None,
        action_space: str = PALM_DELTA,
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 500.0,
        clock: Clock | None = None,
    ) -> None:
        if bus is None and backend not in BACKENDS:
            raise ConfigError(f"the G1 has no back-end '{backend}'; choose one of {', '.join(BACKENDS)}")
        self._embodiment = G1Embodiment(
            name,
            task,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            simulated=False,
            with_environment=False,
            hands=config.hands,
            action_space=action_space,
        )
        self._name = name
        self._config = config
        self._backend = backend
        self._bus = bus
        self._clock = clock or MonotonicClock()
        self._opened: _Opened | None = None

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RobotSpec:
        return self._embodiment.spec

    @property
    def limits(self) -> SetpointLimits:
        return self._embodiment.limits

    @property
    def geometry(self) -> RobotGeometry | None:
        return self._embodiment.geometry

    @property
    def weight(self) -> float:
        """Authority over the arms now, 0 to 1."""
        return self._open.arms.weight

    @property
    def loco(self) -> Loco:
        """The locomotion service: state machine, damping, walking for a bounded time."""
        return self._open.loco

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self._name}' is not connected; call connect() first")
        return self._opened

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Wait for the robot's state, take the limits of its hardware variant, and see who drives its motors."""
        if self._opened is not None:
            return
        opened = _Opened(self._bus or make_bus(self._backend, self._config), self._config, self._embodiment)
        opened.bus.open()
        try:
            deadline_s = time.monotonic() + self._config.connect_timeout_s
            self._await_state(opened, deadline_s)
            self._embodiment.connect(opened.watch.state.mode_machine)
            opened.watch.expect(opened.watch.state.mode_machine)
            self._await_hands(opened, deadline_s)
            self._check_owner(opened, deadline_s)
        except RobotStackError:
            opened.bus.close()
            self._embodiment.close()
            raise
        self._opened = opened
        self.hold()

    def _await_state(self, opened: _Opened, deadline_s: float) -> None:
        while opened.watch.newest is None:
            self._poll(opened)
            if time.monotonic() > deadline_s:
                damaged = f"; {opened.watch.damaged} had a wrong checksum or form" if opened.watch.damaged else ""
                raise RobotError(
                    f"{self._name}: no good state on '{LOW_STATE_TOPIC}' within {self._config.connect_timeout_s:g} s "
                    f"(domain_id {self._config.domain_id}, interface '{self._config.interface}'){damaged}; is the "
                    "robot on, and this network card on its network?"
                )
            time.sleep(_CONNECT_POLL_S)

    def _await_hands(self, opened: _Opened, deadline_s: float) -> None:
        while opened.hands is not None and opened.hands.missing:
            if time.monotonic() > deadline_s:
                raise RobotError(
                    f"{self._name}: no state of the {opened.hands.missing} hand within "
                    f"{self._config.connect_timeout_s:g} s; is its service running? Without hands, set hands: none"
                )
            time.sleep(_CONNECT_POLL_S)
            self._poll(opened)

    def _check_owner(self, opened: _Opened, deadline_s: float) -> None:
        """arm_sdk is a part of the motion service: without one that runs, nobody would follow."""
        loco = opened.loco
        while loco.owner is None or loco.fsm_id is None:
            if time.monotonic() > deadline_s:
                silent = MOTION_SWITCHER if loco.owner is None else SPORT
                raise RobotError(
                    f"{self._name}: the service '{silent}' did not answer within {self._config.connect_timeout_s:g} s, "
                    "so nobody knows what drives the motors; restart the robot"
                )
            time.sleep(_CONNECT_POLL_S)
            self._poll(opened)
        if not loco.owner:
            raise RobotError(f"{self._name}: {_NO_OWNER}")
        logger.info(
            "%s: mode_machine %d, motors driven by motion service '%s' in state %d",
            *(self._name, opened.watch.state.mode_machine, loco.owner, loco.fsm_id),
        )

    def close(self) -> None:
        """Give authority back over `weight_fall_s`, let the hands go, leave the network."""
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        opened.arms.release()
        pacer = Pacer(1.0 / self.spec.tick_rate_hz)
        while not opened.arms.silent:
            pacer.wait()
            self._poll(opened)
            self._damp_if_tilted(opened)
            opened.arms.idle()
        if opened.hands is not None:
            opened.hands.stop()
        opened.bus.close()
        self._embodiment.close()

    # ---- control ----------------------------------------------------------------------------------------------

    def measured_setpoint(self) -> Setpoint:
        return self._embodiment.setpoint_of(self._measured())

    def _measured(self) -> G1Measured:
        opened = self._open
        watch = opened.watch
        return G1Measured(
            position_rad=watch.positions(),
            velocity_rad_s=watch.velocities(),
            effort_nm=watch.efforts(),
            gripper=opened.hands.opening.copy() if opened.hands is not None else np.zeros(2),
        )

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self._measured())

    def hold(self) -> None:
        self._embodiment.hold(self._measured())

    def engage(self) -> None:
        """Begin to raise the weight from the measured pose. RobotError while the robot reports a fault."""
        opened = self._open
        self._poll(opened)
        fault = self._fault(opened)
        if fault:
            raise RobotError(f"{fault} (so it cannot be engaged)")
        state = opened.watch.state
        opened.arms.engage(opened.watch.positions()[_AXES], int(state.record["mode_pr"]), state.mode_machine)

    def send(self, setpoint: Setpoint) -> None:
        opened = self._open
        opened.arms.send(setpoint[:AXES], self._embodiment.gravity_torque(self._measured())[_AXES])
        if opened.hands is not None and not opened.arms.silent:
            opened.hands.send(setpoint[AXES:])

    def release(self) -> None:
        """Begin to give authority back: the last target stays while its weight falls in `idle`."""
        self._open.arms.release()

    def idle(self) -> None:
        opened = self._open
        opened.arms.idle()
        if opened.hands is not None and opened.arms.silent:
            opened.hands.stop()

    def emergency_stop(self) -> None:
        """Damp the robot and give the arms back. It is sent at once and repeated by `read` until it is answered."""
        opened = self._open
        opened.loco.damp(self._clock.now_ns())
        opened.arms.drop()
        if opened.hands is not None:
            opened.hands.stop()

    # ---- observation ------------------------------------------------------------------------------------------

    def read(self) -> Reading:
        """`stamp_ns`: host time at which the newest good state was taken from the network. A robot that tilts over
        while we have authority is damped."""
        opened = self._open
        self._poll(opened)
        self._damp_if_tilted(opened)
        return Reading(
            stamp_ns=opened.watch.stamp_ns,
            features=self._embodiment.features(self._measured()),
            fault=self._fault(opened),
        )

    def _damp_if_tilted(self, opened: _Opened) -> None:
        """Without authority the tilt is another's affair: somebody may be carrying it, or it is standing up."""
        if opened.watch.tilted and not opened.arms.silent:
            opened.loco.damp(self._clock.now_ns())
            opened.arms.drop()

    def _poll(self, opened: _Opened) -> None:
        now_ns = self._clock.now_ns()
        opened.watch.poll(now_ns)
        opened.loco.poll(now_ns)
        if opened.hands is not None:
            opened.hands.poll(now_ns)

    def _fault(self, opened: _Opened) -> str:
        fault = opened.watch.fault(self._clock.now_ns())
        if fault:
            return fault
        if opened.hands is not None and (stale := opened.hands.stale(self._clock.now_ns())):
            return f"{self._name}: no state of the {stale} hand for {MAX_STATE_AGE_S:g} s; check its cable and service"
        return self._loco_fault(opened.loco)

    def _loco_fault(self, loco: Loco) -> str:
        if loco.silent_service:
            return f"{self._name}: the service '{loco.silent_service}' stopped answering; look at the robot, restart it"
        if loco.damped:
            how = "damped" if loco.fsm_id == FSM_DAMP else "without torque"
            return f"{self._name}: the robot is {how} and holds no pose; stand it up with the remote"
        return "" if loco.owner else f"{self._name}: {_NO_OWNER}"

    def external_effort(self) -> Setpoint | None:
        """None: the motors' torque estimate holds gravity, inertia and friction beside contact, and the G1 tells
        nothing that separates them."""
        return None


class _Opened:
    """What exists between `connect` and `close`."""

    def __init__(self, bus: G1Bus, config: G1BusConfig, embodiment: G1Embodiment) -> None:
        name, tick_rate_hz = embodiment.spec.name, embodiment.spec.tick_rate_hz
        self.bus = bus
        self.watch = StateWatch(bus, config, name)
        self.loco = Loco(bus)
        self.hands = Dex3Hands(bus, config, tick_rate_hz=tick_rate_hz) if config.hands != "none" else None
        self.arms = ArmSdk(
            bus,
            config,
            tick_rate_hz=tick_rate_hz,
            max_velocity_rad_s=np.asarray(embodiment.limits.max_velocity[:AXES]),
        )
