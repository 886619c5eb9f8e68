"""The learner's ranks on the nodes of a cluster; nothing here knows Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from ipaddress import ip_address

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from policies.generative.runtime_config import RuntimeConfig
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.learner import build_parts, run_learner
from robot_stack.apps.process import set_up_logging, use_one_torch_thread
from robot_stack.apps.train import read_demonstrations
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, StorageError
from robot_stack.learner.cluster.follower import Draws, Follower, GroupMean
from robot_stack.learner.cluster.leader import Leader
from robot_stack.learner.cluster.messages import RankReply, RankRequest, Wait
from robot_stack.learner.cluster.nodes import LEARNER, Here
from robot_stack.learner.cluster.settings import ClusterConfig

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class RankSettings(Struct, frozen=True, kw_only=True):
    """`overrides`: the run's configuration. `rank`: of this learner."""

    overrides: tuple[str, ...]
    rank: int


def make_leader(settings: bytes, here: Here) -> LeaderService:
    set_up_logging(False)
    return LeaderService(msgspec.json.decode(settings, type=RankSettings), here)


def make_follower(settings: bytes, here: Here) -> FollowerService:
    set_up_logging(False)
    return FollowerService(msgspec.json.decode(settings, type=RankSettings), here)


class LeaderService:
    """Rank 0: the learner, at the port of `network.learner_address` on whatever node this is."""

    def __init__(self, settings: RankSettings, here: Here) -> None:
        self._settings, self._here = settings, here
        self._leader: Leader | None = None
        self._address = ""

    def run(self, keep_running: Callable[[], bool]) -> None:
        config = compose_config(self._settings.overrides)
        _check_folder(RunLayout.of(config), self._here.address)
        if config.cluster.ranks > 1:
            check_network(config.cluster, self._here.address)
            self._leader = Leader(self._here.address, config.cluster.sync_timeout_s)
        port = config.network.learner_address.rpartition(":")[2]
        self._address = f"tcp://{self._here.address}:{port}"
        config = replace(config, network=replace(config.network, learner_address=self._address))
        give_up_s = time.monotonic() + config.cluster.patience_s
        while keep_running():
            try:
                run_learner(config, keep_running, self._leader)
                return
            except StorageError as error:
                # On another node its predecessor may still be dying, with the store in its hands.
                if time.monotonic() >= give_up_s:
                    raise
                logger.warning("%s; trying again", error)
                time.sleep(RETRY_S)

    def answer(self, request: bytes) -> bytes:
        decoded: RankRequest = msgspec.msgpack.decode(request, type=RankRequest)
        loading = Wait(position=-1, durable=-1)
        return msgspec.msgpack.encode(loading if self._leader is None else self._leader.answer(decoded))

    def describe(self) -> str:
        """Where edges reach the learner."""
        return self._address


class FollowerService:
    """Another rank: reads policy and demonstrations in the run's folder, and gets the steps from rank 0."""

    def __init__(self, settings: RankSettings, here: Here) -> None:
        self._settings, self._here = settings, here
        self._follower: Follower | None = None

    def run(self, keep_running: Callable[[], bool]) -> None:
        use_one_torch_thread()
        config = compose_config(self._settings.overrides)
        layout, algorithm = RunLayout.of(config), config.algorithm
        _check_folder(layout, self._here.address)
        sharing = GroupMean()
        base = load_base_policy(config, RuntimeConfig())
        parts = build_parts(config, base, read_demonstrations(layout), sharing)
        self._follower = Follower(
            self._settings.rank,
            parts.recipe,
            parts.replays,
            parts.observation,
            Draws(config.seed, algorithm.batch_size, algorithm.n_step, algorithm.discount),
            sharing,
            self._ask,
            self._here.address,
            config.cluster.sync_timeout_s,
        )
        self._follower.run(keep_running)

    def _ask(self, request: RankRequest) -> RankReply:
        reply: RankReply = msgspec.msgpack.decode(
            self._here.ask(LEARNER, msgspec.msgpack.encode(request)), type=RankReply
        )
        return reply

    def answer(self, request: bytes) -> bytes:
        return b""

    def describe(self) -> str:
        """Updates made, and how often this rank was not what rank 0 was."""
        follower = self._follower
        return "loading" if follower is None else f"{follower.updates} updates, {follower.differences} differences"


def check_network(cluster: ClusterConfig, address: str) -> None:
    if not cluster.trusted_network and not ip_address(address).is_loopback:
        raise ConfigError(
            f"{cluster.ranks} ranks would add up their gradients at {address}, and torch.distributed neither encrypts "
            "nor authenticates: give the cluster a network of its own and say cluster.trusted_network=true, or set "
            "cluster.ranks=1"
        )


def _check_folder(layout: RunLayout, node: str) -> None:
    if not layout.robot.exists() or not layout.policy.exists():
        raise StorageError(
            f"node {node} sees no demonstrations and trained policy in {layout.root}: collect and train first, mount "
            "the folder on every node that may learn, and mark those (cluster.folder_resource)"
        )
