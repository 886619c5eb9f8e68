"""Steps for replays, and a slow reference of what has to come out: straight from the definition, one row at a time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from robot_stack.buffer.batches import Draw
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler

GAMMA = 0.9
KINDS = ["step"] * 8 + ["gap", "nan", "terminate", "truncate", "both", "no_final", "end", "end_other"]

Event = ReplayStep | tuple[str, Hashable]


def vec(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def make_step(stream: Hashable, index: int, reward: float = 0.0, **changes: Any) -> ReplayStep:
    """The observation says which stream (a number) and index it is from."""
    values: dict[str, Any] = {
        "stratum": Stratum.ONLINE,
        "observation": vec(stream, index),  # type: ignore[arg-type]
        "action_base": vec(index + 0.25),
        "action": vec(index + 0.5),
        "reward": reward,
        "terminated": False,
        "truncated": False,
    }
    return ReplayStep(stream=stream, index=index, **{**values, **changes})


def truncated(stream: int, index: int, reward: float = 0.0, **changes: Any) -> ReplayStep:
    """The final observation is that of index + 1."""
    final = {"final_observation": vec(stream, index + 1), "final_action_base": vec(index + 1.25)}
    return make_step(stream, index, reward, truncated=True, **{**final, **changes})


def make_replay(
    steps: Sequence[Event] = (), capacity: int = 1000, lookahead: int = 3, replay: Replay | None = None
) -> Replay:
    replay = Replay(ReplayConfig(capacity, 2, 1, lookahead=lookahead)) if replay is None else replay
    for step in steps:
        if isinstance(step, ReplayStep):
            replay.add(step)
        else:
            replay.end(step[1])
    return replay


def every_row(replay: Replay) -> tuple[Sampler, Draw]:
    """All eligible rows in the order of their arrival, as if they had been drawn."""
    rows = np.sort(replay.row_number[replay.eligible().all()])
    return Sampler([Part(replay)], seed=0), Draw((len(rows),), rows, np.ones(len(rows), np.float32))


@dataclass
class Stretch:
    """Steps that belong together, with their numbers of arrival; `ending` is open, terminated, truncated or cut."""

    steps: list[ReplayStep] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    ending: str = "open"

    @property
    def complete(self) -> int:
        """How many of its steps are followed by a state, or by nothing because they terminated the episode."""
        return len(self.steps) - (self.ending in ("open", "cut"))

    def eligible(self, t: int, lookahead: int) -> bool:
        return t + lookahead < len(self.steps) if self.ending == "open" else t < self.complete

    def state(self, t: int) -> tuple[list[float], list[float]]:
        """(observation, base action) after t steps of it; zeros after a termination."""
        if t < len(self.steps):
            return self.steps[t].observation.tolist(), self.steps[t].action_base.tolist()
        last = self.steps[-1]
        if self.ending == "terminated" or last.final_observation is None or last.final_action_base is None:
            return [0.0] * len(last.observation), [0.0] * len(last.action_base)
        return last.final_observation.tolist(), last.final_action_base.tolist()


@dataclass
class Expected:
    """What the reference says about a sequence of events."""

    stretches: list[Stretch]
    dropped: int
    non_finite: int
    rows: list[tuple[int, Stretch, int]]  # eligible rows that are held: number, stretch, position there

    def transition(self, row: int, n_step: int) -> tuple[list[float], float, float, list[float], list[float]]:
        _, stretch, t = self.rows[row]
        k = min(n_step, stretch.complete - t)
        total = sum(GAMMA**i * stretch.steps[t + i].reward for i in range(k))
        over = stretch.ending == "terminated" and t + k == len(stretch.steps)
        observation, base = stretch.state(t + k)
        return stretch.steps[t].observation.tolist(), total, 0.0 if over else GAMMA**k, observation, base

    def chunk(self, row: int, horizon: int) -> tuple[list[list[float]], list[bool]]:
        _, stretch, t = self.rows[row]
        ahead = stretch.steps[t : t + horizon]
        actions = [step.action.tolist() for step in ahead]
        missing = horizon - len(ahead)
        return actions + [actions[-1]] * missing, [False] * len(ahead) + [True] * missing

    def sequence(self, row: int, length: int) -> tuple[list[list[float]], list[float], list[bool], list[bool], Any]:
        _, stretch, t = self.rows[row]
        ahead = stretch.steps[t : min(t + length, stretch.complete)]
        missing = length - len(ahead)
        observations = [step.observation.tolist() for step in ahead]
        return (
            observations + [observations[-1]] * missing,
            [step.reward for step in ahead] + [0.0] * missing,
            [step.terminated for step in ahead] + [False] * missing,
            [True] * len(ahead) + [False] * missing,
            stretch.state(t + len(ahead)),
        )


def reference(events: Sequence[Event], capacity: int, lookahead: int) -> Expected:
    done: list[Stretch] = []
    going: dict[Hashable, Stretch] = {}
    taken = non_finite = 0
    for event in events:
        stream = event.stream if isinstance(event, ReplayStep) else event[1]
        before = going.get(stream)
        bad = isinstance(event, ReplayStep) and not np.isfinite(event.reward)
        gap = isinstance(event, ReplayStep) and before is not None and before.steps[-1].index + 1 != event.index
        if before is not None and (bad or gap or not isinstance(event, ReplayStep)):
            going.pop(stream).ending = "cut"
        non_finite += bad
        if bad or not isinstance(event, ReplayStep):
            continue
        if stream not in going:
            going[stream] = Stretch()
            done.append(going[stream])
        stretch = going[stream]
        stretch.steps.append(event)
        stretch.numbers.append(taken)
        taken += 1
        if event.terminated or event.truncated:
            no_final = event.final_observation is None and not event.terminated
            stretch.ending = "terminated" if event.terminated else "cut" if no_final else "truncated"
            del going[stream]
    rows = [
        (number, stretch, t)
        for stretch in done
        for t, number in enumerate(stretch.numbers)
        if number >= taken - capacity and stretch.eligible(t, lookahead)
    ]
    cut = sum(stretch.ending == "cut" for stretch in done)
    return Expected(done, cut, non_finite, sorted(rows, key=lambda row: row[0]))


@st.composite
def event_lists(draw: st.DrawFn, longest: int = 80) -> list[Event]:
    """Robots whose steps come in any order, with every way in which a stream can go on, break or end."""
    choices = draw(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KINDS)), max_size=longest))
    episodes, indices = [0, 0, 0], [0, 0, 0]
    events: list[Event] = []
    for count, (robot, kind) in enumerate(choices):
        stream = 10 * robot + 100 * episodes[robot]
        if kind in ("end", "end_other"):
            events.append(("end", stream if kind == "end" else "nobody"))
            continue
        indices[robot] += 2 if kind == "gap" else 1
        changes: dict[str, Any] = {"observation": vec(stream, count), "action": vec(count + 0.5), "stratum": count % 4}
        if kind in ("truncate", "both"):
            changes |= {"final_observation": vec(stream, -count), "final_action_base": vec(-count)}
        changes["terminated"] = kind in ("terminate", "both")
        changes["truncated"] = kind in ("truncate", "both", "no_final")
        events.append(make_step(stream, indices[robot], np.nan if kind == "nan" else count + 1.0, **changes))
        if changes["terminated"] or changes["truncated"]:
            episodes[robot] += 1
            indices[robot] = 0
    return events
