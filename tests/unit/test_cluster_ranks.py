"""Updates made together by several ranks: equal parameters everywhere, and rank 0 never waits for the dead for long.

Ranks are threads here and add up through the same groups as on several machines; Ray is not needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from policies.common.normalization import Standardizer
from policies.generative.policy import GenerativePolicy
from policies.residual.config import ResidualConfig
from robot_stack.buffer.batches import Draw
from robot_stack.buffer.replay import Replay, Stratum
from robot_stack.buffer.store import StepStore
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError, PolicyError, UnreachableError
from robot_stack.core.messages import Array, Step
from robot_stack.learner.algorithms.base import Algorithm, HalfAndHalf, Recipe, build_recipe
from robot_stack.learner.algorithms.residual_td3 import ResidualTd3
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS, AlgorithmSettings
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Config
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining
from robot_stack.learner.algorithms.training import Sharing
from robot_stack.learner.cluster import follower
from robot_stack.learner.cluster.follower import Draws, Follower, GroupMean
from robot_stack.learner.cluster.group import Board, BrokenGroupError, Group
from robot_stack.learner.cluster.leader import Leader
from robot_stack.learner.cluster.messages import RankReply, RankRequest, digest_of
from robot_stack.learner.curation import Place
from robot_stack.learner.trainer import Trainer, replay_step
from tests.bandit_kit import base_policy, batches_of, equal, ingredients, random_steps
from tests.unit.test_learner_trainer import ACTION, FEATURES, SETTINGS, SETTINGS_OF_STORE, fingerprint, replay, steps

HOST = "127.0.0.1"
TIMEOUT_S = 20.0
NOT_SHARED = ("bc", "dagger", "hg_dagger", "iwr", "rac", "resip", "sirius")


def together(world: int, work: Callable[[int, Group], None], timeout_s: float = TIMEOUT_S) -> None:
    """`work(rank, group)` in a thread for each rank of one group; the first error is raised here."""
    boards = [Board.serve(HOST, timeout_s)]
    boards += [Board.reach(HOST, boards[0].port, timeout_s) for _ in range(world - 1)]
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            work(rank, Group(boards[rank], 1, rank, world, HOST, timeout_s))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    if errors:
        raise errors[0]


# ---- groups ------------------------------------------------------------------------------------------------------


def test_all_members_have_the_same_bits_of_the_mean() -> None:
    given = [torch.randn(1001, generator=torch.Generator().manual_seed(rank)) for rank in range(3)]
    found: dict[int, torch.Tensor] = {}

    def work(rank: int, group: Group) -> None:
        found[rank] = group.mean(given[rank])

    together(3, work)
    assert found[0].numpy().tobytes() == found[1].numpy().tobytes() == found[2].numpy().tobytes()
    torch.testing.assert_close(found[0], torch.stack(given).mean(dim=0))


def test_words_arrive_in_order_and_silence_is_not_the_end() -> None:
    heard: list[bytes | None] = []
    words = [bytes(range(256)), b"", b"\x00\xff" * 1000]

    def work(rank: int, group: Group) -> None:
        if rank == 0:
            time.sleep(0.5)
        for word in words:
            if rank == 0:
                group.say(word)
            else:
                while (found := group.hear(0.1)) is None:
                    heard.append(None)
                heard.append(found)
            group.mean(torch.zeros(1))
            group.next_round()

    together(2, work)
    assert heard.count(None) >= 1
    assert [word for word in heard if word is not None] == words


def test_a_member_that_stays_silent_breaks_the_group_within_the_time_out() -> None:
    began_s = time.monotonic()

    def work(rank: int, group: Group) -> None:
        if rank == 0:
            group.mean(torch.zeros(10))
        else:
            time.sleep(3.0)

    with pytest.raises(BrokenGroupError, match="could not add up"):
        together(2, work, timeout_s=1.0)
    assert time.monotonic() - began_s < 10.0


# ---- algorithms ----------------------------------------------------------------------------------------------------


def small(name: str) -> AlgorithmSettings:
    """The preset, with every part of its update due at once and chunks that the small base policy has."""
    settings = ALGORITHM_PRESETS[name]
    changes: dict[str, object] = {}
    update: msgspec.Struct | None = getattr(settings, "update", None)
    if update is not None:
        wanted = {"critic_only_updates": 0, "decision_steps": 2}
        changes["update"] = msgspec.structs.replace(
            update, **{name: value for name, value in wanted.items() if hasattr(update, name)}
        )
    if hasattr(settings, "base"):
        changes["base"] = BaseTraining(every=1)
    return msgspec.structs.replace(settings, **changes)


def algorithm_of(name: str, base: GenerativePolicy, sharing: Sharing | None) -> Algorithm:
    return build_recipe(small(name), replace(ingredients(base), sharing=sharing)).algorithm


@pytest.mark.parametrize("name", sorted(set(ALGORITHM_PRESETS) - set(NOT_SHARED)))
def test_ranks_with_different_batches_keep_equal_states(name: str) -> None:
    base = base_policy()  # here: it seeds torch's own generator, which threads have in common

    def learnt(shared: bool) -> list[dict[str, Array]]:
        states: dict[int, dict[str, Array]] = {}

        def work(rank: int, group: Group) -> None:
            torch.set_num_threads(1)
            algorithm = algorithm_of(name, base, group if shared else None)
            batches = batches_of(random_steps(200), seed=rank, lookahead=3)
            batches.share(2)
            for _ in range(4):
                algorithm.update(batches)
            states[rank] = algorithm.state()

        together(2, work)
        return [states[0], states[1]]

    first, second = learnt(shared=True)
    assert digest_of(first) == digest_of(second)
    alone, also_alone = learnt(shared=False)
    changed = [key for key in alone if not np.array_equal(alone[key], also_alone[key])]
    assert changed, "the ranks' batches are the same: this test sees nothing"
    assert not equal(first, alone)


def test_two_halves_of_a_batch_are_the_batch() -> None:
    """The critics' gradient is the same up to rounding where the halves together are the whole batch."""
    steps_, found = random_steps(64), {}
    noiseless = ResidualTd3Config(critic_hidden=(16, 16), critic_only_updates=100, target_noise=0.0)

    def learn(rank: int, sharing: Sharing | None, part: slice) -> None:
        made = replace(ingredients(), sharing=sharing)
        algorithm = ResidualTd3(
            noiseless, ResidualConfig(), made.action, made.standardizer, seed=1, sharing=made.sharing
        )
        draw = Draw((64,), np.arange(64)[part], np.ones(len(range(64)[part]), np.float32))
        sampler = batches_of(steps_).sampler
        algorithm.learn(sampler.transitions(replace(draw, counts=(len(draw),)), 1, 0.99))
        found[rank] = algorithm.state()["critic.flat"]

    together(2, lambda rank, group: learn(rank, group, slice(32 * rank, 32 * rank + 32)))
    learn(2, None, slice(0, 64))
    np.testing.assert_allclose(found[0], found[2], atol=2e-6)


# ---- rank 0 and the others -----------------------------------------------------------------------------------------


def parts(sharing: Sharing, seed: int = 3) -> tuple[Recipe, dict[Place, Replay]]:
    demonstrations, online = replay(), replay()
    for index, step in enumerate(steps(30, "demonstrations", seed=1)):
        demonstrations.add(replay_step(step, index, FEATURES, Stratum.DEMONSTRATION))
    algorithm = ResidualTd3(
        ResidualTd3Config(critic_hidden=(16, 16), critic_only_updates=5),
        ResidualConfig(hidden=(16, 16), action_scale=0.3),
        ACTION,
        Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0)),
        seed=seed,
        sharing=sharing,
    )
    recipe = Recipe(algorithm, SETTINGS.n_step, HalfAndHalf(0.5))
    return recipe, {Place.DEMONSTRATIONS: demonstrations, Place.ONLINE: online}


class Rank0:
    """A trainer whose updates are shared, in the test's own thread."""

    def __init__(self, store: StepStore, timeout_s: float = TIMEOUT_S, target_steps: int = 300) -> None:
        self.leader = Leader(HOST, timeout_s)
        recipe, replays = parts(self.leader)
        self.algorithm = recipe.algorithm
        settings = msgspec.structs.replace(SETTINGS, target_steps=target_steps)
        self.trainer = Trainer(settings, self.leader.joined(recipe, store, 2000), store, replays, FEATURES, seed=3)

    def wait_for(self, ranks: int) -> None:
        """Make updates until so many make them."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.leader.ranks != ranks:
            assert self.trainer.advance(), f"the log ended with {self.leader.ranks} ranks"
            assert time.monotonic() < deadline_s
            time.sleep(0.02)


class Others:
    """Followers, each in a thread. `link`: whom they ask, which changes when rank 0 is another one."""

    def __init__(self) -> None:
        self.link: Rank0 | None = None
        self.followers: dict[int, Follower] = {}
        self._ends: dict[int, threading.Event] = {}
        self._threads: dict[int, threading.Thread] = {}
        self.errors: list[BaseException] = []

    def ask(self, request: RankRequest) -> RankReply:
        if self.link is None:
            raise UnreachableError("nobody is rank 0")
        return self.link.leader.answer(request)

    def start(self, rank: int, timeout_s: float = TIMEOUT_S, seed: int = 3) -> None:
        sharing = GroupMean()
        recipe, replays = parts(sharing, seed)
        draws = Draws(seed=3, batch_size=SETTINGS.batch_size, n_step=SETTINGS.n_step, discount=SETTINGS.discount)
        made = Follower(rank, recipe, replays, FEATURES, draws, sharing, self.ask, HOST, timeout_s)
        self.followers[rank], self._ends[rank] = made, threading.Event()
        self._threads[rank] = threading.Thread(target=self._run, args=(rank,))
        self._threads[rank].start()

    def _run(self, rank: int) -> None:
        try:
            self.followers[rank].run(lambda: not self._ends[rank].is_set())
        except BaseException as error:
            self.errors.append(error)

    def end(self, *ranks: int) -> None:
        for rank in ranks or tuple(self._threads):
            self._ends[rank].set()
        for rank in ranks or tuple(self._threads):
            self._threads.pop(rank).join(30.0)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[Others]:
    monkeypatch.setattr(follower, "SILENCE_S", 0.2)
    made = Others()
    yield made
    made.link = None
    made.end()
    assert not made.errors


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StepStore]:
    with StepStore(tmp_path / "log", durability="process", settings=SETTINGS_OF_STORE) as made:
        made.append([pack(step) for step in steps(300, "online", seed=2)])
        yield made


def same(rank0: Rank0, others: Others, *ranks: int) -> bool:
    """Whether these ranks come to rank 0's state, bit for bit: they may still be making its last update."""
    wanted = digest_of(rank0.algorithm.state())
    deadline_s = time.monotonic() + 5.0
    while time.monotonic() < deadline_s:
        if all(digest_of(others.followers[rank]._recipe.algorithm.state()) == wanted for rank in ranks):
            return True
        time.sleep(0.02)
    return False


def test_three_ranks_stay_equal_bit_for_bit_and_come_and_go(store: StepStore, others: Others) -> None:
    rank0 = others.link = Rank0(store)
    others.start(1)
    rank0.wait_for(2)
    for _ in range(60):
        rank0.trainer.advance()
    assert same(rank0, others, 1)
    others.start(2, seed=99)  # begins with other parameters: it takes rank 0's
    rank0.wait_for(3)
    for _ in range(60):
        rank0.trainer.advance()
    assert same(rank0, others, 1, 2)
    assert rank0.leader.breaks == 0 and all(one.differences == 0 for one in others.followers.values())


def test_rank_0_goes_on_alone_without_a_dead_rank_and_takes_it_back(store: StepStore, others: Others) -> None:
    rank0 = others.link = Rank0(store, timeout_s=1.0)
    others.start(1)
    rank0.wait_for(2)
    others.end(1)  # silently: the next update waits for it until the time-out
    before, began_s = rank0.trainer.updates, time.monotonic()
    while rank0.trainer.updates < before + 5:
        assert rank0.trainer.advance()
    assert rank0.leader.breaks == 1 and rank0.leader.ranks == 1
    assert time.monotonic() - began_s < 8.0
    others.start(1)
    rank0.wait_for(2)
    for _ in range(30):
        rank0.trainer.advance()
    assert same(rank0, others, 1)


def test_the_others_follow_a_rank_0_that_begins_again_from_its_checkpoint(store: StepStore, others: Others) -> None:
    first = others.link = Rank0(store)
    others.start(1)
    first.wait_for(2)
    for _ in range(20):
        first.trainer.advance()
    checkpoint = first.trainer.state()
    for _ in range(40):
        first.trainer.advance()
    others.link = None
    del first
    second = Rank0(store)
    second.trainer.restore(*checkpoint)
    others.link = second
    second.wait_for(2)
    while second.trainer.advance():
        pass
    assert second.trainer.finished
    assert same(second, others, 1)


def test_alone_it_is_the_learner_without_a_cluster(store: StepStore) -> None:
    shared = Rank0(store, target_steps=120).trainer
    recipe, replays = parts(GroupMean())
    plain = Trainer(msgspec.structs.replace(SETTINGS, target_steps=120), recipe, store, replays, FEATURES, seed=3)
    for made in (shared, plain):
        while made.advance():
            pass
    assert fingerprint(shared) == fingerprint(plain)


def test_an_algorithm_that_shares_nothing_is_refused_at_its_first_update(store: StepStore, others: Others) -> None:
    rank0 = others.link = Rank0(store)
    rank0.algorithm._sharing = None  # type: ignore[attr-defined]
    others.start(1)
    with pytest.raises(PolicyError, match=r"cluster\.ranks=1"):
        rank0.wait_for(5)


def test_on_policy_algorithms_are_refused() -> None:
    recipe = build_recipe(ALGORITHM_PRESETS["resip"], ingredients(base_policy()))
    with pytest.raises(ConfigError, match="on-policy"):
        Leader(HOST, 1.0).joined(recipe, EmptyLog(), 100)


class EmptyLog:
    first_index = next_index = 0

    def iterate(self, start: int) -> Iterator[tuple[int, Step]]:
        return iter(())
