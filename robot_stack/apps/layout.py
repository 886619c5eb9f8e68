"""Where everything of a run lies: `runs/<name>/...`. One place, so that no two programs disagree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError, PolicyError, SpecMismatchError
from robot_stack.core.files import write_atomically
from robot_stack.core.specs import RobotSpec


@dataclass(frozen=True, slots=True)
class RunLayout:
    root: Path

    @classmethod
    def of(cls, config: StackConfig) -> RunLayout:
        if not config.run or "/" in config.run or config.run.startswith("."):
            raise ConfigError(f"run = '{config.run}' is not a name: use letters, digits, '-' and '_'")
        return cls(Path(config.runs_directory) / config.run)

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def robot(self) -> Path:
        """Spec of the robot that the demonstrations were taken on."""
        return self.root / "robot.json"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def demonstrations(self) -> Path:
        return self.root / "demonstrations"

    @property
    def training(self) -> Path:
        """Checkpoints of the imitation learning."""
        return self.root / "training"

    @property
    def training_metrics(self) -> Path:
        return self.root / "training.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def policy(self) -> Path:
        return self.root / "policy"

    @property
    def acceleration(self) -> Path:
        """What makes the policy faster: its schedule, and graphs that a back-end will not build again."""
        return self.root / "acceleration"

    @property
    def edge(self) -> Path:
        return self.root / "edge"

    @property
    def learner(self) -> Path:
        return self.root / "learner"

    @property
    def steps(self) -> Path:
        return self.learner / "steps"

    @property
    def checkpoints(self) -> Path:
        return self.learner / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.learner / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    def remember(self, config: StackConfig) -> None:
        """Keep the configuration beside the run; a run is never continued under another one."""
        encoded = msgspec.json.format(msgspec.json.encode(config), indent=1)
        if self.config.exists():
            if self.config.read_bytes() != encoded:
                raise ConfigError(
                    f"{self.root} was begun with another configuration (see {self.config}); give this one another "
                    "name with run=NAME, or remove that folder"
                )
            return
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, encoded)

    def remember_robot(self, spec: RobotSpec) -> None:
        """Keep the robot's spec; SpecMismatchError if the run's demonstrations are another robot's."""
        encoded = msgspec.json.format(msgspec.json.encode(spec), indent=1)
        if self.robot.exists() and self.robot.read_bytes() != encoded:
            raise SpecMismatchError(
                f"the demonstrations in {self.root} were taken on another robot or task (see {self.robot}) than "
                f"'{spec.name}' ({spec.model}, {spec.task}); begin another run with run=NAME"
            )
        write_atomically(self.robot, encoded)

    def robot_spec(self) -> RobotSpec:
        """The spec that `remember_robot` kept; PolicyError if nothing was collected yet."""
        if not self.robot.exists():
            raise PolicyError(f"there are no demonstrations in {self.root}; collect some first: robot-stack collect")
        return msgspec.json.decode(self.robot.read_bytes(), type=RobotSpec)
