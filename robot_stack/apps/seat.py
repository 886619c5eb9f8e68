"""The operator's seat of a run's edge: how it is opened, what it knows of the demonstrations, where labels are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def open_seat(config: StackConfig, keys: KeyStore, spec: RobotSpec, rule: Rule, *, lock_step: bool) -> Iterator[Seat]:
    """A seat beside the robot of that spec, served for as long as this is entered."""
    layout, network = RunLayout.of(config), config.network
    seat = Seat(spec, rule, config.run, lock_step=lock_step, familiarity=_familiarity(config, layout))
    with SeatServer(
        seat, network.seat_address, network.seat_state_address, keys, layout.edge_name, LabelBook(layout).keep
    ):
        yield seat


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
