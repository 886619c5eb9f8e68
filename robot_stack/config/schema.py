"""The whole configuration as typed records: every key that exists, its default, and what it means.

Records check their own values; hydra only groups and overrides them (`robot_stack.config.compose`).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from policies.residual.config import ExplorationConfig, ResidualConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.config import ResidualTd3Config
from robot_stack.learner.bc_config import BcConfig


class _Checked(Struct, frozen=True, kw_only=True):
    """Base: a subclass names its positive keys."""

    def __post_init__(self) -> None:
        for name in self.positive():
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{type(self).__name__}.{name} = {value} must be larger than 0")

    def positive(self) -> tuple[str, ...]:
        return ()


class FrankaSimConfig(_Checked, frozen=True, kw_only=True, tag_field="kind", tag="franka_sim"):
    """The simulated Franka FR3.

    name: under which its steps are recorded. action_space: ee_delta, ee_pose or joint_position.
    lock_step: time stands still between commands; false runs on the wall clock. cameras: recorded with every
    observation (front, wrist_rgb). view_cameras: rendered on request only, for films.
    """

    name: str = "franka_0"
    action_space: str = "ee_delta"
    control_rate_hz: float = 10.0
    tick_rate_hz: float = 100.0
    lock_step: bool = True
    cameras: tuple[str, ...] = ()
    view_cameras: tuple[str, ...] = ("front",)

    def positive(self) -> tuple[str, ...]:
        return ("control_rate_hz", "tick_rate_hz")


class GymnasiumConfig(_Checked, frozen=True, kw_only=True, tag_field="kind", tag="gymnasium"):
    """Any Gymnasium environment with a Box action space, in the place of robot and task.

    env_id: `module:Id` or `module/Id` as gymnasium.make takes it. observation_keys: feature name -> path of the
    environment's observation ('' is the whole, 'a.b' goes into dictionaries). env_kwargs: passed to gymnasium.make.
    success_key: key of the info dictionary that says success.
    """

    name: str = "gymnasium_0"
    env_id: str = "gym_pusht/PushT-v0"
    observation_keys: dict[str, str] = field(default_factory=lambda: {"observation.state": ""})
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    success_key: str = "is_success"
    control_rate_hz: float = 10.0
    max_episode_steps: int = 300
    lock_step: bool = True

    def positive(self) -> tuple[str, ...]:
        return ("control_rate_hz", "max_episode_steps")


class TaskConfig(_Checked, frozen=True, kw_only=True):
    """What is to be learned and where its demonstrations come from.

    features: observation features that policies read. demonstrations: episodes to collect. max_attempts: give up
    after so many. keep: which attempts become demonstrations: the successful ones, or those whose return reaches
    `keep_return`. demonstration_noise: standard deviation of the noise
    on the expert's action, as a fraction of the action's range; what is learned is the action without it.
    """

    name: str
    features: tuple[str, ...]
    demonstrations: int = 60
    max_attempts: int = 300
    keep: Literal["success", "return"] = "success"
    keep_return: float = 0.0
    demonstration_noise: float = 0.1

    def positive(self) -> tuple[str, ...]:
        return ("demonstrations", "max_attempts")


class DiffusionPolicySettings(_Checked, frozen=True, kw_only=True):
    """Base policy: a diffusion policy and its behaviour cloning. execute_steps: actions run of each chunk."""

    training: BcConfig = BcConfig()
    execute_steps: int = 8

    def positive(self) -> tuple[str, ...]:
        return ("execute_steps",)


class ResidualTd3Settings(_Checked, frozen=True, kw_only=True):
    """Residual off-policy RL: actor, updates, exploration, replay.

    updates_per_step: learner updates for every environment step after the warm-up. n_step, discount: of the returns.
    demonstration_share: part of each batch that comes from demonstrations.
    """

    residual: ResidualConfig = ResidualConfig()
    update: ResidualTd3Config = ResidualTd3Config()
    exploration: ExplorationConfig = ExplorationConfig()
    batch_size: int = 256
    updates_per_step: float = 1.0
    n_step: int = 3
    discount: float = 0.98
    demonstration_share: float = 0.5
    replay_capacity: int = 200_000

    def positive(self) -> tuple[str, ...]:
        return ("batch_size", "updates_per_step", "n_step", "discount", "replay_capacity")


class LearnerConfig(_Checked, frozen=True, kw_only=True):
    """target_steps: environment steps to train through. publish_every_steps: new weights at the end of the first
    episode after so many steps. checkpoint_every_s: seconds between checkpoints. durability: `power` syncs every
    batch of steps to the disk before it is acknowledged, `process` leaves that to the kernel."""

    target_steps: int = 20_000
    publish_every_steps: int = 250
    checkpoint_every_s: float = 15.0
    durability: Literal["process", "power"] = "power"

    def positive(self) -> tuple[str, ...]:
        return ("target_steps", "publish_every_steps", "checkpoint_every_s")


class EdgeConfig(_Checked, frozen=True, kw_only=True):
    """max_lead_steps: a simulated robot waits before an episode while the learner is more steps behind than this;
    0 makes the run repeatable bit for bit, -1 never waits. max_state_age_s: older states are refused.
    spool_capacity_bytes: room for steps that the learner has not acknowledged."""

    max_lead_steps: int = 500
    max_state_age_s: float = 0.2
    spool_capacity_bytes: int = 4 << 30
    patience_s: float = 30.0

    def positive(self) -> tuple[str, ...]:
        return ("max_state_age_s", "spool_capacity_bytes", "patience_s")


class EvaluationConfig(_Checked, frozen=True, kw_only=True):
    """episodes: paired episodes on seeds first_seed, first_seed + 1, ...; training never uses these seeds.
    workers: parallel processes, each with a robot server of its own. replan_every: re-planning intervals at which
    the base policy is shown beside the trained one; replan_episodes: episodes for each of them. videos: rollouts
    in the report, seen by `camera` ('' for none). wall_clock_episodes: episodes of the simulated Franka in real time,
    for the timing of the control loop."""

    episodes: int = 200
    first_seed: int = 0
    workers: int = 2
    replan_every: tuple[int, ...] = (4, 1)
    replan_episodes: int = 100
    videos: int = 3
    camera: str = "front"
    wall_clock_episodes: int = 3

    def positive(self) -> tuple[str, ...]:
        return ("episodes", "workers", "replan_episodes")


class NetworkConfig(_Checked, frozen=True, kw_only=True):
    """Where the servers listen. Every connection is encrypted and authenticated with CURVE keys."""

    robot_address: str = "tcp://127.0.0.1:7710"
    state_address: str = "tcp://127.0.0.1:7711"
    learner_address: str = "tcp://127.0.0.1:7720"


class StackConfig(_Checked, frozen=True, kw_only=True):
    """Everything. run: name of the run; runs_directory: where runs are kept; seed: of all training randomness."""

    robot: FrankaSimConfig | GymnasiumConfig
    task: TaskConfig
    policy: DiffusionPolicySettings
    algorithm: ResidualTd3Settings
    learner: LearnerConfig = LearnerConfig()
    edge: EdgeConfig = EdgeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    network: NetworkConfig = NetworkConfig()
    run: str = "demo"
    runs_directory: str = "runs"
    seed: int = 0
