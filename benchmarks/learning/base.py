"""What all algorithms of one task and seed begin with: demonstrations of the scripted expert, and a base policy."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from msgspec import Struct
from tqdm import tqdm

from benchmarks.learning.robot import LocalRobot
from robot_stack.apps.build import build_expert, build_simulated
from robot_stack.apps.collect import ActionNoise, ExpertProposer
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.seeds import demonstration_seed
from robot_stack.apps.train import train
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import PolicySettings, StackConfig
from robot_stack.config.task import TaskConfig
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import Step
from robot_stack.edge.control_loop import ControlLoop, EpisodeId
from robot_stack.edge.outbox import pack_step
from robot_stack.edge.recorder import Recorder, RecordingId


def make_base(config: StackConfig, *, success_reward: bool) -> None:
    """Demonstrations and the policy that imitates them, in the folder of the run; what is there already stays.

    An interrupted collection or training goes on where it was. ConfigError if it was begun with other settings.
    """
    layout = RunLayout.of(config)
    _remember(config, layout.root / "begun-with.json", success_reward=success_reward)
    if layout.policy.exists():
        return
    collect(config, success_reward=success_reward)
    train(config, lambda: True)


class _Begun(Struct, frozen=True, kw_only=True):
    """All that demonstrations and base policy depend on; `success_reward` stands in the demonstrations."""

    task: TaskConfig
    policy: PolicySettings
    seed: int
    success_reward: bool


def _remember(config: StackConfig, path: Path, *, success_reward: bool) -> None:
    begun = _Begun(task=config.task, policy=config.policy, seed=config.seed, success_reward=success_reward)
    encoded = msgspec.json.format(msgspec.json.encode(begun), indent=1)
    if path.exists() and path.read_bytes() != encoded:
        raise ConfigError(
            f"{path.parent} was begun with other settings (see {path}); move it away, or use another --work"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encoded)


def collect(config: StackConfig, *, success_reward: bool) -> None:
    """Successful episodes of the task's expert, as `robot-stack collect` records them, without a robot server.

    RobotError if `task.max_attempts` do not give as many as the task wants.
    """
    task, layout = config.task, RunLayout.of(config)
    with (
        StepStore(layout.demonstrations, "process", config.learner.store) as log,
        LocalRobot(build_simulated(config), success_reward=success_reward) as robot,
        tqdm(total=task.demonstrations, desc=f"demonstrations {task.name}", file=sys.stderr) as bar,
    ):
        layout.remember_robot(robot.spec)
        episodes = {step.episode for _, step in log.iterate(0)}
        kept, attempts = len(episodes), max(episodes, default=-1) + 1
        proposer = ExpertProposer(build_expert(config, robot.spec))
        noise = ActionNoise(robot.spec.action, task.demonstration_noise)
        pending: list[Step] = []
        recorder = Recorder(RecordingId(config.run, robot.spec.name, task.name), pending.append)
        loop = ControlLoop(robot, proposer, noise, [recorder], config.edge.max_state_age_s)
        bar.update(kept)
        while kept < task.demonstrations:
            if attempts >= task.max_attempts:
                raise RobotError(f"only {kept} of {task.demonstrations} demonstrations after {attempts} attempts")
            pending.clear()
            summary = loop.run_episode(EpisodeId(attempts, demonstration_seed(config.seed, attempts)))
            attempts += 1
            if summary.success:
                log.append([pack_step(step, ImageCodec.RAW) for step in pending])
                kept += 1
                bar.update()
