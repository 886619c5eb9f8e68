"""What a run on several machines is made of, before any Ray: each robot's own configuration, and its folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from robot_stack.apps.cluster import robot_overrides
from robot_stack.apps.cluster_learner import check_network
from robot_stack.apps.cluster_robot import show_run_to_robot
from robot_stack.apps.layout import RunLayout
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, MissingDependencyError, StorageError
from robot_stack.learner.cluster.nodes import Cluster
from robot_stack.learner.cluster.settings import ClusterConfig


def test_a_run_without_a_list_has_the_configured_robot_as_it_is() -> None:
    assert robot_overrides(compose_config([])) == {"franka_0": ()}


def test_robots_of_a_list_share_no_name_no_edge_and_no_port() -> None:
    config = compose_config(["cluster.robots.left=''", "cluster.robots.right='robot.control_rate_hz=20'"])
    own = robot_overrides(config)
    left, right = (compose_config(own[name]) for name in ("left", "right"))
    assert (left.robot.name, left.edge.name) == ("left", "left")
    assert (right.robot.name, right.edge.name) == ("right", "right")
    assert left.network.robot_address.endswith(":7710") and right.network.robot_address.endswith(":7810")
    assert left.network.learner_address == right.network.learner_address
    assert right.robot.control_rate_hz == 20.0


def test_a_robots_overrides_go_before_what_its_place_in_the_list_says() -> None:
    config = compose_config(["cluster.robots.left='network.robot_address=tcp://127.0.0.1:9000 seed=3'"])
    left = compose_config(robot_overrides(config)["left"])
    assert left.network.robot_address == "tcp://127.0.0.1:9000" and left.seed == 3


def test_a_name_that_is_a_path_is_refused() -> None:
    config = replace(compose_config([]), cluster=ClusterConfig(robots={"../x": ""}))
    with pytest.raises(ConfigError, match="is no name"):
        robot_overrides(config)


def test_a_robots_folder_shows_the_run_and_keeps_its_own_spool(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "shared")
    for folder in (run.keys, run.policy):
        folder.mkdir(parents=True)
    run.robot.write_text("{}")
    local = tmp_path / "local"
    show_run_to_robot(run, local, "here")
    show_run_to_robot(run, local, "here")  # a second start finds its links
    (run.policy / "new").touch()
    assert (local / "policy" / "new").exists()
    assert not (run.root / "edge").exists() and not (local / "edge").exists()


def test_a_node_that_sees_nothing_of_the_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"node here does not see .* has no keys, policy, robot.json"):
        show_run_to_robot(RunLayout(tmp_path / "shared"), tmp_path / "local", "here")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"robot-stack\[cluster\]"), Cluster("auto", "run"):
        pass


def test_ranks_listen_beyond_loopback_only_where_somebody_says_that_the_network_is_theirs() -> None:
    check_network(ClusterConfig(ranks=2), "127.0.0.1")
    check_network(ClusterConfig(ranks=2, trusted_network=True), "10.0.0.7")
    with pytest.raises(ConfigError, match=r"10\.0\.0\.7.*trusted_network"):
        check_network(ClusterConfig(ranks=2), "10.0.0.7")
