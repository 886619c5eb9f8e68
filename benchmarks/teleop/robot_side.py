"""The robot server of this benchmark: `robot-stack robot-server`, but that it writes down when it took each command."""

from __future__ import annotations

import argparse
from pathlib import Path

from msgspec.structs import replace

from benchmarks.teleop.taps import Kind, Tap, number_of_action
from hardware.franka.sim import SimulatedFranka
from robot_stack.apps.build import build_simulated
from robot_stack.apps.connections import ROBOT_REQUEST, ROBOT_STATE
from robot_stack.apps.keys import ROBOT_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import Lifetime
from robot_stack.apps.robot_server import RobotServer
from robot_stack.config.compose import compose_config
from robot_stack.core.messages import Command, CommandResult, Hello, RobotInfo, RobotReply, RobotRequest
from robot_stack.transport.server import RequestServer
from robot_stack.transport.stream import Publisher

ENDLESS_STEPS = 100_000


class TappedServer(RobotServer):
    """Writes down every command when it is taken, before the guard sees it, and every tick. Its episodes do not end."""

    def __init__(
        self, robot: SimulatedFranka, requests: RequestServer[RobotRequest], states: Publisher, tap: Tap
    ) -> None:
        super().__init__(robot, requests, states, lock_step=False)
        self._tap, self._action = tap, robot.spec.action

    def _command(self, command: Command) -> CommandResult:
        bounds = self._action.upper_array().tolist()
        self._tap.put(Kind.AT_ROBOT, number_of_action(command.action.tolist(), self._action.names, bounds))
        return super()._command(command)

    def _hello(self, message: Hello) -> RobotReply:
        info = super()._hello(message)
        if not isinstance(info, RobotInfo):
            return info
        return replace(info, spec=replace(info.spec, max_episode_steps=ENDLESS_STEPS))

    def _tick(self) -> None:
        self._tap.put(Kind.TICK)
        super()._tick()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tap", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = compose_config(options.overrides)
    keys, network = ensure_keys(RunLayout.of(config)), config.network
    robot = build_simulated(config)
    if not isinstance(robot, SimulatedFranka):
        raise SystemExit("this benchmark drives a simulated Franka")
    requests: RequestServer[RobotRequest] = RequestServer(
        ROBOT_REQUEST, network.robot_address, keys, ROBOT_KEY, RobotRequest
    )
    with (
        Lifetime() as life,
        requests,
        Publisher(ROBOT_STATE, network.state_address, keys, ROBOT_KEY) as states,
    ):
        TappedServer(robot, requests, states, Tap(options.tap)).run(life.running)


if __name__ == "__main__":
    main()
