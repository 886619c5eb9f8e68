"""The whole configuration as typed records: every key that exists, its default, and what it means.

Records check their own values; hydra only groups and overrides them (`robot_stack.config.compose`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Union

from msgspec import field

from policies.generative.runtime_config import RuntimeConfig
from robot_stack.buffer.store import StoreSettings
from robot_stack.config.robots import ROBOT_PRESETS, RobotConfig
from robot_stack.config.task import TaskConfig
from robot_stack.config.teleop import TeleopSettings
from robot_stack.core.checked import Checked
from robot_stack.core.errors import ConfigError
from robot_stack.edge.reset_free_config import PracticeConfig
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS, AlgorithmSettings, ChunkPolicySettings
from robot_stack.learner.cluster.settings import ClusterConfig
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.rewards.settings import AnyReward, TaskPredicateSettings
from robot_stack.transport.ros2.config import Ros2NodeConfig

DEFAULT_EDGE = "edge"

if TYPE_CHECKING:
    AnyRobotConfig = RobotConfig
    AnyAlgorithm = AlgorithmSettings
else:
    AnyAlgorithm = Union[tuple({type(preset) for preset in ALGORITHM_PRESETS.values()})]  # noqa: UP007 - as below
    AnyRobotConfig = Union[tuple({type(preset) for preset in ROBOT_PRESETS.values()})]  # noqa: UP007 - made at run time


class PolicySettings(Checked, frozen=True, kw_only=True):
    """Base policy and how it is trained.

    name: begins the policy's name. horizon: actions in a chunk. history: observations that are read, the newest
    included. execute_steps: actions run of each chunk. runtime: what the policy runs on at the edge. instruction: what
    to do, in words, where the robot's side does not say it. rollout_episodes: simulated episodes whenever the training
    measures itself (`training.rollout_every`). tensorboard: the training also writes event files. teacher: name of the
    run whose flow a consistency model is distilled from.
    """

    name: str = "diffusion"
    training: ImitationConfig = ImitationConfig()
    horizon: int = 8
    history: int = 1
    execute_steps: int = 8
    runtime: RuntimeConfig = RuntimeConfig(backend="auto")
    instruction: str = ""
    rollout_episodes: int = 20
    tensorboard: bool = False
    teacher: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.execute_steps > self.horizon:
            raise ConfigError(f"policy.execute_steps is {self.execute_steps}; allowed: 1 to horizon, {self.horizon}")

    def positive(self) -> tuple[str, ...]:
        return ("horizon", "history", "execute_steps", "rollout_episodes")


class LearnerConfig(Checked, frozen=True, kw_only=True):
    """target_steps: environment steps to train through. publish_every_steps: new weights at the end of the first
    episode after so many steps. checkpoint_every_s: seconds between checkpoints. durability: `power` syncs every
    batch of steps to the disk before it is acknowledged, `process` leaves that to the kernel. tensorboard: writes event
    files beside its lines of JSON. store: sizes and retention of the stored steps."""

    target_steps: int = 20_000
    publish_every_steps: int = 250
    checkpoint_every_s: float = 15.0
    durability: Literal["process", "power"] = "power"
    tensorboard: bool = False
    store: StoreSettings = StoreSettings()

    def positive(self) -> tuple[str, ...]:
        return ("target_steps", "publish_every_steps", "checkpoint_every_s")


class EdgeConfig(Checked, frozen=True, kw_only=True):
    """name: of its folder and its key; edges of one run have different ones (see docs/several-robots.md).
    max_lead_steps: a simulated robot waits before an episode while the learner is more of its steps behind than this;
    0 makes the run repeatable bit for bit, -1 never waits. max_state_age_s: older states are refused.
    spool_capacity_bytes: room for steps that the learner has not acknowledged. outbox_capacity_bytes: memory for steps
    that wait for the disk. image_codec: how images are recorded; jpeg takes about a ninth of the room and is lossy.
    low_disk_share: with less of the disk free a warning is raised. weight_encoding: how new weights come; delta and
    float16 are for slow links, float16 is lossy. chunking: how chunks follow each other: sync (the robot waits for each
    one, repeatable bit for bit), switch, ensemble, rtc (predicted beside the control loop). canary_max_change: new
    weights whose actions differ from the old ones' by more than this share of the action's range (95 % of the tried
    observations) are refused. state_latency_s: delay of the robot's own measurements that its stamp does not know of.
    inference: `server` asks a policy server (`robot-stack policy-server`) instead of computing chunks in the edge's
    process. when_empty: what the robot does at a step for which no action is there (see ChunkingConfig).
    simulated_latency_s: how long a chunk takes in lock-step, where time stands still while it is computed. operator:
    who may take over from the policy: people at the page of `robot-stack teleop` (`seat`), or scripted ones that see
    simulated scenes and stand in for them. rule: of the seat's interventions; see docs/corrections.md."""

    name: str = DEFAULT_EDGE
    max_lead_steps: int = 500
    max_state_age_s: float = 0.2
    spool_capacity_bytes: int = 4 << 30
    outbox_capacity_bytes: int = 256 << 20
    image_codec: Literal["raw", "jpeg"] = "raw"
    low_disk_share: float = 0.1
    weight_encoding: Literal["full", "delta", "float16"] = "full"
    chunking: Literal["sync", "switch", "ensemble", "rtc"] = "sync"
    canary_max_change: float = 0.5
    state_latency_s: float = 0.0
    inference: Literal["local", "server"] = "local"
    when_empty: Literal["stop", "zero", "last"] = "stop"
    simulated_latency_s: float = 0.0
    operator: Literal["none", "seat", "scripted_rac", "scripted_hg_dagger"] = "none"
    rule: Literal["rac", "hg_dagger"] = "rac"
    patience_s: float = 30.0

    def positive(self) -> tuple[str, ...]:
        sizes = ("spool_capacity_bytes", "outbox_capacity_bytes")
        return (*sizes, "max_state_age_s", "low_disk_share", "canary_max_change", "patience_s")


class EvaluationConfig(Checked, frozen=True, kw_only=True):
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


class NetworkConfig(Checked, frozen=True, kw_only=True):
    """Where the servers listen. Every connection is encrypted and authenticated with CURVE keys.

    scene_address, scene_state_address, domain_id: of a vendor-side simulator and, on loopback only, the DDS domain
    that the vendor's interface is simulated in.
    """

    robot_address: str = "tcp://127.0.0.1:7710"
    state_address: str = "tcp://127.0.0.1:7711"
    learner_address: str = "tcp://127.0.0.1:7720"
    scene_address: str = "tcp://127.0.0.1:7730"
    scene_state_address: str = "tcp://127.0.0.1:7731"
    policy_address: str = "tcp://127.0.0.1:7750"
    seat_address: str = "tcp://127.0.0.1:7760"
    seat_state_address: str = "tcp://127.0.0.1:7761"
    domain_id: int = 1


class PolicyServerConfig(Checked, frozen=True, kw_only=True):
    """window_s: how long a request for a chunk waits for those of other robots. max_batch: chunks in one batch, at
    most."""

    window_s: float = 0.002
    max_batch: int = 16

    def positive(self) -> tuple[str, ...]:
        return ("window_s", "max_batch")


class StackConfig(Checked, frozen=True, kw_only=True):
    """Everything.

    backend: how the robot is reached: `sim` computes it here; the vendor's interfaces are listed with each robot.
    vendor: who is at the other end of a vendor's interface: `simulated` (`robot-stack vendor-sim`) or `hardware`.
    ros2_node: what the robot server looks like in ROS 2. cameras: camera processes by name (see apps/cameras.py).
    reward: what practice is paid for: the task's own predicate, or a model (`robot_stack/learner/rewards`).
    practice: whether the scene is reset for every episode (see docs/reset-free.md).
    device: what a person demonstrates with (`robot-stack collect`): `page` is the browser's keys, gamepad and touch;
    none given: the task's scripted expert demonstrates.
    run: name of the run; runs_directory: where runs are kept; seed: of all training randomness.
    """

    robot: AnyRobotConfig
    task: TaskConfig
    policy: PolicySettings
    algorithm: AnyAlgorithm
    reward: AnyReward = TaskPredicateSettings()
    learner: LearnerConfig = LearnerConfig()
    edge: EdgeConfig = EdgeConfig()
    practice: PracticeConfig = PracticeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    network: NetworkConfig = NetworkConfig()
    policy_server: PolicyServerConfig = PolicyServerConfig()
    cluster: ClusterConfig = ClusterConfig()
    teleop: TeleopSettings = TeleopSettings()
    ros2_node: Ros2NodeConfig = Ros2NodeConfig()
    cameras: dict[str, dict[str, bool | int | float | str]] = field(default_factory=dict)
    backend: str = "sim"
    vendor: Literal["simulated", "hardware"] = "simulated"
    device: str = ""
    run: str = "demo"
    runs_directory: str = "runs"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = self.algorithm.executed_steps() if isinstance(self.algorithm, ChunkPolicySettings) else None
        if wanted not in (None, self.policy.execute_steps):
            raise ConfigError(
                f"policy.execute_steps is {self.policy.execute_steps}, and the algorithm values {wanted} actions as "
                f"one: say policy.execute_steps={wanted}, or algorithm.update.decision_steps="
                f"{self.policy.execute_steps}"
            )
