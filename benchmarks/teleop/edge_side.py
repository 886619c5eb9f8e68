"""The edge of this benchmark: control loop, seat, recorder and spool as in `robot-stack edge`, but a policy that stands
still, and no learner. It writes down when inputs came and went, and when its steps were over."""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.teleop.taps import Kind, Tap, number_of_action, number_of_moves
from robot_stack.apps.connections import remote_robot
from robot_stack.apps.edge_policy import share_the_interpreter
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.buffer.images import ImageCodec
from robot_stack.config.compose import compose_config
from robot_stack.core.messages import FloatArray, Observation, RobotState, Source
from robot_stack.core.seat import Drive, Phase
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, LoopStep, NoCorrection
from robot_stack.edge.operator import Interventions, Rule
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.seat import Seat
from robot_stack.edge.seat_server import SeatServer
from robot_stack.edge.spool import Spool

RULE: Rule = "hg_dagger"
PATIENCE_S = 60.0


class TappedSeat(Seat):
    """Writes down which input came when, and when the control loop first made a command of it."""

    def __init__(self, spec: RobotSpec, tap: Tap) -> None:
        super().__init__(spec, RULE, "teleop", lock_step=False)
        self._names, self._upper, self._tap = spec.action.names, spec.action.upper_array().tolist(), tap

    def drive(self, drive: Drive) -> tuple[str, Phase]:
        answer = super().drive(drive)
        self._tap.put(Kind.AT_SEAT, number_of_moves(drive.moves))
        return answer

    def part(self, share: float) -> FloatArray | None:
        action = super().part(share)
        if action is not None:
            self._tap.put(Kind.IN_LOOP, number_of_action(action.tolist(), self._names, self._upper))
        return action


class StandsStill:
    """A policy that changes nothing, in no time."""

    version = 0
    source = Source.POLICY

    def __init__(self, spec: RobotSpec) -> None:
        self._action = np.zeros(spec.action.shape, np.float32)

    def begin(self, seed: int) -> None:
        """There is no plan."""

    def at_boundary(self, index: int) -> bool:
        return True

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        return self._action


class Steps:
    """Writes down when control steps are over."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def on_step(self, step: LoopStep) -> None:
        self._tap.put(Kind.STEP, step.observation.index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tap", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    share_the_interpreter()
    config, tap = compose_config(options.overrides), Tap(options.tap)
    layout, network = RunLayout.of(config), config.network
    keys = ensure_keys(layout)
    with (
        Spool(layout.edge / "spool", config.edge.spool_capacity_bytes) as spool,
        Outbox(spool, ImageCodec(config.edge.image_codec), config.edge.outbox_capacity_bytes) as outbox,
        remote_robot(network, keys) as robot,
    ):
        robot.connect(PATIENCE_S)
        seat = TappedSeat(robot.spec, tap)
        recorder = Recorder(RecordingId("teleop", robot.spec.name, robot.spec.task), outbox.put)
        seat.recorded_as(recorder.session)
        interventions = Interventions(seat, RULE)
        observers = (recorder, Steps(tap), seat)
        policy = StandsStill(robot.spec)
        loop = ControlLoop(robot, policy, NoCorrection(), observers, 2.0, interventions=interventions)
        with SeatServer(
            seat, network.seat_address, network.seat_state_address, keys, layout.edge_name, lambda label: None
        ):
            robot.arm(PATIENCE_S)
            for number in count():  # until it is ended by a signal
                loop.run_episode(EpisodeId(number, number))


if __name__ == "__main__":
    main()
