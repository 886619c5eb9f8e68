"""A policy that is computed in another process, on this computer or another one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from robot_stack.core.errors import CommandRefusedError, MessageError, PolicyError, SpecMismatchError
from robot_stack.core.messages import SCHEMA_VERSION, ActionChunk, Features, FloatArray, Hello, Observation
from robot_stack.core.policy_messages import PolicyInfo, PolicyReply, PredictChunk, PredictedChunk
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.warmup import check_chunk
from robot_stack.transport.client import RequestClient

POLICY_PROBLEM = "PolicyError"
"""`Failed.reason` of a policy server whose policy refused the observation."""


def spec_fingerprint(spec: PolicySpec) -> str:
    """16 hexadecimal digits: whoever drives a robot by another spec than the server's is refused."""
    return hashlib.sha256(msgspec.json.encode(spec)).hexdigest()[:16]


class RemotePolicy:
    """Asks a policy server; a `GuidedChunkPolicy`. Chunks are those of the server's policy, checked against its spec.

    Predictions may be asked for from several threads, one after another or at once: each has a connection of its own,
    opened by `make_client` at its first use. Use as a context manager, which closes them when those threads have ended.

    Args:
        robot: whose observations these are.
        timeout_s: for one prediction, the waiting behind other robots included.
    """

    def __init__(
        self, make_client: Callable[[], RequestClient[PolicyReply]], robot: str, timeout_s: float = 5.0
    ) -> None:
        self._make_client = make_client
        self._robot = robot
        self._timeout_s = timeout_s
        self._info: PolicyInfo | None = None
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, RequestClient[PolicyReply]] = {}

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for client in self._clients.values():
                client.__exit__(None, None, None)
            self._clients.clear()

    @property
    def info(self) -> PolicyInfo:
        if self._info is None:
            raise PolicyError("not connected to a policy server yet")
        return self._info

    @property
    def spec(self) -> PolicySpec:
        return self.info.spec

    @property
    def example_instruction(self) -> str:
        return self.info.example_instruction

    def connect(self, patience_s: float) -> PolicyInfo:
        """Wait up to `patience_s` for the server and its warm-up.

        Raises:
            UnreachableError, AuthenticationError: nobody answers, or not to our key.
            CommandRefusedError: the server is of another release.
            SpecMismatchError: what it says about itself does not belong together.
        """
        reply = self._client().greet(Hello(schema_version=SCHEMA_VERSION, peer=self._robot), patience_s)
        if not isinstance(reply, PolicyInfo):
            raise MessageError(f"the policy server answered Hello with {type(reply).__name__}")
        if spec_fingerprint(reply.spec) != reply.fingerprint:
            raise SpecMismatchError(
                f"the policy server's spec of '{reply.spec.name}' does not have its fingerprint {reply.fingerprint}; "
                "install the same release on both"
            )
        self._info = reply
        return reply

    def predict(self, observation: Observation) -> ActionChunk:
        """The server's chunk for this observation; only what the policy reads is sent.

        Raises:
            PolicyError: the policy refuses the observation, or its chunk is not what its spec promises.
            UnreachableError: no answer in time.
            CommandRefusedError: the server serves another policy now.
        """
        return self._ask(self._request(observation))

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        """The same, going on from planned actions: see `GuidedChunkPolicy`. PolicyError too if the server cannot."""
        plain = self._request(observation)
        return self._ask(replace(plain, planned=previous, delay_steps=delay_steps, execute_steps=execute_steps))

    def _request(self, observation: Observation) -> PredictChunk:
        spec = self.spec
        past = observation.past[1 - spec.history :] if spec.history > 1 else ()
        asked = replace(
            observation,
            features=_read(observation.features, spec),
            age_ns={},
            past=tuple(_read(frame, spec) for frame in past),
        )
        return PredictChunk(fingerprint=self.info.fingerprint, robot=self._robot, observation=asked)

    def _ask(self, request: PredictChunk) -> ActionChunk:
        try:
            reply = self._client().request(request, self._timeout_s)
        except CommandRefusedError as error:
            if error.reason == POLICY_PROBLEM:
                raise PolicyError(str(error)) from error
            raise
        if not isinstance(reply, PredictedChunk):
            raise MessageError(f"the policy server answered with {type(reply).__name__} where a chunk was due")
        chunk = reply.chunk
        check_chunk(self.spec, chunk.actions, chunk.index, request.observation.index)
        return chunk

    def _client(self) -> RequestClient[PolicyReply]:
        """This thread's connection; those of threads that have ended are closed when a new one is opened."""
        thread = threading.current_thread()
        with self._lock:
            client = self._clients.get(thread)
            if client is None:
                for ended in [other for other in self._clients if not other.is_alive()]:
                    self._clients.pop(ended).__exit__(None, None, None)
                client = self._clients[thread] = self._make_client().__enter__()
        return client


def _read(features: Features, spec: PolicySpec) -> Features:
    return {name: features[name] for name in spec.observation if name in features}
