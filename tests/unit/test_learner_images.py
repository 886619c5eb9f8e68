"""Step algorithms that read pictures: what they are given, what they learn, and that their state is complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from policies.gaussian.config import GaussianConfig
from policies.pixels.config import PixelsConfig
from policies.pixels.encoder import PixelEncoder
from policies.residual.config import ResidualConfig
from robot_stack.apps.actors import step_builder
from robot_stack.apps.build import step_spec
from robot_stack.apps.replays import build_replays, demonstrated
from robot_stack.buffer.images import ImageCodec, encode_image
from robot_stack.buffer.replay import Stratum
from robot_stack.buffer.sampling import Sampler
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.config.compose import compose_config
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError, MessageError, PolicyError, SpecMismatchError
from robot_stack.core.messages import Array, FloatArray, Observation, Source, Step, Verdict
from robot_stack.core.protocols import ResidualPolicy
from robot_stack.core.specs import IMAGES, STATE, Feature, PolicySpec, RobotSpec, vector
from robot_stack.edge.canary import Canary
from robot_stack.edge.control_loop import NoCorrection
from robot_stack.edge.weights import LiveResidual, WeightInbox
from robot_stack.learner.algorithms.base import Algorithm, Batches, HalfAndHalf, Ingredients, Recipe, build_recipe
from robot_stack.learner.algorithms.senses import random_shift
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS
from robot_stack.learner.algorithms.settings.hil_serl import HilSerlSettings
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Settings
from robot_stack.learner.algorithms.settings.sac import SacSettings
from robot_stack.learner.curation import Place
from robot_stack.learner.trainer import Trainer, TrainerSettings, replay_step
from tests import pixel_kit as kit
from tests.bandit_kit import equal

Settings = ResidualTd3Settings | SacSettings | HilSerlSettings

ALGORITHMS = ("residual_td3", "rlpd", "hil_serl")
BASE = np.zeros(2, np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def settings_of(name: str, *, actor_lr: float = 2e-3, images: tuple[str, ...] = ("front",)) -> Settings:
    """A preset with small networks."""
    found = ALGORITHM_PRESETS[name]
    assert isinstance(found, ResidualTd3Settings | SacSettings | HilSerlSettings)
    update = msgspec.structs.replace(
        found.update, critics=2, critic_hidden=(32, 32), critic_lr=2e-3, actor_lr=actor_lr, actor_every=1
    )
    update = msgspec.structs.replace(update, critic_only_updates=50) if name == "residual_td3" else update
    found = msgspec.structs.replace(found, update=update, images=images, vision=kit.VISION, batch_size=16)
    if isinstance(found, ResidualTd3Settings):
        return msgspec.structs.replace(found, residual=ResidualConfig(hidden=(32, 32), action_scale=0.5))
    return msgspec.structs.replace(found, actor=GaussianConfig(hidden=(32, 32)))


def recipe_of(settings: Settings, spec: PolicySpec = kit.SPEC, seed: int = 0) -> Recipe:
    parts = Ingredients(kit.ACTION, spec.observation, kit.STATISTICS, base=None, seed=seed)
    return build_recipe(settings, parts)


def acting(settings: Settings, algorithm: Algorithm, spec: PolicySpec = kit.SPEC, version: int = 1) -> ResidualPolicy:
    build = step_builder(settings, spec)
    assert build is not None
    return build(version, algorithm.actor_tensors())


def mean_error(policy: ResidualPolicy, *, blank: bool = False) -> float:
    observations, wanted = kit.seen(100, blank=blank)
    actions = np.stack([policy.correct(one, BASE) for one in observations])
    return float(1.0 - kit.reward_of(wanted, actions).mean())


# ---- learning ----


@pytest.mark.parametrize("name", ["residual_td3", "rlpd"])
def test_what_only_the_picture_tells_is_learned_and_gone_when_it_is_blank(name: str) -> None:
    settings = settings_of(name)
    algorithm, batches = recipe_of(settings).algorithm, kit.batches_of(kit.steps(1000, seed=0))
    for _ in range(300):
        algorithm.update(batches)
    policy = acting(settings, algorithm)
    assert mean_error(policy) < 0.03
    assert mean_error(policy, blank=True) > 0.08  # doing nothing has .107


def test_without_the_picture_it_is_not_learned() -> None:
    settings = settings_of("residual_td3")
    algorithm, batches = recipe_of(settings).algorithm, kit.batches_of(kit.steps(1000, seed=0, blank=True))
    for _ in range(300):
        algorithm.update(batches)
    assert mean_error(acting(settings, algorithm), blank=True) > 0.08


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_encoder_learns_from_the_critics_alone(name: str) -> None:
    after = []
    for lr in (1e-3, 1e-2):
        settings = settings_of(name, actor_lr=lr)
        if isinstance(settings, ResidualTd3Settings):
            update = msgspec.structs.replace(settings.update, critic_only_updates=0)
            settings = msgspec.structs.replace(settings, update=update)
        algorithm, batches = recipe_of(settings).algorithm, kit.batches_of(kit.steps(100, seed=0), size=16)
        before = algorithm.state()
        algorithm.update(batches)
        after.append(algorithm.state())
    first, second = after
    assert (first["encoder.flat"] != before["encoder.flat"]).any()
    assert first["encoder.flat"].tobytes() == second["encoder.flat"].tobytes()
    assert first["actor.mlp.flat"].tobytes() != second["actor.mlp.flat"].tobytes()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ten_and_ten_updates_equal_twenty_bit_for_bit(name: str) -> None:
    settings, steps = settings_of(name), kit.steps(100, seed=0)
    whole, first, second = (recipe_of(settings, seed=seed).algorithm for seed in (0, 0, 1))
    batches = kit.batches_of(steps, size=16)
    for _ in range(20):
        whole.update(batches)
    batches = kit.batches_of(steps, size=16)
    for _ in range(10):
        first.update(batches)
    saved, cursor = first.state(), batches.sampler.state()
    assert not equal(second.state(), saved)
    second.load_state(saved)
    resumed = kit.batches_of(steps, size=16, seed=9)
    resumed.sampler.load_state(cursor)
    for _ in range(10):
        second.update(resumed)
    assert equal(second.state(), whole.state())
    assert equal(second.actor_tensors(), whole.actor_tensors())


def test_a_state_of_another_camera_is_refused() -> None:
    spec = msgspec.structs.replace(
        kit.SPEC, observation={STATE: kit.FEATURES[STATE], kit.FRONT: Feature(dtype="uint8", shape=(32, 32, 3))}
    )
    larger = recipe_of(settings_of("rlpd"), spec).algorithm
    with pytest.raises(PolicyError, match=r"encoder\.flat"):
        larger.load_state(recipe_of(settings_of("rlpd")).algorithm.state())


def test_every_picture_is_shifted_by_itself_and_its_border_repeated() -> None:
    side, largest = 9, 2
    ramp = np.arange(side * side, dtype=np.uint8).reshape(side, side)
    pictures = np.repeat(np.stack([ramp] * 3, axis=-1)[None], 200, axis=0)
    original = pictures.copy()
    shifted = random_shift(pictures, largest, torch.Generator().manual_seed(0))
    places = set()
    for one in shifted:
        found = [
            (down, right)
            for down in range(-largest, largest + 1)
            for right in range(-largest, largest + 1)
            if (one[..., 0] == ramp[_moved(side, down)][:, _moved(side, right)]).all()
        ]
        places.update(found)
        assert len(found) == 1 and (one[..., 0] == one[..., 2]).all()
    assert len(places) == (2 * largest + 1) ** 2
    assert (pictures == original).all()
    assert (random_shift(pictures, largest, torch.Generator().manual_seed(0)) == shifted).all()
    still = random_shift(pictures, 0, torch.Generator())
    assert (still == pictures).all() and still is not pictures


def _moved(side: int, by: int) -> Array:
    return np.clip(np.arange(side) + by, 0, side - 1)


# ---- what batches hold ----

LENGTH, N_STEP = 6, 3
STORE = StoreSettings(segment_bytes=8192)


def recorded(episodes: int, session: str, codec: ImageCodec = ImageCodec.RAW) -> Iterator[Step]:
    """Step i of episode e has pictures of the value 10 e + i; what follows the last one, 10 e + LENGTH. Even episodes
    are truncated."""
    rng = np.random.default_rng(len(session))
    for seq in range(episodes * LENGTH):
        episode, index = divmod(seq, LENGTH)
        last, truncated = index == LENGTH - 1, episode % 2 == 0
        yield Step(
            run="run",
            robot="robot",
            task="task",
            session=session,
            seq=seq,
            episode=episode,
            episode_seed=0,
            segment=0,
            index=index,
            stamp_ns=0,
            observation=_features(rng, 10 * episode + index, codec),
            action_base=np.zeros(2, np.float32),
            action_asked=np.zeros(2, np.float32),
            action_sent=(rng.uniform(-1, 1, 2) * kit.HALF_RANGE).astype(np.float32),
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=Source.HUMAN_CORRECTION if episode == 1 else Source.POLICY,
            weights_version=0,
            reward=float(index),
            success=last,
            terminated=last and not truncated,
            truncated=last and truncated,
            final_observation=_features(rng, 10 * episode + LENGTH, codec) if last else None,
            final_action_base=np.zeros(2, np.float32) if last else None,
        )


def _features(rng: np.random.Generator, value: int, codec: ImageCodec) -> dict[str, Array]:
    picture = np.full((kit.SIDE, kit.SIDE, 3), value, np.uint8)
    state = np.array([value, rng.standard_normal()], np.float32)
    return {STATE: state, kit.FRONT: encode_image(picture, codec), "observation.images.other": picture}


def small(name: str, memory_frames: int) -> Settings:
    frame = kit.SIDE * kit.SIDE * 3
    return msgspec.structs.replace(settings_of(name), n_step=N_STEP, image_memory_bytes=memory_frames * frame)


def trainer(settings: Settings, store: StepStore, demonstrations: list[Step]) -> Trainer:
    recipe = recipe_of(settings)
    episodes = [demonstrations[at : at + LENGTH] for at in range(0, len(demonstrations), LENGTH)]
    replays = build_replays(settings, kit.SPEC, recipe.lookahead, episodes, store)
    for number, step in enumerate(demonstrations):
        plain = replay_step(step, number, kit.FEATURES, Stratum.DEMONSTRATION)
        replays[Place.DEMONSTRATIONS].add(demonstrated(plain, number))
    numbers = TrainerSettings(
        target_steps=8 * LENGTH,
        start_after_steps=2 * LENGTH,
        warmup_updates=2,
        updates_per_step=0.5,
        publish_every_steps=LENGTH,
        batch_size=8,
        n_step=N_STEP,
        discount=settings.discount,
    )
    return Trainer(numbers, recipe, store, replays, kit.FEATURES, seed=3)


@pytest.mark.parametrize("memory_frames", [0, 20, 1000])
@pytest.mark.parametrize("codec", list(ImageCodec))
def test_pictures_are_those_of_the_steps_from_memory_and_from_the_log(
    tmp_path: Path, memory_frames: int, codec: ImageCodec
) -> None:
    settings, shown = small("hil_serl", memory_frames), list(recorded(4, "shown", codec))
    recipe = recipe_of(settings)
    with StepStore(tmp_path, settings=STORE) as store:
        store.append([pack(step) for step in recorded(8, "practice", codec)])
        replays = build_replays(settings, kit.SPEC, recipe.lookahead, [shown[:12], shown[12:]], store)
        for number, step in enumerate(shown):
            plain = replay_step(step, number, kit.FEATURES, Stratum.DEMONSTRATION)
            replays[Place.DEMONSTRATIONS].add(demonstrated(plain, number))
        for index, step in store.iterate(0):
            for kept in recipe.curator.take(step, replay_step(step, index, kit.FEATURES)):
                replays[kept.place].add(kept.step)
        assert len(replays[Place.DEMONSTRATIONS]) == 5 * LENGTH  # with the episode of corrections
        parts = HalfAndHalf(0.5)(replays[Place.DEMONSTRATIONS], replays[Place.ONLINE])
        batches = Batches(Sampler(parts, 0), 64, N_STEP, settings.discount)
        seen_ends: set[tuple[bool, int]] = set()
        for _ in range(4):
            batch = batches.transitions(images=(kit.FRONT,))
            value = batch.observation[:, 0].astype(np.int64)
            place = value % 10
            truncated = value // 10 % 2 == 0
            after = np.minimum(place + N_STEP, np.where(truncated, LENGTH, LENGTH - 1))
            for pictures, wanted in ((batch.images, place), (batch.next_images, after)):
                found = pictures[kit.FRONT].reshape(len(batch), -1).astype(np.int64)
                np.testing.assert_allclose(found, (value - place + wanted)[:, None].repeat(found.shape[1], 1), atol=1)
            over = place + N_STEP >= LENGTH
            assert ((batch.bootstrap == 0.0) == (over & ~truncated)).all()
            goes_on = batch.bootstrap > 0.0
            np.testing.assert_array_equal(batch.next_observation[goes_on, 0], (value - place + after)[goes_on])
            seen_ends.update(zip(truncated[over].tolist(), after[over].tolist(), strict=True))
        assert seen_ends == {(True, LENGTH), (False, LENGTH - 1)}
        assert replays[Place.ONLINE].frames.nbytes <= settings.image_memory_bytes
        assert replays[Place.DEMONSTRATIONS].frames.nbytes <= settings.image_memory_bytes


@pytest.mark.parametrize("name", ["residual_td3", "hil_serl"])
def test_a_trainer_that_is_killed_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    """With so little memory that most pictures are read from the log."""
    settings, shown = small(name, memory_frames=10), list(recorded(3, "shown"))
    with StepStore(tmp_path, settings=STORE) as store:
        store.append([pack(step) for step in recorded(8, "practice")])
        whole = trainer(settings, store, shown)
        while whole.advance():
            pass
        first = trainer(settings, store, shown)
        while first.updates < 7:
            first.advance()
        tensors, meta = first.state()
        second = trainer(settings, store, shown)
        second.restore(tensors, meta)
        while second.advance():
            pass
        assert second.updates == whole.updates > 7
        assert equal(second.state()[0], whole.state()[0])
        assert second.state()[1] == whole.state()[1]


def test_a_step_without_the_camera_is_refused() -> None:
    recipe, step = recipe_of(settings_of("rlpd")), next(recorded(1, "practice"))
    blind = msgspec.structs.replace(step, observation={STATE: step.observation[STATE]})
    with pytest.raises(PolicyError, match=r"without observation\.images\.front"):
        list(recipe.curator.take(blind, replay_step(blind, 0, kit.FEATURES)))


def test_a_camera_of_another_size_is_refused(tmp_path: Path) -> None:
    settings = settings_of("rlpd")
    other = np.zeros((kit.SIDE, kit.SIDE + 1, 3), np.uint8)
    steps = [
        msgspec.structs.replace(step, observation=step.observation | {kit.FRONT: other})
        for step in recorded(1, "practice")
    ]
    with StepStore(tmp_path, settings=STORE) as store:
        with pytest.raises(PolicyError, match="collect them with that camera"):
            build_replays(settings, kit.SPEC, 3, [steps], store)
        recipe, replays = recipe_of(settings), build_replays(settings, kit.SPEC, 3, [], store)
        kept = next(iter(recipe.curator.take(steps[0], replay_step(steps[0], 0, kit.FEATURES))))
        with pytest.raises((SpecMismatchError, MessageError), match="front"):
            replays[Place.ONLINE].add(kept.step)
    with pytest.raises(ConfigError, match="no log"):
        build_replays(settings, kit.SPEC, 3, [], None)


def test_without_pictures_nothing_of_them_is_kept(tmp_path: Path) -> None:
    settings = settings_of("rlpd", images=())
    blind = msgspec.structs.replace(kit.SPEC, observation={STATE: kit.FEATURES[STATE]})
    recipe = recipe_of(settings, blind)
    assert not any("encoder" in name for name in recipe.algorithm.state())
    step = next(recorded(1, "practice"))
    kept = next(iter(recipe.curator.take(step, replay_step(step, 0, blind.observation))))
    assert not kept.step.images
    with StepStore(tmp_path, settings=STORE) as store:
        replays = build_replays(settings, blind, 3, [], store)
    assert replays[Place.ONLINE].frames.nbytes == 0 and not replays[Place.ONLINE].config.images


# ---- acting ----

TWO = PolicySpec(
    name="two",
    task="t",
    horizon=1,
    action=kit.ACTION,
    observation=kit.FEATURES | {kit.WRIST: Feature(dtype="uint8", shape=(32, 40, 3))},
)


def views(count: int) -> list[Observation]:
    rng = np.random.default_rng(3)
    return [
        Observation(
            id=i,
            stamp_ns=0,
            features={
                STATE: rng.normal(size=2).astype(np.float32),
                kit.FRONT: rng.integers(0, 256, (kit.SIDE, kit.SIDE, 3)).astype(np.uint8),
                kit.WRIST: rng.integers(0, 256, (32, 40, 3)).astype(np.uint8),
            },
            age_ns={},
            index=i,
        )
        for i in range(count)
    ]


def learners_actions(algorithm: Algorithm, observations: list[Observation], base: FloatArray) -> FloatArray:
    """What the algorithm's own networks do with a whole batch of observations."""
    senses = algorithm._senses  # type: ignore[attr-defined]
    states = algorithm._units.observe(np.stack([one.features[STATE] for one in observations]))  # type: ignore[attr-defined]
    pictures = {
        name: torch.from_numpy(np.stack([one.features[name] for one in observations]))
        for name in (kit.FRONT, kit.WRIST)
    }
    with torch.no_grad():
        seen = torch.cat((states, senses._encoder(pictures)), dim=1)
        actor = algorithm._actor  # type: ignore[attr-defined]
        if hasattr(actor, "sample"):
            return torch.tanh(actor(seen)[0]).numpy() * kit.HALF_RANGE
        normalised = torch.from_numpy(base / kit.HALF_RANGE)
        return (normalised + actor(seen, normalised)).clamp(-1, 1).numpy() * kit.HALF_RANGE


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("shrink", [1, 2])
def test_the_edge_acts_as_the_learners_networks_do(name: str, shrink: int) -> None:
    settings = msgspec.structs.replace(
        settings_of(name, images=("front", "wrist")),
        vision=PixelsConfig(channels=(8, 16), embedding=8, shrink=shrink),
    )
    algorithm = recipe_of(settings, TWO).algorithm
    rng = np.random.default_rng(0)
    state = algorithm.state()
    for key in ("actor.mlp.flat", "encoder.flat"):
        state[key] = state[key] + rng.normal(0.0, 0.2, state[key].shape).astype(np.float32)
    algorithm.load_state(state)
    policy, observations = acting(settings, algorithm, TWO), views(20)
    base = (rng.uniform(-0.5, 0.5, (20, 2)) * kit.HALF_RANGE).astype(np.float32)
    wanted = learners_actions(algorithm, observations, base)
    found = np.stack([policy.correct(one, action) for one, action in zip(observations, base, strict=True)])
    assert np.ptp(found / kit.HALF_RANGE, axis=0).min() > 0.05
    np.testing.assert_allclose(found / kit.HALF_RANGE, wanted / kit.HALF_RANGE, atol=1e-5)


@pytest.mark.parametrize("channels", [(8, 8, 8), (16, 32), (3, 5)])
def test_the_encoder_computes_what_plain_convolutions_do_and_so_does_its_gradient(channels: tuple[int, ...]) -> None:
    cameras = {kit.FRONT: Feature(dtype="uint8", shape=(19, 24, 3))}
    encoder = PixelEncoder(PixelsConfig(channels=channels, embedding=4), cameras, torch.Generator().manual_seed(0))
    pictures = torch.randint(256, (6, 19, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weights = torch.linspace(-1.0, 1.0, 24).view(6, 4)
    found = encoder({kit.FRONT: pictures})
    (gradient,) = torch.autograd.grad((found * weights).sum(), encoder.flat)
    tensors = list(encoder.tensors().values())
    value = (pictures.double() / 255.0 - 0.5).permute(0, 3, 1, 2).contiguous()
    for weight, bias in zip(tensors[0:-4:2], tensors[1:-4:2], strict=True):
        value = torch.relu(torch.nn.functional.conv2d(value, weight.double(), bias.double(), stride=2, padding=1))
    linear, bias, gain, shift = (one.double() for one in tensors[-4:])
    value = torch.nn.functional.layer_norm(value.flatten(1) @ linear.T + bias, (4,), gain, shift)
    wanted = torch.tanh(value)
    (slope,) = torch.autograd.grad((wanted * weights).sum(), encoder.flat)
    np.testing.assert_allclose(found.detach().numpy(), wanted.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(gradient.numpy(), slope.numpy(), atol=1e-3)


def test_a_missing_or_another_picture_is_refused_at_every_step() -> None:
    settings = settings_of("rlpd", images=("front", "wrist"))
    policy, seen = acting(settings, recipe_of(settings, TWO).algorithm, TWO), views(1)[0]
    for features, words in (
        ({name: value for name, value in seen.features.items() if name != kit.WRIST}, "lacks"),
        (dict(seen.features) | {kit.WRIST: np.zeros((8, 8, 3), np.uint8)}, "trained on"),
    ):
        with pytest.raises(PolicyError, match=words):
            policy.correct(msgspec.structs.replace(seen, features=features), BASE)
    with pytest.raises(PolicyError, match="missing"):
        build = step_builder(settings, TWO)
        assert build is not None
        build(1, recipe_of(settings_of("rlpd")).algorithm.actor_tensors())


def test_the_canary_tries_weights_on_recent_pictures() -> None:
    settings = settings_of("residual_td3", images=("front", "wrist"))
    algorithm, inbox = recipe_of(settings, TWO).algorithm, WeightInbox()
    build = step_builder(settings, TWO)
    assert build is not None
    live = LiveResidual(NoCorrection(), inbox, build, Canary(kit.ACTION, 0.2, TWO.observation))
    for one in views(10):
        assert (live.correct(one, BASE) == BASE).all()
    state = algorithm.state()
    state["actor.mlp.flat"] = state["actor.mlp.flat"] + np.float32(0.02)
    algorithm.load_state(state)
    inbox.put(1, algorithm.actor_tensors())
    live.refresh()
    changed = live.correct(views(1)[0], BASE)
    assert live.version == 1 and (changed != BASE).any()
    far = np.random.default_rng(0).normal(0.0, 2.0, state["actor.mlp.flat"].shape)
    state["actor.mlp.flat"] = far.astype(np.float32)
    algorithm.load_state(state)
    inbox.put(2, algorithm.actor_tensors())
    live.refresh()
    assert live.version == 1 and live.refused == 1


# ---- settings ----

ROBOT = RobotSpec(
    name="franka_0",
    model="m",
    task="touch_block",
    simulated=True,
    control_rate_hz=10.0,
    tick_rate_hz=10.0,
    command_timeout_s=1.0,
    max_episode_steps=10,
    action=kit.ACTION,
    observation={STATE: vector(("x",)), kit.FRONT: kit.CAMERA},
)


def test_cameras_are_chosen_by_name_or_as_the_task_names_them() -> None:
    named = compose_config([f"task.features=[{STATE}]", "algorithm.images=[front]"])
    assert list(step_spec(named, ROBOT).observation) == [STATE, kit.FRONT]
    whole = compose_config([f"task.features=[{STATE},{kit.FRONT}]", "algorithm=rlpd", "algorithm.images=[all]"])
    assert list(step_spec(whole, ROBOT).observation) == [STATE, kit.FRONT]
    without = compose_config([f"task.features=[{STATE},{kit.FRONT}]"])
    assert list(step_spec(without, ROBOT).observation) == [STATE]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.images=[wrist]"], r"names wrist.*it has: front"),
        (["algorithm.images=[all]"], "names no camera"),
        (["algorithm.images=[front,front]"], "once"),
        (["algorithm=cal_ql", "algorithm.images=[front]"], "vectors only"),
        (["algorithm.image_memory_bytes=-1"], "0 or more"),
        (["algorithm.vision.channels=[]"], "channels"),
        (["algorithm.vision.embedding=0"], "embedding"),
        (["algorithm.vision.shift=-1"], "shift"),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        step_spec(compose_config([f"task.features=[{STATE}]", *overrides]), ROBOT)


def test_pictures_that_are_too_small_are_refused() -> None:
    settings = msgspec.structs.replace(settings_of("rlpd"), vision=PixelsConfig(channels=(8,) * 5))
    with pytest.raises(PolicyError, match=r"16x16.*32 or more"):
        recipe_of(settings)
    depth = {STATE: kit.FEATURES[STATE], IMAGES + "front": Feature(dtype="uint16", shape=(24, 24))}
    with pytest.raises(PolicyError, match="uint16"):
        recipe_of(settings_of("rlpd"), msgspec.structs.replace(kit.SPEC, observation=depth))
