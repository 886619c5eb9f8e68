"""Settings of the reward models. Nothing here loads torch: reading a configuration must stay quick.

`REWARD_PRESETS` are the choices of `reward=...`; `AnyReward` is their union.
"""

from __future__ import annotations

from msgspec import Struct

from policies.common.vision_config import VisionConfig
from robot_stack.core.checked import Checked
from robot_stack.core.errors import ConfigError


class RewardSettings(Checked, frozen=True, kw_only=True, tag_field="kind"):
    """What every source of rewards has.

    Attributes:
        consecutive: so many positive verdicts in a row make a success; what a person or the task itself says counts at
            once.
        labels: file with people's labels (`robot_stack.learner.rewards.labels`), which override the model; '' for none.
        false_positive_rate, false_negative_rate: shares of the verdicts that are turned around on purpose, to measure
            what errors do to the learning; `error_seed` says which ones.
    """

    consecutive: int = 1
    labels: str = ""
    false_positive_rate: float = 0.0
    false_negative_rate: float = 0.0
    error_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("false_positive_rate", "false_negative_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"reward.{name} is {getattr(self, name)}; allowed: 0 to 1")

    def positive(self) -> tuple[str, ...]:
        return ("consecutive",)

    @property
    def has_errors(self) -> bool:
        return self.false_positive_rate > 0.0 or self.false_negative_rate > 0.0


class TaskPredicateSettings(RewardSettings, frozen=True, kw_only=True, tag="task_predicate"):
    """The reward that was recorded: the task's own predicate, where there is one."""


class HumanLabelSettings(RewardSettings, frozen=True, kw_only=True, tag="human_label"):
    """What people said (`labels` is needed); where nobody said anything, the reward that was recorded."""


class ClassifierSettings(RewardSettings, frozen=True, kw_only=True, tag="classifier"):
    """A trained classifier of success; `folder`: where it was saved. `backward`: of the one that judges the backward
    direction of a task that can be undone, '' if one judges all."""

    folder: str = ""
    backward: str = ""


class VlmSettings(RewardSettings, frozen=True, kw_only=True, tag="vlm"):
    """A pretrained vision-language model answers a question with yes or no (RoboFuME, arXiv 2310.15145).

    Attributes:
        model: folder, or name on the hub.
        question: about the pictures, whose answer is yes exactly where the task is done.
        cameras: whose pictures are shown, in this order; all, in the order of their names, if there are none here.
        threshold: share of yes in p(yes) + p(no) above which the answer is yes; 0.5 is p(yes) > p(no).
    """

    model: str = ""
    question: str = ""
    cameras: tuple[str, ...] = ()
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.threshold < 1.0:
            raise ConfigError(f"reward.threshold is {self.threshold}; allowed: 0 up to 1, 1 excluded")


class GoalImageSettings(RewardSettings, frozen=True, kw_only=True, tag="goal_image"):
    """Nearness to pictures of the goal. `folder`: where the goals and their threshold were saved; `classifier`: of the
    classifier whose encoder measures the distance, '' if pixels do."""

    folder: str = ""
    classifier: str = ""


class MedalSettings(RewardSettings, frozen=True, kw_only=True, tag="medal"):
    """Backward steps are paid for states that look demonstrated (`robot_stack.learner.rewards.medal`); forward ones as
    recorded. Published: 128 hidden units, learning rate 3e-4, mixup, batches of 512, rewards of 10 times -log(1 - D).

    Attributes:
        places: names of the elements of observed vectors that the discriminator reads.
        visited: newest states of backward practice that it learns from, one update for each new one.
        reward_scale: 1 - discount over log 2 makes the value of a state that is as often visited as demonstrated 1.
    """

    places: tuple[str, ...] = ("tool_x_m", "tool_y_m", "tool_z_m", "tool_yaw_rad")
    hidden: int = 128
    lr: float = 3e-4
    mixup: bool = True
    batch_size: int = 256
    visited: int = 2_000
    reward_scale: float = 0.03
    seed: int = 0

    def positive(self) -> tuple[str, ...]:
        return (*super().positive(), "hidden", "lr", "batch_size", "visited", "reward_scale")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_errors or self.labels or self.consecutive != 1:
            raise ConfigError(
                "reward=medal keeps the recorded successes; labels, consecutive and error rates belong to other rewards"
            )


AnyReward = (
    TaskPredicateSettings | HumanLabelSettings | ClassifierSettings | VlmSettings | GoalImageSettings | MedalSettings
)

REWARD_PRESETS: dict[str, RewardSettings] = {
    "task_predicate": TaskPredicateSettings(),
    "human_label": HumanLabelSettings(),
    "classifier": ClassifierSettings(),
    "vlm": VlmSettings(),
    "goal_image": GoalImageSettings(),
    "medal": MedalSettings(),
}


class ClassifierTraining(Struct, frozen=True, kw_only=True):
    """How a classifier is trained: the recipe of SERL (arXiv 2401.16013).

    The encoders are trained too, with a higher rate than SERL's 1e-4 for the head on a frozen pretrained encoder.

    Attributes:
        vision: of the encoder of each camera; its crop is the augmentation.
        hidden_dim, dropout: of the head.
        batch_size: half successes, half not.
        threshold: probability above which it is a success: high, because a success that is none ends episodes and is
            learned, while one that is missed costs an episode.
        largest_false_positive_rate: the threshold is raised until no more than this share of what is no success is
            above it, on episodes that are put aside for it; 0 leaves the threshold as it is.
        held_out_share: of the episodes that only the error rates are measured on, and, of the rest, of those put aside.
    """

    vision: VisionConfig = VisionConfig()
    hidden_dim: int = 256
    dropout: float = 0.1
    steps: int = 150
    batch_size: int = 256
    lr: float = 1e-3
    threshold: float = 0.85
    largest_false_positive_rate: float = 0.0
    held_out_share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.hidden_dim, self.steps) < 1 or self.batch_size < 2 or self.lr <= 0.0:
            raise ConfigError("hidden_dim and steps must be 1 or more, batch_size 2 or more, lr above 0")
        for name in ("threshold", "held_out_share"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} of a reward classifier is {getattr(self, name)}; allowed: between 0 and 1")
        for name in ("dropout", "largest_false_positive_rate"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} of a reward classifier is {getattr(self, name)}; allowed: 0 up to 1")
