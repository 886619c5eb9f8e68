"""Vision-language-action policies: who sees what, what is kept from call to call, and what words do."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.acceleration.schedule import CacheSchedule
from policies.common.blocks import EVERY_BLOCK
from policies.common.denoiser import Tensors
from policies.common.normalization import MinMaxNormalizer
from policies.common.sizes import Sizes
from policies.generative.build import build_net, sizes_of
from policies.generative.config import FlowPath, GenerativeConfig, SolverConfig
from policies.generative.objectives import training_loss
from policies.generative.policy import GenerativePolicy
from policies.generative.sampler import ChunkSampler
from policies.vla.config import VlaConfig
from policies.vla.model import VisionLanguageAction
from policies.vla.prefix import SmallPrefix
from policies.vla.words import encode_instruction, token_ids, vocabulary_of
from robot_stack.core.errors import ConfigError, MissingDependencyError, PolicyError
from robot_stack.core.messages import Features, FloatArray, Observation
from robot_stack.core.specs import IMAGES, STATE, Feature, PolicySpec, vector

torch.set_num_threads(1)

HEIGHT, WIDTH = 16, 24
WORDS = vocabulary_of(["touch the red block", "touch the blue block"])
NET = VlaConfig(patch=8, prefix_dim=16, expert_dim=16, layers=2, heads=2, max_words=5)
SIZES = Sizes(
    horizon=4, action_dim=3, history=2, vector_dim=3, images=((HEIGHT, WIDTH), (HEIGHT, WIDTH)), words=len(WORDS)
)
STEPS = 5


@pytest.fixture
def net() -> VisionLanguageAction:
    """Not as it is born: adaptive norms of any size, so that nothing is hidden by zeros."""
    torch.manual_seed(0)
    made = VisionLanguageAction(NET, SIZES)
    for name, value in made.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(value, std=0.3)
    return made.eval()


def ids(*instructions: str) -> Tensor:
    return torch.from_numpy(np.stack([encode_instruction(one, WORDS, NET.max_words) for one in instructions]))


def condition(*instructions: str) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    rows, frames = len(instructions), SIZES.history
    pictures = [
        torch.randint(0, 256, (rows, frames, *size, 3), dtype=torch.uint8, generator=generator) for size in SIZES.images
    ]
    return torch.randn(rows, frames, SIZES.vector_dim, generator=generator), *pictures, ids(*instructions)


def noise(rows: int) -> Tensor:
    return torch.randn(rows, SIZES.horizon, SIZES.action_dim, generator=torch.Generator().manual_seed(2))


def sampler(net: VisionLanguageAction, schedule: CacheSchedule | None = None) -> ChunkSampler:
    return ChunkSampler(net, FlowPath(), SolverConfig(kind="euler", steps=STEPS), schedule).eval()


def sample(net: VisionLanguageAction, given: Tensors, schedule: CacheSchedule | None = None) -> FloatArray:
    """Chunks (B, H, A) from always the same noise."""
    with torch.no_grad():
        chunks: FloatArray = sampler(net, schedule)(noise(len(given[0])), None, *given).numpy()
    return chunks


# ---- who sees what ----------------------------------------------------------------------------------------------


def test_no_action_reaches_the_prefix_and_the_prefix_reaches_every_action(net: VisionLanguageAction) -> None:
    """The whole of one call as one graph, from the inputs to both outputs."""
    given = condition("touch the red block")
    state, actions = given[0].requires_grad_(), noise(1).requires_grad_()
    memory = net.context((state, *given[1:]))
    output = net.step(actions, net.clock(torch.tensor([0.5]), torch.zeros(1)), memory, EVERY_BLOCK)
    for kept in memory[:-1]:
        (reached,) = torch.autograd.grad(kept.sum(), actions, retain_graph=True, allow_unused=True)
        assert reached is None
    for row in range(SIZES.horizon):
        to_state, to_actions = torch.autograd.grad(output[0, row].sum(), (state, actions), retain_graph=True)
        assert (to_state != 0).any()
        assert (to_actions[0] != 0).any(dim=-1).all()  # every action token sees every other


def test_pictures_and_words_do_not_see_the_state_and_see_each_other(net: VisionLanguageAction) -> None:
    prefix = net.prefix
    assert isinstance(prefix, SmallPrefix)
    first, second = condition("touch the red block"), condition("touch the blue block")
    moved = (first[0] + 1.0, *first[1:])
    last = [prefix(one)[0][-1][0] for one in (first, second, moved)]
    states = SIZES.history
    assert torch.equal(last[0][:-states], last[2][:-states])
    assert (last[0][-states:] != last[2][-states:]).any(dim=-1).all()
    assert (last[0] != last[1]).any(dim=-1).all()  # one other word changes what is kept of every token


def test_absent_words_do_not_matter(net: VisionLanguageAction) -> None:
    """Whatever stands in the table at number 0, and however much room there is for words, chunks are the same."""
    given = condition("touch the red block", "touch blue")
    expected = sample(net, given)
    changed = copy.deepcopy(net)
    assert isinstance(changed.prefix, SmallPrefix)
    with torch.no_grad():
        changed.prefix.words.weight[0] = 1e3
        changed.prefix.word_position[4] = -1e3
    np.testing.assert_allclose(sample(changed, given), expected, atol=1e-6)
    shorter = VisionLanguageAction(with_changes(max_words=4), SIZES).eval()
    weights = net.state_dict()
    weights["prefix.word_position"] = weights["prefix.word_position"][:4]
    shorter.load_state_dict(weights)
    found = sample(shorter, (*given[:-1], given[-1][:, :4]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def with_changes(**changes: object) -> VlaConfig:
    fields = {name: getattr(NET, name) for name in NET.__struct_fields__}
    return VlaConfig(**{**fields, **changes})


# ---- what is kept -----------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_would_be_computed_at_every_call(net: VisionLanguageAction) -> None:
    given = condition("touch the red block", "touch the blue block")
    expected = sample(net, given)
    loop = sampler(net)
    noisy = previous = noise(2)
    for index, call in enumerate(loop.calls):
        with torch.no_grad():
            velocity = net(noisy, torch.full((2,), call.time), torch.full((2,), call.stride), given)
        clean = noisy + call.sigma * velocity
        noisy, previous = loop.advance(index, noisy, clean, previous, None), clean
    np.testing.assert_allclose(expected, noisy.numpy(), atol=1e-5)


def test_keeping_no_block_equals_no_schedule_bit_for_bit_and_keeping_some_does_not(net: VisionLanguageAction) -> None:
    assert net.block_names == ("0.attention", "0.feed", "1.attention", "1.feed")
    given = condition("touch the red block")
    every = tuple(range(STEPS))

    def under(*rows: tuple[int, ...]) -> FloatArray:
        schedule = CacheSchedule(method="test", calls=STEPS, blocks=net.block_names, updates=rows, belongs_to="")
        return sample(net, given, schedule)

    assert np.array_equal(under(*[every] * 4), sample(net, given))
    assert not np.array_equal(under((0, 2), every, every, every), sample(net, given))


def test_every_weight_learns(net: VisionLanguageAction) -> None:
    actions = torch.randn(3, SIZES.horizon, SIZES.action_dim, generator=torch.Generator().manual_seed(3))
    given = condition("touch the red block", "touch the blue block", "touch red")
    training_loss(net, FlowPath(), actions, given, torch.Generator().manual_seed(4)).backward()  # type: ignore[no-untyped-call]
    assert [name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()] == []


# ---- words ------------------------------------------------------------------------------------------------------


def test_unknown_missing_and_too_many_words_are_refused() -> None:
    known = [WORDS[index] for index in encode_instruction("Touch the RED block!", WORDS, 5)]
    assert known == ["touch", "the", "red", "block", ""]
    with pytest.raises(PolicyError, match=r"green.*it knows"):
        encode_instruction("touch the green block", WORDS, 5)
    with pytest.raises(PolicyError, match="0 words"):
        encode_instruction(" ", WORDS, 5)
    with pytest.raises(PolicyError, match="4 words; allowed: 1 to 3"):
        encode_instruction("touch the red block", WORDS, 3)


@pytest.mark.parametrize("change", [{"patch": 6}, {"prefix_dim": 20}, {"heads": 0}, {"expert_dim": 15}])
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        with_changes(**change)


def policy(net: VlaConfig = NET) -> GenerativePolicy:
    picture = Feature(dtype="uint8", shape=(HEIGHT, WIDTH, 3))
    spec = PolicySpec(
        name="p",
        task="touch_block",
        horizon=SIZES.horizon,
        history=2,
        action=vector(("x_m", "y_m", "z_m"), lower=(-1.0,) * 3, upper=(1.0,) * 3),
        observation={STATE: vector(("a", "b", "c")), IMAGES + "front": picture},
    )
    scale = MinMaxNormalizer(centre=(0.0,) * 3, half_range=(1.0,) * 3)
    config = GenerativeConfig(
        net=net,
        process=FlowPath(),
        solver=SolverConfig(kind="euler", steps=2),
        observation=scale,
        action=scale,
        vocabulary=WORDS,
    )
    torch.manual_seed(5)
    return GenerativePolicy(spec, config, build_net(net, sizes_of(spec, config)))


def observation(instruction: str) -> Observation:
    picture = np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    features: Features = {STATE: np.array([0.1, 0.2, 0.3], np.float32), IMAGES + "front": picture}
    return Observation(id=1, stamp_ns=0, features=features, age_ns={}, episode_seed=3, instruction=instruction)


def test_a_policy_acts_on_its_instruction_and_comes_back_from_the_disk_the_same(tmp_path: Path) -> None:
    made = policy()
    red, again, blue = (made.predict(observation(f"touch the {word} block")).actions for word in ("red", "red", "blue"))
    assert np.array_equal(red, again)
    assert np.abs(red - blue).max() > 1e-3
    made.save(tmp_path / "p")
    loaded = GenerativePolicy.load(tmp_path / "p")
    assert np.array_equal(loaded.predict(observation("touch the red block")).actions, red)
    with pytest.raises(PolicyError, match="green"):
        loaded.predict(observation("touch the green block"))


# ---- pretrained models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["smolvlm", "paligemma"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    from tests.unit.vlm_kit import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def with_model(name: str, **changes: object) -> VlaConfig:
    return with_changes(model=name, **changes)


def frozen_condition(name: str, *instructions: str) -> Tensors:
    tokens = [token_ids(with_model(name), one, WORDS) for one in instructions]
    return *condition(*["touch the red block"] * len(instructions))[:-1], torch.from_numpy(np.stack(tokens))


def test_a_pretrained_model_is_the_prefix_and_only_what_is_ours_learns(pretrained: str) -> None:
    torch.manual_seed(0)
    net = VisionLanguageAction(with_model(pretrained), SIZES)
    given = frozen_condition(pretrained, "touch the red block", "touch blue")
    actions = noise(2)
    training_loss(net, FlowPath(), actions, given, torch.Generator().manual_seed(4)).backward()  # type: ignore[no-untyped-call]
    assert [name for name, value in net.named_parameters() if value.grad is None] == []
    assert sum(value.numel() for value in net.state_dict().values()) < 20_000
    red, blue = (sample(net, frozen_condition(pretrained, f"touch the {word} block")) for word in ("red", "blue"))
    assert np.abs(red - blue).max() > 1e-6


def test_of_a_pretrained_model_absent_words_do_not_matter_and_pictures_do(pretrained: str) -> None:
    torch.manual_seed(0)
    net = VisionLanguageAction(with_model(pretrained), SIZES).eval()
    given = frozen_condition(pretrained, "touch blue")
    expected = sample(net, given)
    np.testing.assert_allclose(sample(net, (*given[:-1], given[-1][:, :2])), expected, atol=1e-5)
    assert np.abs(sample(net, (given[0], given[1] // 2, *given[2:])) - expected).max() > 1e-6


def test_a_copy_shares_the_pretrained_model_and_other_weights_are_refused(pretrained: str, tmp_path: Path) -> None:
    from policies.vla.vlm import FrozenPrefix
    from tests.unit.vlm_kit import save_tiny_model

    net = VisionLanguageAction(with_model(pretrained), SIZES)
    copied = copy.deepcopy(net)
    assert isinstance(net.prefix, FrozenPrefix) and isinstance(copied.prefix, FrozenPrefix)
    assert copied.prefix._frozen is net.prefix._frozen
    copied.load_state_dict(net.state_dict())
    other = save_tiny_model(tmp_path / "other", "smolvlm", seed=1)
    with pytest.raises(PolicyError, match="other weights"):
        VisionLanguageAction(with_model(other), SIZES).load_state_dict(net.state_dict())


def test_a_model_that_cannot_be_had_says_why(pretrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyError, match="nothing_here"):
        VisionLanguageAction(with_model(str(tmp_path / "nothing_here")), SIZES)
    with pytest.raises(PolicyError, match=r"net\.layers is 9.*1 to 3"):
        VisionLanguageAction(with_model(pretrained, layers=9), SIZES)
    with pytest.raises(PolicyError, match="4 tokens"):
        token_ids(with_model(pretrained, max_words=3), "touch the red block", WORDS)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"robot-stack\[vla\]"):
        VisionLanguageAction(with_model(str(tmp_path / "another")), SIZES)
