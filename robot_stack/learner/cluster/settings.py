"""Settings of a run on several machines. Nothing here loads torch or Ray: reading a configuration must stay quick."""

from __future__ import annotations

from msgspec import field

from robot_stack.core.checked import Checked


class ClusterConfig(Checked, frozen=True, kw_only=True):
    """A run on a Ray cluster (`robot-stack cluster`).

    address: of the cluster's head, `10.0.0.1:6379`; 'auto' finds the one that this machine belongs to.
    robots: name -> overrides of that robot alone, `network.robot_address=tcp://127.0.0.1:7810`, separated by spaces;
    none given: one robot, with the configured robot's name. robot_directory: where a robot's node keeps its spool, ''
    for a folder in the run's; that node's own disk is better. ranks: learners that make every update together.
    rank_cpus, robot_cpus: what Ray sets aside for each. folder_resource: custom resource of the nodes that see the
    run's folder, '' where all do. patience_s: how long a robot or a learner may take to find its node.
    sync_timeout_s: a rank that keeps the others waiting for longer is left behind. trusted_network: what the ranks say
    to each other is neither encrypted nor authenticated (torch.distributed), so beyond one machine they need a network
    of their own, and somebody who says that this is one.
    """

    address: str = "auto"
    robots: dict[str, str] = field(default_factory=dict)
    robot_directory: str = ""
    ranks: int = 1
    rank_cpus: float = 1.0
    robot_cpus: float = 0.0
    folder_resource: str = ""
    patience_s: float = 30.0
    sync_timeout_s: float = 5.0
    trusted_network: bool = False

    def positive(self) -> tuple[str, ...]:
        return ("ranks", "rank_cpus", "patience_s", "sync_timeout_s")
