"""A point that has to find a narrow gate, and the scripted people who help it.

The wall stands at 0 <= x <= `THICKNESS`; its gate lies at a height that differs from episode to episode and is
observed. The point moves by its action and a disturbance. The wall is sticky: a move into it does not happen at all, so
a policy that is a little beside the gate pushes on until the time is out. Behind the wall it
has succeeded.

On a smooth wall it is enough to leave the wall and move along it, and what is observed tells where to. A rough wall
has a post on either side of the gate. How far the posts reach out is not observed, but people see it: close to the wall
the same observation calls for different moves, farther away it does not. So it is with contact on real robots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import FloatArray, Observation, Source, Step, Verdict
from robot_stack.core.specs import STATE, PolicySpec, vector

MAX_STEPS = 120
"""About four times what a demonstration takes: there is room to try again."""
SPEED = 0.06
"""Longest move of one step along each axis."""
THICKNESS = 0.1
HALF_WIDTH = 0.04
DISTURBANCE = 0.008
STAGING_X, FREE_X = -0.25, -0.18
"""Where demonstrations line up with the gate, and up to where they move along the wall: no post reaches so far."""
POST_APART = (0.07, 0.12)
POST_REACH = (0.02, 0.15)
POST_HALF_WIDTH = 0.015
CLEAR_OF_POST = 0.03
PAST_X = THICKNESS + 0.05
STUCK_STEPS = 3
"""A person takes over after so many moves into the wall, one after the other."""
HORIZON, EXECUTED = 8, 4

Point = NDArray[np.float64]


def policy_spec() -> PolicySpec:
    """What the policy reads (place of the point, height of the gate) and writes (a move)."""
    return PolicySpec(
        name="gate",
        task="gate",
        horizon=HORIZON,
        action=vector(("dx_m", "dy_m"), (-SPEED, -SPEED), (SPEED, SPEED)),
        observation={STATE: vector(("x_m", "y_m", "gate_y_m"))},
    )


class World:
    """One episode; everything random comes from its seed."""

    def __init__(self, seed: int, *, rough: bool = False) -> None:
        self._rng = np.random.default_rng([seed, 17])
        self.place: Point = np.array((self._rng.uniform(-0.9, -0.7), self._rng.uniform(-0.6, 0.6)))
        self.gate = float(self._rng.uniform(-0.5, 0.5))
        apart, reach = self._rng.uniform(*POST_APART), self._rng.uniform(*POST_REACH)
        self.reach = reach if rough else 0.0
        self._posts = (self.gate - apart, self.gate + apart) if rough else ()
        self.stuck = 0
        self.index = 0

    @property
    def success(self) -> bool:
        return bool(self.place[0] > PAST_X)

    @property
    def in_the_gate(self) -> bool:
        return bool(self.place[0] > 0.0)

    def observe(self) -> FloatArray:
        return np.array((*self.place, self.gate), np.float32)

    def move(self, action: FloatArray) -> None:
        wanted = self.place + np.clip(action, -SPEED, SPEED) + self._rng.normal(0.0, DISTURBANCE, 2)
        blocked = self._hits(wanted)
        self.place = self.place if blocked else np.clip(wanted, -1.0, 1.0)
        self.stuck = self.stuck + 1 if blocked else 0
        self.index += 1

    def _hits(self, after: Point) -> bool:
        for share in np.linspace(0.25, 1.0, 4):
            x, y = self.place + share * (after - self.place)
            if 0.0 <= x <= THICKNESS and abs(y - self.gate) > HALF_WIDTH:
                return True
            if -self.reach <= x <= 0.0 and any(abs(y - post) < POST_HALF_WIDTH for post in self._posts):
                return True
        return False


class Helper(Protocol):
    """Somebody who may act in the place of the policy."""

    def act(self, world: World) -> tuple[FloatArray, Source] | None:
        """The action and who chose it; None: the policy acts."""


class Demonstrator:
    """Shows the whole task."""

    def act(self, world: World) -> tuple[FloatArray, Source] | None:
        return way(world, FREE_X), Source.EXPERT


@dataclass
class Corrector:
    """HG-DAgger: as soon as the policy is stuck, gets it off the wall and around the post, as far as it takes and no
    farther, and hands back in the gate."""

    driving: bool = False

    def act(self, world: World) -> tuple[FloatArray, Source] | None:
        if self.driving and world.in_the_gate:
            self.driving = False
        self.driving = self.driving or needs_help(world)
        clear_x = -world.reach - CLEAR_OF_POST
        return (way(world, clear_x), Source.HUMAN_CORRECTION) if self.driving else None


@dataclass
class Recoverer:
    """RaC: takes over at the same moment, first backs off to where demonstrations line up, then corrects, to the end of
    the episode."""

    driving: bool = False
    backed_off: bool = False
    recovered: bool = False

    def act(self, world: World) -> tuple[FloatArray, Source] | None:
        self.driving = self.driving or needs_help(world)
        if not self.driving:
            return None
        self.recovered = self.recovered or (self.backed_off and bool(world.place[0] < STAGING_X + 0.02))
        self.backed_off = True
        if self.recovered:
            return way(world, FREE_X), Source.HUMAN_CORRECTION
        return _toward(world, np.array((STAGING_X, world.place[1]))), Source.HUMAN_RECOVERY


def needs_help(world: World) -> bool:
    """Stuck at the wall, or half of the time is over and the wall is still ahead."""
    late = world.index >= MAX_STEPS // 2 and not world.in_the_gate
    return world.stuck >= STUCK_STEPS or late


def way(world: World, clear_x: float) -> FloatArray:
    """A person's next move: to the line before the gate and through it. Nearer to the wall than `clear_x` it goes
    straight back before it moves along the wall."""
    (x, y), beside = world.place, abs(world.place[1] - world.gate)
    if beside < 0.5 * HALF_WIDTH or (x > -0.02 and beside < HALF_WIDTH):
        return _toward(world, np.array((PAST_X + 0.1, world.gate)))
    if x > clear_x:
        return _toward(world, np.array((clear_x - CLEAR_OF_POST, y)))
    return _toward(world, np.array((max(x, STAGING_X), world.gate)))


def _toward(world: World, target: Point) -> FloatArray:
    offset = target - world.place
    longest = float(np.abs(offset).max())
    return (offset * min(1.0, SPEED / max(longest, 1e-9))).astype(np.float32)


class BatchPolicy(Protocol):
    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A)."""


@dataclass
class Episode:
    """What happened: who did what, where, and how it ended."""

    seed: int
    world: World
    helper: Helper | None
    observations: list[FloatArray] = field(default_factory=list)
    proposed: list[FloatArray] = field(default_factory=list)
    actions: list[FloatArray] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    chunk: FloatArray | None = None
    chunk_index: int = 0
    ended: bool = False

    @property
    def success(self) -> bool:
        return self.world.success

    @property
    def operator_steps(self) -> int:
        return sum(source is not Source.POLICY for source in self.sources)

    @property
    def interventions(self) -> int:
        driven = [source is not Source.POLICY for source in self.sources]
        return sum(now and not before for before, now in zip([False, *driven], driven, strict=False))

    def needs_chunk(self) -> bool:
        return self.chunk is None or self.world.index - self.chunk_index >= EXECUTED

    def observation(self) -> Observation:
        world = self.world
        features = {STATE: world.observe()}
        return Observation(
            id=world.index, stamp_ns=0, features=features, age_ns={}, episode_seed=self.seed, index=world.index
        )

    def advance(self) -> None:
        """One step: the helper's, if there is one who acts, or else the policy's."""
        world = self.world
        driven = self.helper.act(world) if self.helper else None
        planned = None if self.chunk is None else np.asarray(self.chunk[world.index - self.chunk_index], np.float32)
        if driven is not None:
            action, source = driven
        elif planned is not None:
            action, source = planned, Source.POLICY
        else:
            raise ValueError("nobody acts: an episode needs a policy or a helper who always acts")
        self.observations.append(world.observe())
        self.proposed.append(action if planned is None or source is Source.EXPERT else planned)
        self.actions.append(action)
        self.sources.append(source)
        world.move(action)
        if driven is not None:
            self.chunk = None  # after a hand-over the policy looks anew
        self.ended = world.success or world.index >= MAX_STEPS


def run(
    policy: BatchPolicy | None,
    seeds: Sequence[int],
    make_helper: Callable[[], Helper] | None,
    *,
    rough: bool = False,
) -> list[Episode]:
    """One episode for every seed, side by side: one batched prediction serves all that need a chunk."""
    episodes = [Episode(seed, World(seed, rough=rough), make_helper() if make_helper else None) for seed in seeds]
    while going := [episode for episode in episodes if not episode.ended]:
        waiting = [episode for episode in going if policy is not None and episode.needs_chunk()]
        if waiting and policy is not None:
            chunks = policy.predict_batch([episode.observation() for episode in waiting])
            for episode, chunk in zip(waiting, chunks, strict=True):
                episode.chunk, episode.chunk_index = chunk, episode.world.index
        for episode in going:
            episode.advance()
    return episodes


def steps_of(episode: Episode) -> Iterator[Step]:
    """The episode as the edge would have recorded it, in a session of its own."""
    segment, last = 0, len(episode.sources) - 1
    for i, source in enumerate(episode.sources):
        segment += i > 0 and source is not episode.sources[i - 1]
        action, ended = np.asarray(episode.actions[i], np.float32), i == last
        yield Step(
            run="corrections",
            robot="point",
            task="gate",
            session=f"{episode.seed}",
            seq=i,
            episode=0,
            episode_seed=episode.seed,
            segment=segment,
            index=i,
            stamp_ns=0,
            observation={STATE: episode.observations[i]},
            action_base=np.asarray(episode.proposed[i], np.float32),
            action_asked=action,
            action_sent=action,
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=source,
            weights_version=0,
            reward=float(ended and episode.success),
            success=ended and episode.success,
            terminated=ended and episode.success,
            truncated=ended and not episode.success,
            final_observation={STATE: episode.world.observe()} if ended else None,
            final_action_base=action if ended else None,
        )
