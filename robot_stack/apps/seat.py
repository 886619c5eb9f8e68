"""The operator's seat of a run's edge: how it is opened, what it knows of the demonstrations, where labels are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import msgspec
import numpy as np

from policies.common.features import flatten
from robot_stack.apps.build import step_spec
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.train import read_demonstrations
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import StorageError
from robot_stack.core.messages import Features
from robot_stack.core.seat import LabelEpisode
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.familiarity import Familiarity
from robot_stack.edge.operator import Rule
from robot_stack.edge.seat import Seat
from robot_stack.edge.seat_server import SeatServer
from robot_stack.learner.rewards.labels import HumanLabel, add_label
from robot_stack.transport.keys import KeyStore


class OperatorsSeat:
    """The seat beside an edge's robot. It stays open when the robot server goes away and comes back, so that whoever
    has it keeps it; a robot with another spec gets a new one.

    Enter it before the robot is connected. `keep_running`: once it says no, an episode that a person holds is ended.
    """

    def __init__(
        self, config: StackConfig, keys: KeyStore, rule: Rule, keep_running: Callable[[], bool] = lambda: True
    ) -> None:
        self._config, self._keys, self._rule, self.keep_running = config, keys, rule, keep_running
        self._layout = RunLayout.of(config)
        self._seat: Seat | None = None
        self._opened = ExitStack()

    def __enter__(self) -> OperatorsSeat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def beside(self, spec: RobotSpec, *, lock_step: bool) -> Seat:
        """The seat of the robot with that spec, served from now on."""
        known = self._seat
        if known is not None and not known.closed and (known.info.spec, known.info.lock_step) == (spec, lock_step):
            return known
        self._opened.close()
        config, network = self._config, self._config.network
        familiarity = None if self._rule == "demonstration" else _familiarity(config, self._layout)
        seat = Seat(
            spec,
            self._rule,
            config.run,
            lock_step=lock_step,
            familiarity=familiarity,
            keep_running=self.keep_running,
        )
        keep = LabelBook(self._layout).keep
        name = self._layout.edge_name
        self._opened.enter_context(
            SeatServer(seat, network.seat_address, network.seat_state_address, self._keys, name, keep)
        )
        self._seat = seat
        return seat

    def failed(self) -> None:
        """The running episode could not go on."""
        if self._seat is not None:
            self._seat.failed()


class LabelBook:
    """What people say of episodes, on the disk when `keep` returns.

    Verdicts lie in `labels.jsonl` of the run, where `reward=human_label` reads them; all that was said, notes and
    discarded episodes too, in `notes.jsonl` of the edge.
    """

    def __init__(self, layout: RunLayout) -> None:
        self._labels, self._notes = layout.labels, layout.edge / "notes.jsonl"

    def keep(self, label: LabelEpisode) -> None:
        """StorageError if it cannot be kept."""
        try:
            self._notes.parent.mkdir(parents=True, exist_ok=True)
            with self._notes.open("ab") as file:
                file.write(msgspec.json.encode(label) + b"\n")
        except OSError as error:
            raise StorageError(f"the note cannot be written to {self._notes}: {error}") from error
        if label.success is None and not label.discard:
            return
        episode = label.episode
        verdict = HumanLabel(
            run=episode.run,
            robot=episode.robot,
            session=episode.session,
            episode=episode.episode,
            success=bool(label.success) and not label.discard,
            who=label.who,
            when_s=time.time(),
        )
        add_label(self._labels, verdict)


def _familiarity(config: StackConfig, layout: RunLayout) -> Callable[[Features], float] | None:
    """How far a state is from the run's demonstrations; None where there are none on this machine."""
    if not layout.demonstrations.exists():
        return None
    wanted = step_spec(config, layout.robot_spec()).observation
    episodes = [[flatten(step.observation, wanted) for step in episode] for episode in read_demonstrations(layout)]
    if not episodes:
        return None
    familiarity = Familiarity([np.stack(states) for states in episodes])
    return lambda features: familiarity.of(flatten(features, wanted))
