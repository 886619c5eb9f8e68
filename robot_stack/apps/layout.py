"""Where everything of a run lies: `runs/<name>/...`. One place, so that no two programs disagree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from robot_stack.config.schema import DEFAULT_EDGE, StackConfig
from robot_stack.core.errors import ConfigError, PolicyError, SpecMismatchError
from robot_stack.core.files import write_atomically
from robot_stack.core.specs import RobotSpec


@dataclass(frozen=True, slots=True)
class RunLayout:
    """`edge_name`: of the edge that this process is, or means."""

    root: Path
    edge_name: str = DEFAULT_EDGE

    @classmethod
    def of(cls, config: StackConfig) -> RunLayout:
        for key, name in (("run", config.run), ("edge.name", config.edge.name)):
            if not name or "/" in name or name.startswith("."):
                raise ConfigError(f"{key} = '{name}' is not a name: use letters, digits, '-' and '_'")
        return cls(Path(config.runs_directory) / config.run, config.edge.name)

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
    def takes(self) -> Path:
        """What people demonstrated and nobody judged yet, and what was rejected."""
        return self.root / "takes"

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
        """What an edge keeps: its spool, status, timing and number of the next episode."""
        return self.root / "edge" if self.edge_name == DEFAULT_EDGE else self._named_edges / self.edge_name

    @property
    def edges(self) -> dict[str, Path]:
        """The folders of all edges that were ever started here, by name."""
        named = sorted(folder for folder in self._named_edges.glob("*") if folder.is_dir())
        alone = self.root / "edge"
        return ({DEFAULT_EDGE: alone} if alone.is_dir() else {}) | {folder.name: folder for folder in named}

    @property
    def _named_edges(self) -> Path:
        return self.root / "edges"

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
    def labels(self) -> Path:
        """What people said of episodes, where `reward=human_label` may read it."""
        return self.root / "labels.jsonl"

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
        """Keep the configuration beside the run; a run is never continued under another one.

        Where its processes listen, who demonstrates with what, and whether simulated time is that of the wall clock may
        change.
        """
        encoded = msgspec.json.format(msgspec.json.encode(config), indent=1)
        if self.config.exists():
            if _lasting(self.config.read_bytes()) != _lasting(encoded):
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


def _lasting(encoded: bytes) -> dict[str, object]:
    """What makes the results of a configuration."""
    content = msgspec.json.decode(encoded, type=dict[str, object])
    robot = content.get("robot")
    if isinstance(robot, dict):
        robot.pop("lock_step", None)
    return {key: value for key, value in content.items() if key not in ("network", "teleop", "device")}
