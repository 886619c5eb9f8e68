"""The robots that feed a learner: which ones fit, how far it is with their steps, and how stale these are.

Robots are told apart by their names (`robot.name`), edges by the names of their keys (`edge.name`). Nothing here
decides what is learned: that is the trainer's fold over the log, whatever the order in which edges sent.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct

from robot_stack.buffer.steps import SessionKey
from robot_stack.core.codec import unpack
from robot_stack.core.errors import CommandRefusedError, MessageError, SpecMismatchError
from robot_stack.core.messages import Features, FloatArray, RobotFeed, Staleness, Step
from robot_stack.core.specs import ACTION, IMAGES, Feature, RobotSpec

logger = logging.getLogger(__name__)

WINDOW_STEPS = 1000
"""Staleness is that of so many of a robot's last steps."""
CLAIM_S = 30.0
"""A robot's name is its edge's until that edge has been silent for so long."""
NAME_IN_USE = "name_in_use"


def check_robot_fits(known: RobotSpec, robot: RobotSpec, features: Iterable[str]) -> None:
    """Raise SpecMismatchError, listing every difference, unless both robots' steps can be learned from together.

    Task, control rate, action and `features`, the ones that are learned from, have to agree: names (which hold the
    units), shapes, dtypes and bounds. Name, model and everything else may differ.
    """
    problems = [
        f"{name}: {getattr(robot, name)} instead of {getattr(known, name)}"
        for name in ("task", "control_rate_hz")
        if getattr(robot, name) != getattr(known, name)
    ]
    wanted = {ACTION: known.action} | {name: known.observation[name] for name in features if name in known.observation}
    offered = {ACTION: robot.action} | robot.observation
    for name, feature in wanted.items():
        if name not in offered:
            problems.append(f"{name}: it does not offer that (it offers {', '.join(sorted(offered))})")
        elif offered[name] != feature:
            problems.append(f"{name}: {_difference(feature, offered[name])}")
    if problems:
        raise SpecMismatchError(
            f"robot '{robot.name}' ({robot.model}) cannot feed a run of robot '{known.name}' ({known.model}):\n  - "
            + "\n  - ".join(problems)
            + "\nGive it a run of its own with run=NAME, or configure it as the other robot."
        )


def _difference(known: Feature, offered: Feature) -> str:
    return "; ".join(
        f"{name} is {getattr(offered, name)} instead of {getattr(known, name)}"
        for name in ("dtype", "shape", "names", "lower", "upper")
        if getattr(offered, name) != getattr(known, name)
    )


class _Head(Struct, frozen=True):
    """The part of a recorded step that tells whether it fits."""

    run: str
    robot: str
    observation: Features
    action_sent: FloatArray


@dataclass(frozen=True, slots=True)
class Fits:
    """What a run's steps look like. `features`: those of `robot` that are learned from."""

    run: str
    robot: RobotSpec
    features: Sequence[str]

    def check_robot(self, robot: RobotSpec) -> None:
        """SpecMismatchError unless this robot's steps fit."""
        check_robot_fits(self.robot, robot, self.features)

    def robot_of(self, record: bytes) -> str:
        """The robot that a packed step was recorded on; SpecMismatchError if it does not fit, '' if it is no step."""
        try:
            head: _Head = unpack(record, _Head)
        except MessageError:
            return ""  # the store says what is wrong with it
        problem = self._problem(head)
        if problem:
            raise SpecMismatchError(
                f"a step of robot '{head.robot}' (run '{head.run}') does not belong to run '{self.run}' of robot "
                f"'{self.robot.name}': {problem}. Point its edge to the learner of its own run."
            )
        return head.robot

    def _problem(self, head: _Head) -> str:
        if head.run != self.run:
            return "it is of another run"
        wanted = {ACTION: self.robot.action} | {name: self.robot.observation[name] for name in self.features}
        recorded = {ACTION: head.action_sent} | head.observation
        for name, feature in wanted.items():
            if name not in recorded:
                return f"it has no {name}"
            found = recorded[name]
            if name.startswith(IMAGES):
                continue  # pictures may be encoded
            if (found.shape, found.dtype.name) != (feature.shape, feature.dtype):
                return f"its {name} is {found.dtype}{list(found.shape)} instead of {feature.dtype}{list(feature.shape)}"
        return ""


@dataclass(slots=True)
class _Robot:
    """`trained`: steps that the learner has taken out of the log, over all its lives. `staleness`: (versions, s)."""

    edge: str = ""
    trained: int = 0
    staleness: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))


class Feeds:
    """What the learner knows of the robots that feed it. `fits`: what their steps have to look like; None: anything.

    Staleness is taken when a step is learned from: how many versions were published since the one that acted, and how
    long ago that one was.
    """

    def __init__(self, fits: Fits | None = None) -> None:
        self._fits = fits
        self._robots: dict[str, _Robot] = {}
        self._heard_s: dict[str, float] = {}
        self._published_s: dict[int, float] = {}

    # ---- who may ----

    def heard(self, edge: str) -> None:
        """An edge asked for something."""
        self._heard_s[edge] = time.monotonic()

    def greet(self, edge: str, robot: RobotSpec) -> None:
        """An edge says which robot it has. SpecMismatchError if that does not fit; CommandRefusedError (`name_in_use`)
        if the robot's name is another edge's."""
        if self._fits is not None:
            self._fits.check_robot(robot)
        self._claim(edge, robot.name)

    def admit(self, edge: str, records: Sequence[bytes]) -> None:
        """Whether these packed steps may be stored; errors as of `greet`."""
        if self._fits is None:
            return
        for robot in dict.fromkeys(map(self._fits.robot_of, records)):
            if robot:
                self._claim(edge, robot)

    def _claim(self, edge: str, name: str) -> None:
        robot = self._robots.setdefault(name, _Robot())
        silent_s = time.monotonic() - self._heard_s.get(robot.edge, -CLAIM_S)
        if robot.edge not in ("", edge) and silent_s < CLAIM_S:
            raise CommandRefusedError(
                NAME_IN_USE,
                f"edge '{edge}' has a robot '{name}', and so has edge '{robot.edge}', which was heard within the last "
                f"{CLAIM_S:.0f} s: give every robot a name of its own with robot.name=NAME",
            )
        robot.edge = edge

    # ---- what it learns from ----

    def resume(self, sessions: Mapping[SessionKey, int], untrained: Iterable[Step]) -> None:
        """Begin with what is durable, and of that the steps that are not learned from yet."""
        for name, steps in _by_robot(sessions).items():
            self._robots.setdefault(name, _Robot()).trained = steps
        for step in untrained:
            self._robots.setdefault(step.robot, _Robot()).trained -= 1

    def published(self, version: int, ago_s: float = 0.0) -> None:
        """Weights were published; the first time counts."""
        self._published_s.setdefault(version, time.monotonic() - ago_s)

    def trained(self, step: Step, version: int) -> None:
        """A step is learned from while `version` is the newest."""
        robot = self._robots.setdefault(step.robot, _Robot())
        robot.trained += 1
        published_s = self._published_s.get(step.weights_version)
        age_s = np.nan if published_s is None else time.monotonic() - published_s
        robot.staleness.append((max(0, version - step.weights_version), age_s))

    def read(self, sessions: Mapping[SessionKey, int]) -> dict[str, RobotFeed]:
        """By robot; `sessions`: what is durable."""
        durable, now_s = _by_robot(sessions), time.monotonic()
        return {
            name: RobotFeed(
                edge=robot.edge,
                heard_s=now_s - self._heard_s[robot.edge] if robot.edge in self._heard_s else -1.0,
                steps=durable[name],
                waiting=max(0, durable[name] - robot.trained),
                staleness=_staleness(robot.staleness),
            )
            for name, robot in sorted(self._robots.items())
        }


def _by_robot(sessions: Mapping[SessionKey, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, steps in sessions.items():
        found[key.robot] += steps
    return found


def _staleness(window: Sequence[tuple[int, float]]) -> Staleness:
    if not window:
        return Staleness()
    versions, age_s = np.array(window, np.float64).T
    age_s = age_s[np.isfinite(age_s)]
    if not len(age_s):
        age_s = np.full(1, -1.0)
    return Staleness(
        steps=len(window),
        versions_median=float(np.median(versions)),
        versions_p95=float(np.percentile(versions, 95)),
        versions_max=int(versions.max()),
        age_median_s=float(np.median(age_s)),
        age_p95_s=float(np.percentile(age_s, 95)),
        age_max_s=float(age_s.max()),
    )
