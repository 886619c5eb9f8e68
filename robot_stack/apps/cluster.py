"""`robot-stack cluster`: practise on the machines of a Ray cluster, until the learner has had all its steps.

This process places the robots and the learner's ranks, tells the robots where the learner is, and shows what happens.
Ray starts again what dies. When this process ends, so does everything that it placed; the same command goes on.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec.structs import replace
from tqdm import tqdm

from robot_stack.apps.cluster_learner import RankSettings, make_follower, make_leader
from robot_stack.apps.cluster_robot import FollowLearner, RobotSettings, make_robot
from robot_stack.apps.connections import learner_client
from robot_stack.apps.keys import VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import Lifetime
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError, RobotStackError, TransportError
from robot_stack.core.messages import GetProgress, LearnerProgress
from robot_stack.learner.algorithms.settings.imitation import ImitationSettings
from robot_stack.learner.cluster.nodes import LEARNER, ROBOT, Cluster, HostState, Placed, Work

logger = logging.getLogger(__name__)

WATCH_PERIOD_S = 0.5
_OF_A_ROBOT = ("robot_address", "state_address", "scene_address", "scene_state_address")
INTERRUPTED = 130


def practise_on_cluster(overrides: Sequence[str]) -> int:
    """Until robots and learner are done, or the user ends it. The run's demonstrations and policy are there already."""
    config = compose_config(overrides)
    if config.cluster.ranks > 1 and isinstance(config.algorithm, ImitationSettings):
        raise ConfigError("learning by imitation does not share its updates: set cluster.ranks=1")
    ensure_keys(RunLayout.of(config))
    everywhere = (*overrides, f"runs_directory={Path(config.runs_directory).absolute()}")
    with Cluster(config.cluster.address, config.run) as cluster, Lifetime() as life:
        crew = _Crew(config, cluster)
        try:
            crew.place_robots(everywhere)
            crew.place_learner(everywhere)
            return _watch(config, crew, life)
        finally:
            crew.end()


def robot_overrides(config: StackConfig) -> dict[str, tuple[str, ...]]:
    """Overrides of each robot's own, by name; ConfigError for a name that a resource or a folder cannot have.

    Where several are listed each has an edge of its own name, and ports a hundred above those of the robot before it.
    """
    robots = config.cluster.robots
    if not robots:
        return {config.robot.name: ()}
    for name in robots:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"cluster.robots: '{name}' is no name; use letters, digits, '-' and '_'")
    own: dict[str, tuple[str, ...]] = {}
    for number, (name, words) in enumerate(robots.items()):
        ports = (f"network.{key}={_shifted(getattr(config.network, key), 100 * number)}" for key in _OF_A_ROBOT)
        own[name] = (f"robot.name={name}", f"edge.name={name}", *ports, *shlex.split(words))
    return own


def _shifted(address: str, ports: int) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + ports}"


@dataclass(slots=True)
class _Crew:
    """Everything of the run that is on the cluster."""

    config: StackConfig
    cluster: Cluster
    robots: list[Placed] = field(default_factory=list)
    ranks: list[Placed] = field(default_factory=list)
    _seen: dict[str, HostState] = field(default_factory=dict)

    def place_robots(self, overrides: Sequence[str]) -> None:
        """First, because a robot that cannot be had ends the run; all of them look for their nodes at the same time."""
        settings = self.config.cluster
        for name, own in robot_overrides(self.config).items():
            its = (*overrides, *own)
            ensure_keys(RunLayout.of(compose_config(its)))
            robot = RobotSettings(name=name, overrides=its, directory=settings.robot_directory)
            work = Work(
                name=ROBOT + name,
                make=make_robot,
                settings=msgspec.json.encode(robot),
                cpus=settings.robot_cpus,
                resources={ROBOT + name: 1.0},
            )
            self.robots.append(self.cluster.start(work, settings.patience_s))
        self._wait_for(self.robots)

    def place_learner(self, overrides: Sequence[str]) -> None:
        settings = self.config.cluster
        folder = {settings.folder_resource: 0.001} if settings.folder_resource else {}
        for rank in range(settings.ranks):
            work = Work(
                name=f"learner/{rank}",
                make=make_follower if rank else make_leader,
                settings=msgspec.json.encode(RankSettings(overrides=tuple(overrides), rank=rank)),
                cpus=settings.rank_cpus,
                resources=folder,
                talks=8 + settings.ranks,
            )
            self.ranks.append(self.cluster.start(work, settings.patience_s))
        self._wait_for(self.ranks[:1])  # the others may come later

    def _wait_for(self, placed: Sequence[Placed]) -> None:
        give_up_s = time.monotonic() + self.config.cluster.patience_s
        for one in placed:
            self._seen[one.work.name] = self.cluster.wait_for(one, max(0.5, give_up_s - time.monotonic()))
            _say(f"{one.work.name} is on node {self._seen[one.work.name].node}")

    def look(self) -> dict[str, HostState]:
        """How everything is, without what is away; says what has begun anew. RobotStackError if the learner cannot go
        on, or no robot can."""
        states = {one.work.name: state for one in (*self.ranks, *self.robots) if (state := one.state()) is not None}
        for name, state in states.items():
            before = self._seen.get(name)
            if before is None or before.pid != state.pid or before.node != state.node:
                _say(f"{name} {'began' if before is None else 'was started again'} on node {state.node}")
            if state.problem and (before is None or before.problem != state.problem):
                _say(f"{name} cannot go on: {state.problem}")
            self._seen[name] = state
        robots = [states.get(one.work.name) for one in self.robots]
        lost = [state for state in robots if state is not None and state.problem]
        for state in (states.get(LEARNER), *(lost[:1] if len(lost) == len(robots) else ())):
            if state is not None and state.problem:
                raise RobotStackError(f"on node {state.node}: {state.problem}")
        return states

    def tell_robots(self, states: dict[str, HostState]) -> str:
        """Where the learner is, to whom it is news: a learner may move, a robot may have begun anew."""
        learner = states.get(LEARNER)
        address = learner.detail if learner else ""
        for robot in self.robots if address else ():
            state = states.get(robot.work.name)
            if state is not None and state.detail != address:
                try:
                    robot.ask(msgspec.msgpack.encode(FollowLearner(address=address)))
                except TransportError as error:
                    logger.warning("%s", error)
        return address

    def robots_done(self, states: dict[str, HostState]) -> bool:
        found = [states.get(one.work.name) for one in self.robots]
        return all(state is not None and (state.finished or state.problem) for state in found)

    def end(self) -> None:
        """Robots first, each to its safe state; rank 0 last, with a checkpoint."""
        for one in (*self.robots, *reversed(self.ranks)):
            one.stop() if self._seen.get(one.work.name) else one.drop()


def _watch(config: StackConfig, crew: _Crew, life: Lifetime) -> int:
    keys, learner = ensure_keys(RunLayout.of(config)), config.learner
    progress: LearnerProgress | None = None
    with tqdm(total=learner.target_steps, unit="step", desc="practise") as bar:
        while life.running():
            states = crew.look()
            address = crew.tell_robots(states)
            if address:
                network = replace(config.network, learner_address=address)
                try:
                    with learner_client(network, keys, VIEWER_KEY) as client:
                        answer = client.request(GetProgress(), timeout_s=1.0)
                except TransportError:
                    continue
                if isinstance(answer, LearnerProgress):
                    progress = answer
                    _show(bar, progress)
                    if progress.finished and crew.robots_done(states):
                        break
            life.sleep(WATCH_PERIOD_S)
    if life.interrupted or progress is None or not progress.finished:
        _say("interrupted: the same command goes on from here")
        return INTERRUPTED
    _say(
        f"{progress.durable_steps} steps durable, trained through {progress.trained_steps}, "
        f"{progress.updates} updates, weights version {progress.weights_version}"
    )
    return 0


def _show(bar: tqdm[NoReturn], progress: LearnerProgress) -> None:
    ranks = progress.metrics.get("ranks", 1.0)
    bar.set_postfix(updates=progress.updates, ranks=f"{ranks:g}", weights=progress.weights_version)
    bar.update(min(progress.trained_steps, progress.target_steps) - bar.n)


def _say(words: str) -> None:
    tqdm.write(words, file=sys.stdout)
    sys.stdout.flush()
