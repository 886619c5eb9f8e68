"""The edge process: robot, policy, recorder, spool and uplink, wired together.

It survives the other two: while the robot server is away it waits and begins a new episode afterwards; while the
learner is away it goes on with its last weights and the spool keeps the steps. Where steps cannot be kept (a full
spool, a full or dead disk) the running episode goes on to its end, and no new one begins until there is room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from policies.residual.config import ExplorationConfig
from policies.residual.explore import add_noise, warm_up_action
from robot_stack.apps.actors import allowed_change, step_builder
from robot_stack.apps.build import step_spec
from robot_stack.apps.cameras import ObservedCameras, observed_cameras
from robot_stack.apps.connections import learner_client, remote_robot
from robot_stack.apps.edge_policy import Chunks, EdgePolicy, edge_policy, warm_chunks
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.operators import build_interventions, log_counts
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.reset_free import PracticeMode
from robot_stack.apps.seat import OperatorsSeat
from robot_stack.apps.seeds import practice_seed
from robot_stack.apps.timing import TimingObserver
from robot_stack.buffer.images import ImageCodec
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import RobotError, StorageError, UnreachableError
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import FloatArray, LearnerProgress, Observation, WeightEncoding
from robot_stack.core.specs import Feature, check_policy_fits_robot
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.canary import Canary
from robot_stack.edge.control_loop import ControlLoop, Corrector, NoCorrection, StepObserver
from robot_stack.edge.disk import Admission, guess_step_bytes
from robot_stack.edge.gauges import Gauges
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.edge.spool import Spool
from robot_stack.edge.uplink import Uplink
from robot_stack.edge.watch import EdgeWatch
from robot_stack.edge.weights import LiveResidual, WeightInbox
from robot_stack.learner.feeds import check_robot_fits
from robot_stack.transport.keys import KeyStore

logger = logging.getLogger(__name__)

RETRY_S = 0.5
FLUSH_POLL_S = 0.2


class Exploring:
    """A step policy that explores, for learning. Its own way of exploring goes before noise from outside.

    Until the learner has published its first weights, the warm-up's noise is in the action. All noise is a pure
    function of run seed, episode seed and step, so that a run can be repeated.
    """

    def __init__(self, policy: LiveResidual, config: ExplorationConfig, bounds: Feature, seed: int) -> None:
        self._policy = policy
        self._config = config
        self._bounds = bounds
        self._seed = seed

    @property
    def version(self) -> int:
        return self._policy.version

    def refresh(self) -> None:
        self._policy.refresh()

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        rng = np.random.default_rng((self._seed, observation.episode_seed, observation.index))
        action = self._policy.correct(observation, action_base)
        if self._policy.version == 0:
            return warm_up_action(action_base, rng, self._config, self._bounds)
        explored = self._policy.explore(observation, action_base, rng)
        return add_noise(action, rng, self._config, self._bounds) if explored is None else explored


class EpisodeCounter:
    """Numbers episodes over all lives of the edge: a number is taken before its episode begins, never twice."""

    class _Record(Struct, frozen=True):
        next_episode: int

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> int:
        record = self._Record(0)
        if self._path.exists():
            record = msgspec.json.decode(self._path.read_bytes(), type=self._Record)
        write_atomically(self._path, msgspec.json.encode(self._Record(record.next_episode + 1)))
        return record.next_episode


class EdgeNode:
    """Runs episodes until the learner has all the steps it wants. `keys`: the run's. `inbox` and `board`: those that
    `policy` was made with."""

    def __init__(
        self,
        config: StackConfig,
        policy: EdgePolicy,
        layout: RunLayout,
        keys: KeyStore,
        spool: Spool,
        inbox: WeightInbox,
        board: AlarmBoard,
    ) -> None:
        self._config = config
        self._policy = policy
        self._layout = layout
        self._spool = spool
        self._inbox = inbox
        self._mode = PracticeMode(config, layout.edge)
        self._counter = EpisodeCounter(layout.edge / "episodes.json")
        self._timing = TimingObserver(layout.edge / "timing.json")
        self._keys = keys
        self._board = board
        self._gauges = Gauges()
        self._seat = OperatorsSeat(config, keys, config.edge.rule) if config.edge.operator == "seat" else None
        self._outbox = Outbox(spool, ImageCodec(config.edge.image_codec), config.edge.outbox_capacity_bytes)
        self.uplink = Uplink(
            lambda: learner_client(config.network, keys, layout.edge_name),
            spool,
            self._inbox,
            self._board,
            layout.edge_name,
            WeightEncoding(config.edge.weight_encoding),
        )
        self._watch = EdgeWatch(
            layout.edge / "status.json",
            spool,
            self._outbox,
            self._board,
            config.edge.low_disk_share,
            lambda: self.uplink.heard_ns,
            self._gauges,
        )
        self._live = self._live_steps()
        bounds, exploration = policy.policy.spec.action, config.algorithm.exploration
        self._corrector: Corrector = NoCorrection()
        if self._live is not None:
            self._corrector = Exploring(self._live, exploration, bounds, config.seed)

    def run(self, keep_running: Callable[[], bool], sleep: Callable[[float], None]) -> None:
        """Practise until done. An unreachable robot server is an error at first, and waited for afterwards."""
        connected_once = False
        with ExitStack() as opened:
            for part in (self._watch, self.uplink, self._outbox):  # the outbox empties first, the watch ends last
                opened.enter_context(part)
            if self._seat is not None:
                self._seat.keep_running = keep_running
                opened.enter_context(self._seat)
            while keep_running():
                try:
                    with (
                        self._devices() as (robot, cameras),
                        self._chunks(robot, keep_running) as chunks,
                    ):
                        connected_once = True
                        robot.arm(self._config.edge.patience_s)
                        if self._practise(robot, cameras, chunks, keep_running, sleep):
                            break
                except (RobotError, UnreachableError) as error:
                    if not connected_once:
                        raise
                    logger.warning("episode abandoned: %s", error)
                    self._mode.episodes.failed(error)
                    if self._seat is not None:
                        self._seat.failed()
                    sleep(RETRY_S)
            self._write_out(keep_running)
            self.uplink.wait_until(self.uplink.flushed, keep_running)
        self._save_timing(self._timing.save)

    @contextmanager
    def _devices(self) -> Iterator[tuple[RemoteRobot, ObservedCameras]]:
        """The robot and the cameras, connected; SpecMismatchError if the policy does not fit them."""
        config, patience_s = self._config, self._config.edge.patience_s
        with remote_robot(config.network, self._keys, self._layout.edge_name) as robot:
            robot.connect(patience_s)
            with observed_cameras(config, robot.spec, self._keys, patience_s) as cameras:
                check_policy_fits_robot(self._policy.policy.spec, cameras.spec)
                check_policy_fits_robot(step_spec(config, self._layout.robot_spec()), cameras.spec)
                check_robot_fits(self._layout.robot_spec(), cameras.spec, config.task.features)
                self.uplink.tell_robot(cameras.spec)
                yield robot, cameras

    @contextmanager
    def _chunks(self, robot: RemoteRobot, keep_running: Callable[[], bool]) -> Iterator[Chunks]:
        """The scheduler with a warm policy. Before that the robot is not armed and no episode begins."""
        rate_hz, lock_step = robot.spec.control_rate_hz, robot.info.lock_step
        with warm_chunks(
            self._config,
            self._policy,
            self._gauges,
            control_rate_hz=rate_hz,
            lock_step=lock_step,
            keep_running=keep_running,
        ) as chunks:
            period_s = None if lock_step else robot.spec.control_period_s
            self._gauges.watch(self._policy.told, chunks.counts, self._refused_weights, period_s)
            yield chunks

    def _practise(
        self,
        robot: RemoteRobot,
        cameras: ObservedCameras,
        chunks: Chunks,
        keep_running: Callable[[], bool],
        sleep: Callable[[float], None],
    ) -> bool:
        """Episodes until told to stop; True once the learner has enough steps."""
        config = self._config
        recorder = Recorder(RecordingId(config.run, robot.spec.name, robot.spec.task), self._outbox.put)
        observing: list[StepObserver] = [recorder, self._timing, self._gauges]
        seat = None if self._seat is None else self._seat.beside(robot.spec, lock_step=robot.info.lock_step)
        interventions = build_interventions(config, robot.spec, seat)
        if seat is not None:
            seat.recorded_as(recorder.session)
            observing.append(seat)
        driven, corrector, observers = self._mode.around(robot, self._corrector, observing)
        loop = ControlLoop(
            driven,
            chunks.scheduler,
            corrector,
            observers,
            config.edge.max_state_age_s,
            cameras.spec,
            cameras.feeds,
            reads=self._policy.policy.spec,
            state_latency_s=config.edge.state_latency_s,
            instruction=config.policy.instruction,
            interventions=interventions,
            max_person_steps=None if seat is None else config.teleop.max_person_steps(robot.spec.control_rate_hz),
        )
        guess_bytes = guess_step_bytes(cameras.spec, ImageCodec(config.edge.image_codec))
        admission = Admission(self._spool, self._outbox, robot.spec.max_episode_steps, guess_bytes)
        while keep_running():
            if not self._write_out(keep_running):
                break
            progress = self._wait_for_learner(keep_running)
            if progress is not None and progress.durable_steps + self._spool.unacknowledged >= progress.target_steps:
                return True
            waits = seat is not None and seat.waits_for_scene
            number = None if waits else self._admit(admission)
            if number is None:
                sleep(RETRY_S)
                continue
            episode = self._mode.episodes.next(number, practice_seed(config.seed, number, config.edge.name))
            self._mode.episodes.ended(loop.run_episode(episode))
            self._save_timing(lambda: self._timing.episode_done(robot.pacer))
            log_counts(interventions.counts)
        return False

    def _write_out(self, keep_running: Callable[[], bool]) -> bool:
        """Wait until every recorded step is in the spool or given up; False if told to end first."""
        while keep_running():
            if self._outbox.flush(FLUSH_POLL_S):
                return True
        return False

    def _admit(self, admission: Admission) -> int | None:
        """The number of the episode that may begin, or None, with an alarm, while none may."""
        refusal = admission.refusal()
        if not refusal:
            try:
                number = self._counter.take()
            except StorageError as error:
                refusal = str(error)
            else:
                self._board.end(AlarmKind.NO_NEW_EPISODES)
                return number
        self._board.put(AlarmKind.NO_NEW_EPISODES, refusal)
        return None

    def _save_timing(self, save: Callable[[], None]) -> None:
        try:
            save()
        except StorageError as error:  # nothing depends on it, and the full disk has its own alarms
            logger.warning("the timing of the control loop was not saved: %s", error)

    def _wait_for_learner(self, keep_running: Callable[[], bool]) -> LearnerProgress | None:
        lead = self._config.edge.max_lead_steps
        if lead >= 0:
            self.uplink.wait_until(self.uplink.trained_through(lead), keep_running)
        return self.uplink.progress

    def _refused_weights(self) -> int:
        return sum(live.refused for live in (self._live, self._policy.live) if live is not None)

    def _live_steps(self) -> LiveResidual | None:
        """What acts at every step with the newest weights; None if the algorithm's weights act as chunks."""
        edge, spec = self._config.edge, step_spec(self._config, self._layout.robot_spec())
        build = step_builder(self._config.algorithm, spec)
        if build is None:
            return None
        max_change = allowed_change(self._config.algorithm, edge.canary_max_change)
        canary = Canary(self._policy.policy.spec.action, max_change, spec.observation)
        return LiveResidual(NoCorrection(), self._inbox, build, canary, self._board)


def run_edge(config: StackConfig, keep_running: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """Run the edge node of a run until its learner is satisfied or it is told to end."""
    use_one_torch_thread()
    layout = RunLayout.of(config)
    layout.edge.mkdir(parents=True, exist_ok=True)
    keys = ensure_keys(layout)
    inbox, board = WeightInbox(), AlarmBoard()
    with (
        edge_policy(config, keys, inbox, board) as policy,
        Spool(layout.edge / "spool", config.edge.spool_capacity_bytes) as spool,
    ):
        EdgeNode(config, policy, layout, keys, spool, inbox, board).run(keep_running, sleep)
