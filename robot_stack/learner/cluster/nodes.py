"""Work on the nodes of a Ray cluster. The cluster package alone imports Ray, and only when a cluster is asked for.

Ray decides which node does what and starts what died again; it carries no control data and no gradients. A piece of
work is an ordinary class, a `Service`, in a process of its own (a Ray actor); it never hears of Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from robot_stack.core.errors import (
    AuthenticationError,
    ConfigError,
    MissingDependencyError,
    RobotError,
    RobotStackError,
    UnreachableError,
)

logger = logging.getLogger(__name__)

ROBOT = "robot/"
LEARNER = "learner/0"
_NAMESPACE = "robot_stack/"
_KNOCK_TIMEOUT_S = 5.0
_ASK_TIMEOUT_S = 10.0
_STATE_TIMEOUT_S = 2.0
_STOP_PATIENCE_S = 20.0
_POLL_S = 0.2
_PROCESS_FAILED = 75  # above the codes of errors that a restart does not help against, as in `apps.supervisor`


class Service(Protocol):
    """What an actor does. `run` in one thread, the rest in others; errors whose exit code is below 64 end the work
    for good, anything else ends the process, which Ray starts again."""

    def run(self, keep_running: Callable[[], bool]) -> None: ...

    def answer(self, request: bytes) -> bytes: ...

    def describe(self) -> str: ...


MakeService = Callable[[bytes, "Here"], Service]
"""A function at the top of a module, from settings and the actor's place to its work. Quick: `run` does what takes
time."""


class HostState(Struct, frozen=True, kw_only=True):
    """How an actor is. `problem`: the error that ended its work, '' for none. `detail`: what the service says."""

    pid: int
    node: str
    finished: bool
    problem: str
    exit_code: int
    detail: str


class Here:
    """An actor's own place in the cluster."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    @property
    def address(self) -> str:
        """Of this node, in the cluster's network."""
        found: str = _ray().util.get_node_ip_address()
        return found

    def ask(self, name: str, request: bytes) -> bytes:
        """Another actor's answer; UnreachableError while it is not there."""
        ray = _ray()
        try:
            actor = ray.get_actor(name, namespace=self._namespace)
            answer: bytes = ray.get(actor.ask.remote(request), timeout=_ASK_TIMEOUT_S)
        except (ValueError, ray.exceptions.RayError) as error:
            raise UnreachableError(f"'{name}' is not there: {type(error).__name__}") from error
        return answer


class Host:
    """The Ray actor around a service."""

    def __init__(self, make: MakeService, settings: bytes, namespace: str) -> None:
        self._service = make(settings, Here(namespace))
        self._end = threading.Event()
        self._problem, self._exit_code, self._finished = "", 0, False
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._service.run(lambda: not self._end.is_set())
            self._finished = True
        except BaseException as error:
            code = type(error).exit_code if isinstance(error, RobotStackError) else _PROCESS_FAILED
            logger.exception("the service ended")
            if code >= 64:
                os._exit(code)
            self._problem, self._exit_code = str(error), code

    def ask(self, request: bytes) -> bytes:
        return self._service.answer(request)

    def state(self) -> bytes:
        return msgspec.msgpack.encode(
            HostState(
                pid=os.getpid(),
                node=Here("").address,
                finished=self._finished,
                problem=self._problem,
                exit_code=self._exit_code,
                detail=self._service.describe(),
            )
        )

    def stop(self, patience_s: float) -> bool:
        """Ask the service to end; whether it did."""
        self._end.set()
        self._thread.join(patience_s)
        return not self._thread.is_alive()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A piece of work and where it may be done. `talks`: requests that are answered at the same time."""

    name: str
    make: MakeService
    settings: bytes
    cpus: float
    resources: dict[str, float]
    talks: int = 8


class Placed:
    """A piece of work that was given to the cluster."""

    def __init__(self, work: Work, actor: Any) -> None:
        self.work = work
        self._actor = actor

    def state(self, timeout_s: float = _STATE_TIMEOUT_S) -> HostState | None:
        """None while it waits for a node or is being started again."""
        ray = _ray()
        try:
            return msgspec.msgpack.decode(ray.get(self._actor.state.remote(), timeout=timeout_s), type=HostState)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayActorError as error:
            if isinstance(error, ray.exceptions.ActorUnavailableError):
                return None
            raise RobotStackError(f"'{self.work.name}' cannot be started: {error}") from error

    def ask(self, request: bytes) -> bytes:
        ray = _ray()
        try:
            answer: bytes = ray.get(self._actor.ask.remote(request), timeout=_ASK_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            raise UnreachableError(f"'{self.work.name}' is not there: {type(error).__name__}") from error
        return answer

    def stop(self) -> None:
        """Let it end in order where it can, then take it off the cluster."""
        ray = _ray()
        try:
            ray.get(self._actor.stop.remote(_STOP_PATIENCE_S), timeout=_STOP_PATIENCE_S + 5.0)
        except ray.exceptions.RayError as error:
            logger.warning("'%s' did not end in order: %s", self.work.name, type(error).__name__)
        self.drop()

    def drop(self) -> None:
        _ray().kill(self._actor)


class Cluster:
    """A connection to a running cluster, for one run. Use as a context manager.

    UnreachableError if there is no such cluster, AuthenticationError if it asks for another token.
    """

    def __init__(self, address: str, run: str) -> None:
        self._address = address
        self._namespace = _NAMESPACE + run

    def __enter__(self) -> Cluster:
        ray = _ray()
        # An actor without a GPU of its own must not hide the node's GPUs from the processes that it starts.
        environment = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
        try:
            self._knock()
            ray.init(
                address=self._address,
                namespace=self._namespace,
                log_to_driver=False,
                configure_logging=False,
                runtime_env=environment,
            )
        except (OSError, ray.exceptions.RaySystemError) as error:
            raise UnreachableError(
                f"there is no Ray cluster at '{self._address}' ({error}); start its head with: "
                "ray start --head --disable-usage-stats"
            ) from error
        except ray.exceptions.AuthenticationError as error:
            raise AuthenticationError(
                f"the cluster at '{self._address}' refused this machine's token: copy the head's ~/.ray/auth_token here"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _ray().shutdown()

    def _knock(self) -> None:
        """OSError if nobody listens at the address: Ray itself would try for minutes."""
        host, colon, port = self._address.rpartition(":")
        if colon and port.isdecimal():
            socket.create_connection((host, int(port)), timeout=_KNOCK_TIMEOUT_S).close()

    def start(self, work: Work, patience_s: float) -> Placed:
        """Give work to the cluster; it is started where there is room. ConfigError if the run does this already."""
        ray = _ray()
        options: Mapping[str, Any] = {
            "name": work.name,
            "namespace": self._namespace,
            "num_cpus": work.cpus,
            "resources": work.resources,
            "max_restarts": -1,
            "max_concurrency": work.talks,
        }
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                actor = ray.remote(Host).options(**options).remote(work.make, work.settings, self._namespace)
                return Placed(work, actor)
            except ValueError as error:
                if time.monotonic() >= deadline_s:
                    run = self._namespace.removeprefix(_NAMESPACE)
                    raise ConfigError(
                        f"run '{run}' is already on this cluster: its '{work.name}' has been there for the whole "
                        f"{patience_s:.0f} s; end it first, or name another run with run=NAME"
                    ) from error
            time.sleep(_POLL_S)

    def wait_for(self, placed: Placed, patience_s: float) -> HostState:
        """Until the work has begun. Where nobody can do it: an error that says why and what to do."""
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            state = placed.state(timeout_s=max(_POLL_S, min(1.0, deadline_s - time.monotonic())))
            if state is not None:
                return state
            time.sleep(_POLL_S)
        name = placed.work.name
        if name.startswith(ROBOT):
            raise RobotError(f"{self._why_no_robot(name)} Waited {patience_s:.0f} s (cluster.patience_s).")
        wanted = ", ".join(
            f"{count:g} {what}" for what, count in {"CPU": placed.work.cpus, **placed.work.resources}.items()
        )
        raise RobotStackError(
            f"no node of the cluster had room for '{name}' within {patience_s:.0f} s (cluster.patience_s): it needs "
            f"{wanted}. `ray status` shows what there is; add a node, or ask for less"
        )

    def _why_no_robot(self, name: str) -> str:
        """What keeps a robot from this run. Ray itself would leave it pending and say nothing."""
        ray, robot = _ray(), name.removeprefix(ROBOT)
        holders = [
            one["namespace"].removeprefix(_NAMESPACE)
            for one in ray.util.list_named_actors(all_namespaces=True)
            if one["name"] == name and one["namespace"] != self._namespace
        ]
        resources = ray.cluster_resources()
        if name not in resources:
            known = sorted(one.removeprefix(ROBOT) for one in resources if one.startswith(ROBOT))
            return (
                f"No node of the cluster has the robot '{robot}'; there are: {', '.join(known) or 'none'}. On the "
                f"machine that holds it: ray start --address={self._address} --resources='{{\"{name}\": 1}}'."
            )
        if holders:
            return (
                f"The robot '{robot}' is taken: run '{holders[0]}' holds it. End that run (Ctrl-C where `robot-stack "
                f"cluster run={holders[0]}` was started), or wait until it is over."
            )
        return (
            f"The robot '{robot}' is there, but nobody could start on its node: `ray status` shows whether its CPUs "
            "are taken (cluster.robot_cpus) or somebody else than robot-stack holds it."
        )


def _ray() -> ModuleType:
    """Ray, which sends no usage statistics from here; MissingDependencyError without it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("ray", "cluster", "a run on several machines") from error
    module: ModuleType = ray
    return module
