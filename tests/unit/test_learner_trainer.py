"""The trainer is a fold over the log: interrupted or not, early or late, the same log gives the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from policies.common.normalization import Standardizer
from policies.residual.config import ResidualConfig
from robot_stack.buffer.replay import Replay, ReplayConfig, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Refusal, Source, Step, Verdict
from robot_stack.core.specs import STATE, vector
from robot_stack.learner.algorithms.base import HalfAndHalf, Recipe
from robot_stack.learner.algorithms.residual_td3 import ResidualTd3
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Config
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.curation import Place
from robot_stack.learner.trainer import Trainer, TrainerSettings, replay_step

FEATURES = {STATE: vector(("x", "y"))}
ACTION = vector(("a",), lower=(-1.0,), upper=(1.0,))
SETTINGS = TrainerSettings(
    target_steps=90,
    start_after_steps=20,
    warmup_updates=5,
    updates_per_step=0.5,
    publish_every_steps=15,
    batch_size=16,
    n_step=3,
    discount=0.9,
)


SETTINGS_OF_STORE = StoreSettings(segment_bytes=4096)  # small, so that steps are sealed as the tests run


def steps(count: int, session: str, seed: int, refused: int = -1) -> Iterator[Step]:
    rng = np.random.default_rng(seed)
    for seq in range(count):
        index = seq % 10
        yield Step(
            run="run",
            robot="robot",
            task="task",
            session=session,
            seq=seq,
            episode=seq // 10,
            episode_seed=0,
            segment=0,
            index=index,
            stamp_ns=0,
            observation={STATE: rng.standard_normal(2).astype(np.float32)},
            action_base=rng.uniform(-1, 1, 1).astype(np.float32),
            action_asked=np.zeros(1, dtype=np.float32),
            action_sent=rng.uniform(-1, 1, 1).astype(np.float32),
            verdict=Verdict.REFUSED if seq == refused else Verdict.ACCEPTED,
            refusal=Refusal.STALE if seq == refused else None,
            source=Source.POLICY,
            weights_version=0,
            reward=float(index == 9),
            success=index == 9,
            terminated=index == 9,
            truncated=False,
            final_observation={STATE: np.zeros(2, dtype=np.float32)} if index == 9 else None,
        )


def replay() -> Replay:
    return Replay(ReplayConfig(1000, 2, 1, lookahead=SETTINGS.n_step))


def trainer(store: StepStore, settings: TrainerSettings = SETTINGS) -> Trainer:
    demonstrations, online = replay(), replay()
    for index, step in enumerate(steps(30, "demonstrations", seed=1)):
        demonstrations.add(replay_step(step, index, FEATURES, Stratum.DEMONSTRATION))
    algorithm = ResidualTd3(
        ResidualTd3Config(critic_hidden=(16, 16), critic_only_updates=5),
        ResidualConfig(hidden=(16, 16), action_scale=0.3),
        ACTION,
        Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0)),
        seed=3,
    )
    recipe = Recipe(algorithm, SETTINGS.n_step, HalfAndHalf(0.5))
    replays = {Place.DEMONSTRATIONS: demonstrations, Place.ONLINE: online}
    return Trainer(settings, recipe, store, replays, FEATURES, seed=3)


def run(made: Trainer) -> None:
    while made.advance():
        pass


def fingerprint(made: Trainer) -> dict[str, bytes]:
    tensors, meta = made.state()
    return {name: value.tobytes() for name, value in tensors.items()} | {"meta": meta}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StepStore]:
    with StepStore(tmp_path / "log", durability="process", settings=SETTINGS_OF_STORE) as made:
        yield made


def append(log: StepStore, part: list[Step]) -> None:
    log.append([pack(step) for step in part])


def test_how_the_steps_arrive_makes_no_difference(log: StepStore, tmp_path: Path) -> None:
    recorded = list(steps(100, "online", seed=2))
    append(log, recorded)
    at_once = trainer(log)
    run(at_once)
    with StepStore(tmp_path / "slow", durability="process", settings=SETTINGS_OF_STORE) as slow:
        bit_by_bit = trainer(slow)
        for step in recorded:
            append(slow, [step])
            run(bit_by_bit)
    assert at_once.finished and at_once.updates == 5 + 35
    assert fingerprint(at_once) == fingerprint(bit_by_bit)


@pytest.mark.parametrize("kill_after", [1, 25, 40, 60, 110])
def test_killed_and_restored_equals_never_killed(log: StepStore, tmp_path: Path, kill_after: int) -> None:
    append(log, list(steps(100, "online", seed=2)))
    uninterrupted = trainer(log)
    run(uninterrupted)
    killed = trainer(log)
    for _ in range(kill_after):
        killed.advance()
    store = CheckpointStore(tmp_path / "checkpoints")
    store.open()
    store.save(1, *killed.state())
    for _ in range(7):
        killed.advance()  # work after the checkpoint is lost with the process
    restored = trainer(log)
    checkpoint = store.latest()
    assert checkpoint is not None
    restored.restore(checkpoint.tensors, checkpoint.meta)
    run(restored)
    assert fingerprint(restored) == fingerprint(uninterrupted)


def test_weights_are_published_at_episode_ends_only(log: StepStore) -> None:
    append(log, list(steps(100, "online", seed=2)))
    made = trainer(log)
    published_at = []
    version = made.version
    while made.advance():
        if made.version != version:
            version = made.version
            published_at.append(made.trained_steps)
    assert published_at and all(count % 10 == 0 for count in published_at)
    assert np.diff(published_at).min() >= SETTINGS.publish_every_steps


def test_the_first_published_residual_is_exactly_zero(log: StepStore) -> None:
    made = trainer(log)
    last = max(name for name in made.published if name.startswith("weight."))
    assert not made.published[last].any()
    assert made.version == 0


def test_a_refused_step_is_spanned_by_no_transition(log: StepStore) -> None:
    append(log, list(steps(10, "online", seed=2, refused=4)))
    made = trainer(log)
    run(made)
    online = made._replays[Place.ONLINE]
    assert made.trained_steps == 10
    bad = list(steps(10, "online", seed=2, refused=4))[4].observation[STATE]
    sampler = Sampler([Part(online, None, 1.0)], seed=0)
    batch = sampler.transitions(sampler.draw(500), SETTINGS.n_step, SETTINGS.discount)
    assert not (batch.observation == bad).all(axis=1).any()
    assert not (batch.next_observation == bad).all(axis=1).any()


def test_a_checkpoint_of_other_settings_is_refused(log: StepStore) -> None:
    append(log, list(steps(40, "online", seed=2)))
    made = trainer(log)
    run(made)
    other = trainer(log, msgspec.structs.replace(SETTINGS, batch_size=8))
    with pytest.raises(ConfigError, match="batch_size=8"):
        other.restore(*made.state())
