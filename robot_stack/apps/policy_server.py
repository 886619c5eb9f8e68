"""The policy server: one process that computes chunks for the edges of several robots, on one GPU or CPU.

Requests that lie there together are computed as one batch where that takes less time than one after another; how long
each takes is measured while warming up and at every request since. Chunks are those of `predict`, but for rounding:
all noise comes from the observation, whatever it is batched with.

It is also the way to keep a control loop on its period beside a slow policy that holds the interpreter's lock: the
loop's process then computes nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol
from uuid import uuid4

import numpy as np
from msgspec.structs import replace

from policies.generative.guidance import GuidedPolicy
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.connections import POLICY_REQUEST
from robot_stack.apps.keys import POLICY_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import SCHEMA_VERSION, ActionChunk, Failed, FloatArray, Hello, Observation
from robot_stack.core.policy_messages import PolicyInfo, PolicyReply, PolicyRequest, PredictChunk, PredictedChunk
from robot_stack.core.protocols import GuidedChunkPolicy, Policy
from robot_stack.edge.remote_policy import POLICY_PROBLEM, spec_fingerprint
from robot_stack.edge.warmup import example_instruction, example_observation, warm_up
from robot_stack.transport.server import Request, RequestServer

logger = logging.getLogger(__name__)

IDLE_S = 0.1
ACTIVE_S = 2.0
"""A robot that asked within this time is expected to ask again."""
MAX_ROBOTS = 256
NICENESS = 10
WARM_UP_S = 120.0
BATCH_TRIALS = 3
_NEW_SHARE = 0.2  # weight of the newest measurement


class BatchPolicy(Policy, Protocol):
    """A policy that computes several chunks at once."""

    @property
    def version(self) -> int: ...

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A), each the same as `predict`'s within rounding."""


class BatchCosts:
    """What a batch of each size takes, and into which batches requests are best split."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._took_s: dict[int, float] = {}

    def took(self, size: int, duration_s: float) -> None:
        """A batch of this size was computed."""
        before_s = self._took_s.get(size)
        self._took_s[size] = duration_s if before_s is None else before_s + _NEW_SHARE * (duration_s - before_s)

    def expected_s(self, size: int) -> float:
        """From the sizes that were measured; in between, and beyond, on straight lines."""
        sizes = sorted(self._took_s)
        if size > sizes[-1]:
            return self._took_s[sizes[-1]] * size / sizes[-1]
        return float(np.interp(size, sizes, [self._took_s[one] for one in sizes]))

    def best(self, waiting: int) -> int:
        """The batch to compute now, of so many requests: the size with the least time for each of them."""
        allowed = range(1, min(waiting, self.max_batch) + 1)
        return min(allowed, key=lambda size: (self.expected_s(size) / size, size)) if self._took_s else 1


class PolicyServer:
    """Serves one policy until `keep_running` says no. The server's socket is opened by the caller's `with`.

    Args:
        window_s: how long a request waits for those of the other robots, where batching pays.
        max_batch: chunks in one batch, at most.
        guided: the same policy for chunks that go on from planned actions, which are computed one by one.

    Attributes:
        batches: how many batches there were of each size.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        requests: RequestServer[PolicyRequest],
        window_s: float,
        max_batch: int,
        guided: GuidedChunkPolicy | None = None,
    ) -> None:
        self._policy = policy
        self._guided = guided
        self._requests = requests
        self._window_s = window_s
        self.costs = BatchCosts(max_batch)
        self.batches: Counter[int] = Counter()
        self._fingerprint = spec_fingerprint(policy.spec)
        self._boot = uuid4().hex
        self._asked_s: dict[str, float] = {}

    def run(self, keep_running: Callable[[], bool]) -> None:
        """Warm up, then serve."""
        self.warm_up()
        logger.info("policy '%s' is served at %s", self._policy.spec.name, self._requests.address)
        while keep_running():
            self._serve(self._gather())

    def warm_up(self) -> None:
        """Run the policy until its timing settles, and measure batches of 1, 2, 4, ...; PolicyError as `warm_up`."""
        warm = warm_up(self._policy, patience_s=WARM_UP_S)
        self.costs.took(1, warm.median_s)
        example = example_observation(self._policy.spec, example_instruction(self._policy))
        size = 2
        while size <= self.costs.max_batch:
            batch = [replace(example, index=index) for index in range(size)]
            try:
                took_s = [self._time_batch(batch) for _ in range(BATCH_TRIALS)]
            except Exception as error:  # a back-end made for one observation at a time; whatever it raises
                logger.warning("batches of %d fail (%s): requests are computed one by one", size, error)
                self.costs.max_batch = size // 2
                return
            self.costs.took(size, float(np.median(took_s)))
            size *= 2

    def _time_batch(self, batch: Sequence[Observation]) -> float:
        began_s = time.perf_counter()
        self._check(self._policy.predict_batch(batch), len(batch))
        return time.perf_counter() - began_s

    def _check(self, actions: FloatArray, size: int) -> FloatArray:
        spec = self._policy.spec
        if actions.shape != (size, spec.horizon, *spec.action.shape):
            raise PolicyError(f"policy '{spec.name}' gave chunks of shape {actions.shape} for {size} observations")
        return actions

    def _gather(self) -> list[Request[PolicyRequest]]:
        """The requests for chunks that lie there; where batching pays, also those of the other robots that come within
        the window."""
        pending = self._take(IDLE_S)
        until_s = time.monotonic() + self._window_s
        while pending and len(pending) < self._wanted():
            left_s = until_s - time.monotonic()
            if left_s <= 0.0:
                break
            pending += self._take(left_s)
        return pending

    def _wanted(self) -> int:
        """The batch that is worth waiting for."""
        since_s = time.monotonic() - ACTIVE_S
        self._asked_s = {robot: asked_s for robot, asked_s in self._asked_s.items() if asked_s > since_s}
        return self.costs.best(max(1, len(self._asked_s)))

    def _take(self, timeout_s: float) -> list[Request[PolicyRequest]]:
        """New requests for chunks; everything else is answered at once."""
        chunks = []
        for request in self._requests.poll(timeout_s):
            message = request.message
            if isinstance(message, Hello):
                request.reply(self._hello(message))
            elif message.fingerprint != self._fingerprint:
                name = self._policy.spec.name
                words = f"this policy server serves '{name}' ({self._fingerprint}), you asked for {message.fingerprint}"
                request.reply(Failed(reason="fingerprint", message=f"{words}; restart the edge"))
            else:
                if len(self._asked_s) < MAX_ROBOTS:
                    self._asked_s[message.robot] = time.monotonic()
                chunks.append(request)
        return chunks

    def _hello(self, message: Hello) -> PolicyReply:
        if message.schema_version != SCHEMA_VERSION:
            text = f"{message.peer} speaks schema version {message.schema_version}, this server {SCHEMA_VERSION}"
            return Failed(reason="schema_version", message=f"{text}; install the same release on both")
        return PolicyInfo(
            schema_version=SCHEMA_VERSION,
            boot=self._boot,
            fingerprint=self._fingerprint,
            spec=self._policy.spec,
            predict_s=self.costs.expected_s(1),
            example_instruction=example_instruction(self._policy),
        )

    def _serve(self, waiting: list[Request[PolicyRequest]]) -> None:
        pending = []
        for request in waiting:
            if _asked(request).planned is None:
                pending.append(request)
            else:
                request.reply(self._single(request))
        while pending:
            size = self.costs.best(len(pending))
            now, pending = pending[:size], pending[size:]
            if size == 1 or not self._answer_batch(now):
                for request in now:
                    request.reply(self._single(request))

    def _answer_batch(self, requests: list[Request[PolicyRequest]]) -> bool:
        """False if the batch failed: then nobody was answered, and whose fault it is shows one by one."""
        observations = [_asked(request).observation for request in requests]
        began_s = time.perf_counter()
        try:
            actions = self._check(self._policy.predict_batch(observations), len(observations))
        except Exception as error:  # one observation of the batch, or the back-end; whatever it raises
            logger.warning("a batch of %d failed: %s", len(requests), error)
            return False
        self._done(len(requests), began_s)
        for request, observation, chunk in zip(requests, observations, actions, strict=True):
            request.reply(PredictedChunk(chunk=self._chunk(observation, chunk), batch=len(requests)))
        return True

    def _single(self, request: Request[PolicyRequest]) -> PolicyReply:
        began_s = time.perf_counter()
        try:
            chunk = self._predict(_asked(request))
        except Exception as error:  # one robot's bad observation must not end the service of the others
            logger.warning("no chunk for '%s': %s", request.peer, error)
            return Failed(reason=POLICY_PROBLEM, message=str(error))
        if _asked(request).planned is None:
            self._done(1, began_s)
        return PredictedChunk(chunk=chunk)

    def _predict(self, asked: PredictChunk) -> ActionChunk:
        if asked.planned is None:
            return self._policy.predict(asked.observation)
        if self._guided is None:
            raise PolicyError(
                f"policy '{self._policy.spec.name}' cannot go on from planned actions; edge.chunking=switch"
            )
        return self._guided.predict_guided(asked.observation, asked.planned, asked.delay_steps, asked.execute_steps)

    def _done(self, size: int, began_s: float) -> None:
        self.costs.took(size, time.perf_counter() - began_s)
        self.batches[size] += 1

    def _chunk(self, observation: Observation, actions: FloatArray) -> ActionChunk:
        return ActionChunk(
            observation_id=observation.id,
            index=observation.index,
            weights_version=self._policy.version,
            actions=actions,
        )


def _asked(request: Request[PolicyRequest]) -> PredictChunk:
    message = request.message
    if not isinstance(message, PredictChunk):
        raise PolicyError(f"a {type(message).__name__} asks for no chunk")
    return message


def give_way() -> None:
    """Let control loops and robot servers of the same computer go first: they need little time, but at once."""
    os.nice(NICENESS)


def run_policy_server(config: StackConfig, keep_running: Callable[[], bool]) -> None:
    """Serve the run's base policy, on its configured back-end, until told to end. For a process of its own."""
    use_one_torch_thread()
    layout, settings = RunLayout.of(config), config.policy_server
    requests: RequestServer[PolicyRequest] = RequestServer(
        POLICY_REQUEST, config.network.policy_address, ensure_keys(layout), POLICY_KEY, PolicyRequest
    )
    with requests:
        policy = load_base_policy(config)
        server = PolicyServer(policy, requests, settings.window_s, settings.max_batch, GuidedPolicy(policy))
        give_way()
        server.run(keep_running)
        logger.info("batches served, by size: %s", dict(server.batches))
