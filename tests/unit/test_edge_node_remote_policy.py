"""The policy server and its edges over real sockets: the same chunks, batches where they pay, and every refusal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from robot_stack.apps.policy_server import BatchCosts, PolicyServer
from robot_stack.core.errors import (
    AuthenticationError,
    CommandRefusedError,
    PolicyError,
    SpecMismatchError,
    UnreachableError,
)
from robot_stack.core.messages import ActionChunk, FloatArray, Hello, Observation
from robot_stack.core.policy_messages import PolicyInfo, PolicyReply, PolicyRequest, PredictChunk, PredictedChunk
from robot_stack.core.specs import IMAGES, STATE, Feature, PolicySpec, vector
from robot_stack.edge.remote_policy import RemotePolicy, spec_fingerprint
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.server import RequestServer
from robot_stack.transport.services import SERVICES
from tests.transport_kit import LOOPBACK, eventually, make_keys

SERVICE = SERVICES["policy.request"]
PICTURE = IMAGES + "front"
SPEC = PolicySpec(
    name="numbers",
    task="ramp",
    horizon=4,
    action=vector(("a", "b"), lower=(-1.0, -1.0), upper=(1.0, 1.0)),
    observation={STATE: vector(("x_m", "y_m")), PICTURE: Feature(dtype="uint8", shape=(2, 2, 3))},
    history=2,
)


class Numbers:
    """Chunks that depend on everything a policy reads, and on the noise of (episode seed, step)."""

    spec = SPEC
    version = 3

    def __init__(self, each_s: float = 0.0, call_s: float = 0.0) -> None:
        self.each_s, self.call_s = each_s, call_s
        self.sizes: list[int] = []

    def predict(self, observation: Observation) -> ActionChunk:
        return ActionChunk(
            observation_id=observation.id,
            index=observation.index,
            weights_version=self.version,
            actions=self.predict_batch([observation])[0],
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        self.sizes.append(len(observations))
        time.sleep(self.call_s + self.each_s * len(observations))
        return np.stack([self._one(observation) for observation in observations])

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        plain = self.predict(observation)
        actions = plain.actions.copy()
        actions[: len(previous)] = previous
        actions[-1] = (delay_steps / 10, execute_steps / 10)
        return replace(plain, actions=actions)

    def _one(self, observation: Observation) -> FloatArray:
        if not np.isfinite(observation.features[STATE]).all():
            raise PolicyError("observation.state: NaN or infinity in the observation")
        rng = np.random.default_rng((observation.episode_seed, observation.index))
        before = observation.past[-1] if observation.past else observation.features
        seen = observation.features[STATE] + 0.1 * before[STATE] + observation.features[PICTURE].mean() / 255
        return np.tanh(rng.normal(size=(4, 2)) + seen).astype(np.float32)


def observation(seed: int, index: int = 1, x_m: float = 0.5) -> Observation:
    frame = {
        STATE: np.array([x_m, seed], np.float32),
        PICTURE: np.full((2, 2, 3), seed, np.uint8),
        "observation.unread": np.zeros(1000, np.float32),
    }
    past = ({**frame, STATE: np.array([0.1, 0.2], np.float32)},) * 3
    return Observation(
        id=seed, stamp_ns=5, features=frame, age_ns={STATE: 4}, episode_seed=seed, index=index, past=past
    )


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


class Served:
    """A policy server in a thread, as its process runs it."""

    def __init__(self, keys: KeyStore, policy: Numbers, window_s: float = 0.05, max_batch: int = 8) -> None:
        self.policy = policy
        self._requests: RequestServer[PolicyRequest] = RequestServer(SERVICE, LOOPBACK, keys, "policy", PolicyRequest)
        self.server = PolicyServer(policy, self._requests, window_s, max_batch, policy)
        self._keys = keys
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.server.run, args=(lambda: not self._stop.is_set(),))

    def __enter__(self) -> Served:
        self._requests.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._requests.__exit__(None, None, None)

    def client(self, key: str = "edge") -> RequestClient[PolicyReply]:
        return RequestClient(SERVICE, self._requests.address, self._keys, key, "policy", PolicyReply)

    def robot(self, name: str = "robot_0", timeout_s: float = 10.0) -> RemotePolicy:
        return RemotePolicy(self.client, name, timeout_s)


@pytest.fixture
def connected(keys: KeyStore) -> Iterator[tuple[Served, RemotePolicy]]:
    with Served(keys, Numbers()) as served, served.robot() as remote:
        remote.connect(20.0)
        yield served, remote


def test_a_remote_chunk_is_the_local_one_bit_for_bit(connected: tuple[Served, RemotePolicy]) -> None:
    _, remote = connected
    assert remote.spec == SPEC
    for seed in (3, 4, 250):
        asked = observation(seed, index=seed % 7)
        chunk, local = remote.predict(asked), Numbers().predict(asked)
        assert chunk.actions.tobytes() == local.actions.tobytes()
        assert (chunk.index, chunk.observation_id, chunk.weights_version) == (seed % 7, seed, 3)


def test_what_is_planned_travels_too(connected: tuple[Served, RemotePolicy]) -> None:
    _, remote = connected
    planned = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    chunk = remote.predict_guided(observation(5), planned, 2, 3)
    local = Numbers().predict_guided(observation(5), planned, 2, 3)
    assert chunk.actions.tobytes() == local.actions.tobytes()


def test_only_what_the_policy_reads_is_sent(connected: tuple[Served, RemotePolicy]) -> None:
    _, remote = connected
    request = remote._request(observation(5))
    assert set(request.observation.features) == {STATE, PICTURE}
    assert [set(frame) for frame in request.observation.past] == [{STATE, PICTURE}]


def at_once(served: Served, robots: int, rounds: int) -> list[tuple[ActionChunk, Observation]]:
    """So many robots that all ask at the same moment, `rounds` times."""
    barrier = threading.Barrier(robots)

    def run(number: int) -> list[tuple[ActionChunk, Observation]]:
        with served.robot(f"robot_{number}") as remote:
            remote.connect(20.0)
            found = []
            for index in range(rounds):
                asked = observation(10 * number + 1, index)
                barrier.wait(20.0)
                found.append((remote.predict(asked), asked))
            return found

    with ThreadPoolExecutor(robots) as pool:
        return [one for found in pool.map(run, range(robots)) for one in found]


def test_robots_that_ask_at_once_share_a_batch_and_each_gets_its_own_chunk(keys: KeyStore) -> None:
    with Served(keys, Numbers(call_s=0.02), window_s=0.5) as served:
        found = at_once(served, robots=4, rounds=5)
    assert max(served.server.batches) == 4, served.server.batches
    for chunk, asked in found:
        assert (chunk.observation_id, chunk.index) == (asked.id, asked.index)
        np.testing.assert_array_equal(chunk.actions, Numbers().predict(asked).actions)


def test_where_a_batch_takes_as_long_as_one_after_another_nobody_waits_for_the_others(keys: KeyStore) -> None:
    class Slower(Numbers):
        def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
            time.sleep(0.05 * len(observations) ** 2)
            return super().predict_batch(observations)

    with Served(keys, Slower(), window_s=30.0, max_batch=2) as served:
        began_s = time.monotonic()
        at_once(served, robots=3, rounds=3)
        took_s = time.monotonic() - began_s
    assert set(served.server.batches) == {1}, served.server.batches
    assert took_s < 30.0, "the requests waited for a window that cannot pay"


def test_no_batch_is_larger_than_allowed(keys: KeyStore) -> None:
    with Served(keys, Numbers(call_s=0.02), window_s=0.3, max_batch=2) as served:
        at_once(served, robots=4, rounds=3)
        assert max(served.policy.sizes) == 2


def test_a_bad_observation_fails_its_own_robot_alone(keys: KeyStore) -> None:
    with Served(keys, Numbers(call_s=0.02), window_s=0.5) as served:
        barrier = threading.Barrier(3)

        def run(number: int) -> object:
            with served.robot(f"robot_{number}") as remote:
                remote.connect(20.0)
                barrier.wait(20.0)
                try:
                    return remote.predict(observation(number + 1, x_m=np.nan if number == 1 else 0.0))
                except PolicyError as error:
                    return str(error)

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(run, range(3)))
    assert isinstance(found[0], ActionChunk) and isinstance(found[2], ActionChunk)
    assert "NaN or infinity" in str(found[1])


def test_a_backend_for_single_observations_serves_them_one_by_one(keys: KeyStore) -> None:
    class Single(Numbers):
        def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
            if len(observations) > 1:
                raise RuntimeError("the graph was built for one row")
            return super().predict_batch(observations)

    with Served(keys, Single(), window_s=1.0) as served:
        assert len(at_once(served, robots=2, rounds=3)) == 6
        assert set(served.server.batches) == {1}


def test_a_server_of_another_policy_or_release_is_refused(keys: KeyStore) -> None:
    with Served(keys, Numbers()) as served, served.client() as client, served.robot() as remote:
        with pytest.raises(CommandRefusedError, match="schema version 1"):
            client.request(Hello(schema_version=1, peer="old"), 20.0)
        remote.connect(20.0)
        other = spec_fingerprint(replace(SPEC, horizon=5))
        request = PredictChunk(fingerprint=other, robot="r", observation=observation(1))
        with pytest.raises(CommandRefusedError, match=f"asked for {other}"):
            client.request(request, 10.0)


class Liar:
    """A client whose server says what it is told to."""

    def __init__(self, answer: Callable[[object], PolicyReply]) -> None:
        self._answer = answer

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def greet(self, hello: Hello, patience_s: float) -> PolicyReply:
        return PolicyInfo(schema_version=1, boot="b", fingerprint=spec_fingerprint(SPEC), spec=SPEC, predict_s=0.1)

    def request(self, message: object, timeout_s: float) -> PolicyReply:
        return self._answer(message)


@pytest.mark.parametrize(
    ("actions", "index", "words"),
    [
        (np.zeros((3, 2), np.float32), 1, r"float32\[3, 2\]"),
        (np.zeros((4, 2)), 1, "float64"),
        (np.full((4, 2), np.nan, np.float32), 1, "not finite"),
        (np.full((4, 2), 1.5, np.float32), 1, "allowed: -1 to 1"),
        (np.zeros((4, 2), np.float32), 2, "for step 2, asked for was step 1"),
    ],
    ids=["short", "dtype", "nan", "out of bounds", "another step"],
)
def test_a_chunk_that_is_not_what_the_spec_promises_never_reaches_the_robot(
    actions: FloatArray, index: int, words: str
) -> None:
    def answer(message: object) -> PolicyReply:
        return PredictedChunk(chunk=ActionChunk(observation_id=1, index=index, weights_version=0, actions=actions))

    with RemotePolicy(lambda: Liar(answer), "r") as remote:  # type: ignore[arg-type,return-value]
        remote.connect(1.0)
        with pytest.raises(PolicyError, match=words):
            remote.predict(observation(1))


def test_a_spec_without_its_fingerprint_is_refused() -> None:
    class Other(Liar):
        def greet(self, hello: Hello, patience_s: float) -> PolicyReply:
            info = super().greet(hello, patience_s)
            assert isinstance(info, PolicyInfo)
            return replace(info, fingerprint="0" * 16)

    with (
        RemotePolicy(lambda: Other(lambda message: pytest.fail("asked")), "r") as remote,  # type: ignore[arg-type,return-value]
        pytest.raises(SpecMismatchError, match="0000"),
    ):
        remote.connect(1.0)


def test_a_server_that_is_away_is_unreachable_and_the_same_policy_goes_on_when_it_is_back(keys: KeyStore) -> None:
    served = Served(keys, Numbers())
    with served, served.robot(timeout_s=0.3) as remote:
        remote.connect(20.0)
        served._stop.set()
        served._thread.join()
        with pytest.raises(UnreachableError):
            remote.predict(observation(1))
        served._stop.clear()
        served._requests._thread._owner = None  # its thread has ended; the next one takes over
        served._thread = threading.Thread(target=served.server.run, args=(lambda: not served._stop.is_set(),))
        served._thread.start()

        def works() -> bool:
            try:
                return remote.predict(observation(1)).index == 1
            except UnreachableError:
                return False

        assert eventually(works, 20.0)


def test_a_viewers_key_gets_no_chunk(keys: KeyStore) -> None:
    client: RequestClient[PolicyReply] = RequestClient(
        SERVICE, "tcp://127.0.0.1:7750", keys, "viewer", "policy", PolicyReply
    )
    with pytest.raises(AuthenticationError, match="lets in: edge"):
        client.__enter__()


def test_each_thread_asks_over_a_connection_of_its_own(keys: KeyStore) -> None:
    with Served(keys, Numbers()) as served, served.robot() as remote:
        remote.connect(20.0)
        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(remote.predict, observation(1)).result(20.0).index == 1
        assert len(remote._clients) <= 2, "connections of threads that have ended pile up"
        assert remote.predict(observation(2)).observation_id == 2


def test_batch_sizes_follow_what_was_measured() -> None:
    costs = BatchCosts(8)
    assert costs.best(5) == 1, "nothing is known yet"
    for size, took_s in ((1, 1.0), (2, 1.2), (4, 3.9), (8, 16.0)):
        costs.took(size, took_s)
    assert [costs.best(waiting) for waiting in (1, 2, 3, 8)] == [1, 2, 2, 2]
    for _ in range(60):
        costs.took(8, 1.6)
    assert costs.best(9) == 8 and costs.best(2) == 2
    for _ in range(60):
        costs.took(2, 2.5)
    assert costs.best(2) == 1
