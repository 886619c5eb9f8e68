"""What is learned from episodes that a policy and a person share: labels, stretches, shares, and the fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.common.normalization import MinMaxNormalizer, Standardizer
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, FlowPath, GenerativeConfig, SolverConfig
from policies.generative.objectives import training_loss
from policies.generative.policy import GenerativePolicy
from robot_stack.buffer.replay import Replay, ReplayConfig, Stratum
from robot_stack.buffer.sampling import Sampler
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Observation, Refusal, Source, Step, Verdict
from robot_stack.core.specs import STATE, PolicySpec, vector
from robot_stack.learner.algorithms.base import Batches, Ingredients, build_chunk_policy, build_recipe
from robot_stack.learner.algorithms.settings.imitation import FineTuningConfig, ImitationSettings
from robot_stack.learner.composition import KINDS, ByKind, Composition, Targets
from robot_stack.learner.corrections import EpisodeCurator, Label, rule_of
from robot_stack.learner.curation import Kept, Place
from robot_stack.learner.trainer import Trainer, TrainerSettings, replay_step

FEATURES = {STATE: vector(("x", "y"))}
ACTION = vector(("a",), lower=(-1.0,), upper=(1.0,))
HORIZON = 4
RULES = ("bc", "dagger", "hg_dagger", "iwr", "sirius", "rac")
WHO = {
    "p": Source.POLICY,
    "e": Source.EXPERT,
    "r": Source.HUMAN_RECOVERY,
    "c": Source.HUMAN_CORRECTION,
}


def episode(
    who: str, number: int = 0, success: bool = True, refused: Sequence[int] = (), ended: bool = True, first: int = 0
) -> list[Step]:
    """One step for each letter of `who`; the observation is (episode, index), the action tells who acted."""
    made, segment = [], 0
    for i, letter in enumerate(who):
        last = ended and i == len(who) - 1
        segment += i > 0 and letter != who[i - 1]
        made.append(
            Step(
                run="run",
                robot="robot",
                task="task",
                session="session",
                seq=100 * number + i,
                episode=number,
                episode_seed=0,
                segment=segment,
                index=first + i,
                stamp_ns=0,
                observation={STATE: np.array((number, i), np.float32)},
                action_base=np.array([-0.5], np.float32),
                action_asked=np.zeros(1, np.float32),
                action_sent=np.array([0.1 * "perc".index(letter)], np.float32),
                verdict=Verdict.REFUSED if i in refused else Verdict.ACCEPTED,
                refusal=Refusal.STALE if i in refused else None,
                source=WHO[letter],
                weights_version=number,
                reward=float(last and success),
                success=last and success,
                terminated=last and success,
                truncated=last and not success,
                final_observation={STATE: np.array((number, i + 1), np.float32)} if last else None,
            )
        )
    return made


def curate(curator: EpisodeCurator, steps: Sequence[Step]) -> list[Kept]:
    return [kept for i, step in enumerate(steps) for kept in curator.take(step, replay_step(step, i, FEATURES))]


def indices(kept: Sequence[Kept]) -> list[int]:
    return [one.step.index for one in kept]


# ---- the rules of the data ----


def test_rac_keeps_recovery_and_correction_and_nothing_else_of_their_episode() -> None:
    curator = EpisodeCurator(rule_of("rac"))
    kept = curate(curator, episode("pppprrrcccppccp", success=True))
    assert indices(kept) == [4, 5, 6, 7, 8, 9]
    assert [one.step.stratum for one in kept] == [Stratum.RECOVERY] * 3 + [Stratum.CORRECTION] * 3
    counts = curator.counts.steps
    assert counts[Label.AFTER_INTERVENTION] == 5
    assert counts[Label.UNWANTED] == 4
    assert curator.counts.segments[Label.RECOVERY] == curator.counts.segments[Label.CORRECTION] == 1


@pytest.mark.parametrize(
    ("who", "success", "kept"), [("pppp", True, 4), ("pppp", False, 0), ("pppc", True, 1), ("rppp", True, 1)]
)
def test_rac_keeps_the_policys_steps_only_of_a_success_without_help(who: str, success: bool, kept: int) -> None:
    curator = EpisodeCurator(rule_of("rac"))
    curate(curator, episode(who, success=success))
    learned = curator.counts.steps
    autonomous = 4 if kept == 4 else 0
    assert learned[Label.AUTONOMOUS] == autonomous
    assert learned[Label.RECOVERY] + learned[Label.CORRECTION] == kept - autonomous


def test_nothing_is_learned_before_the_episode_has_ended() -> None:
    curator, steps = EpisodeCurator(rule_of("rac")), episode("pppp")
    assert curate(curator, steps[:3]) == []
    assert indices(list(curator.take(steps[3], replay_step(steps[3], 3, FEATURES)))) == [0, 1, 2, 3]


def test_an_episode_whose_beginning_is_unknown_is_no_success_without_help() -> None:
    assert curate(EpisodeCurator(rule_of("rac")), episode("ppp", first=5)) == []


def test_a_killed_edges_episode_is_unfinished_and_keeps_what_the_person_did() -> None:
    curator = EpisodeCurator(rule_of("rac"))
    assert curate(curator, episode("pprrc", ended=False)) == []
    kept = curate(curator, episode("pp", number=1, success=False))
    assert indices(kept) == [2, 3]  # the last step has no next observation
    assert kept[-1].step.truncated
    assert kept[-1].step.final_observation is not None and kept[-1].step.final_observation.tolist() == [0, 4]
    assert curator.counts.unfinished == 1


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    episodes=st.lists(
        st.tuples(st.text("perc", min_size=1, max_size=12), st.booleans(), st.integers(0, 11)), min_size=1, max_size=5
    ),
)
def test_labels_add_up_and_no_step_is_learned_from_twice(rule: str, episodes: list[tuple[str, bool, int]]) -> None:
    curator = EpisodeCurator(rule_of(rule))  # type: ignore[arg-type]
    kept: list[Kept] = []
    for number, (who, success, refused) in enumerate(episodes):
        kept += curate(curator, episode(who, number, success, refused=(refused,)))
    assert sum(curator.counts.steps.values()) == sum(len(who) for who, _, _ in episodes)
    places = [(one.step.observation[0], one.step.index) for one in kept]
    assert len(places) == len(set(places))
    for one in kept:
        who, success, refused = episodes[int(one.step.observation[0])]
        assert one.step.index != refused
        if rule == "rac":
            human = [i for i, letter in enumerate(who) if letter in "rc"]
            end = next((i for i in range(human[0], len(who)) if who[i] not in "rc"), len(who)) if human else len(who)
            demonstrated = success and set(who) <= {"e", "c"}
            assert demonstrated or one.step.index < end
            if who[one.step.index] == "p":
                assert success and not human


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("bc", ""),
        ("hg_dagger", "rrcc"),
        ("dagger", "rrcc"),
        ("iwr", "pppprrppcc"),
        ("sirius", "pppprrppcc"),
        ("rac", "rr"),
    ],
)
def test_what_each_rule_keeps_of_a_shared_episode(rule: str, kept: str) -> None:
    curator, who = EpisodeCurator(rule_of(rule)), "pppprrppcc"  # type: ignore[arg-type]
    found = curate(curator, episode(who))
    assert "".join(who[one.step.index] for one in found) == kept


def test_sirius_marks_the_steps_before_every_intervention() -> None:
    found = curate(EpisodeCurator(rule_of("sirius", 3)), episode("ppppprrpppppcc"))
    marked = [one.step.index for one in found if one.step.stratum is Stratum.PRE_INTERVENTION]
    assert marked == [2, 3, 4, 9, 10, 11]


def test_dagger_learns_the_experts_proposal_whatever_was_executed() -> None:
    (first, *_), others = curate(EpisodeCurator(rule_of("dagger")), episode("eep")), episode("eep")
    assert first.step.action.tolist() == [-0.5] and others[0].action_sent.tolist() != [-0.5]


def test_a_demonstration_that_succeeded_joins_the_demonstrations() -> None:
    curator = EpisodeCurator(rule_of("bc"))
    assert {one.place for one in curate(curator, episode("eee"))} == {Place.DEMONSTRATIONS}
    assert curate(curator, episode("eee", number=1, success=False)) == []


def test_recovery_and_correction_are_one_stretch_and_never_run_into_the_policys_steps() -> None:
    replay = Replay(ReplayConfig(100, 2, 1, lookahead=HORIZON - 1))
    for one in curate(EpisodeCurator(rule_of("iwr")), episode("ppprrccpp")):
        replay.add(one.step)
    assert replay.size() == 9  # no step is lost where the driver changes
    sampler = Sampler(ByKind()(Replay(ReplayConfig(9, 2, 1)), replay)[2:3], seed=0)
    batch = sampler.chunks(sampler.draw(50), HORIZON)
    assert set(np.unique(np.round(batch.actions, 3)).tolist()) == {np.float32(0.2).item(), np.float32(0.3).item()}
    begun = batch.observation[:, 1] == 3
    assert not batch.is_pad[begun].any()  # from the first recovery step on, through the correction
    assert batch.is_pad[~begun].tolist() == [[False, False, False, True]] * int((~begun).sum())


# ---- shares ----

SIZES = st.fixed_dictionaries({kind: st.integers(0, 5000) for kind in KINDS}).filter(lambda sizes: any(sizes.values()))


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, rule=st.sampled_from(RULES))
def test_shares_add_up_and_so_do_weights_times_ratios(sizes: dict[Stratum, int], rule: str) -> None:
    targets = Targets(rule)  # type: ignore[arg-type]
    shares, total = targets.shares(sizes), sum(sizes.values())
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-12)
    assert all(0.0 <= share <= 1.0 for share in shares.values())
    assert all(shares[kind] == 0.0 for kind in KINDS if sizes[kind] == 0)
    weights = targets.weights(sizes)
    assert sum(sizes[kind] / total * weight for kind, weight in weights.items()) == pytest.approx(1.0, abs=1e-12)


def test_sirius_gives_the_published_weights() -> None:
    sizes = {
        Stratum.DEMONSTRATION: 200,
        Stratum.ONLINE: 650,
        Stratum.RECOVERY: 20,
        Stratum.CORRECTION: 80,
        Stratum.PRE_INTERVENTION: 50,
    }
    weights = Targets("sirius").weights(sizes)
    assert weights[Stratum.DEMONSTRATION] == pytest.approx(1.0)
    assert weights[Stratum.CORRECTION] == weights[Stratum.RECOVERY] == pytest.approx(0.5 / 0.1)
    assert weights[Stratum.PRE_INTERVENTION] == pytest.approx(0.002 / 0.05)
    assert weights[Stratum.ONLINE] == pytest.approx((1 - 0.5 - 0.2 - 0.002) / 0.65)


def test_sirius_clamps_and_warns_where_demonstrations_leave_no_share(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {Stratum.DEMONSTRATION: 90, Stratum.ONLINE: 5, Stratum.CORRECTION: 5}
    shares = Targets("sirius").shares(sizes)
    assert shares[Stratum.ONLINE] == 0.0
    assert shares[Stratum.CORRECTION] / shares[Stratum.DEMONSTRATION] == pytest.approx(0.5 / 0.9)
    sampler, composition = sampler_of("sirius", "ppppp" * 3, "ppcc"), Composition(Targets("sirius"))
    with caplog.at_level(logging.WARNING):
        composition.draw(sampler, 10)
        composition.draw(sampler, 10)
    assert len(caplog.records) == 1


def sampler_of(rule: str, demonstration: str, shared: str) -> Sampler:
    demonstrations, online = (Replay(ReplayConfig(500, 2, 1, lookahead=HORIZON - 1)) for _ in range(2))
    for i, step in enumerate(episode(demonstration, number=99)):
        demonstrations.add(replay_step(step, i, FEATURES, Stratum.DEMONSTRATION))
    for one in curate(EpisodeCurator(rule_of(rule)), episode(shared)):  # type: ignore[arg-type]
        online.add(one.step)
    return Sampler(ByKind()(demonstrations, online), seed=0, on_empty="redistribute")


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.integers(1, 97), min_size=1, max_size=30), rule=st.sampled_from(RULES))
def test_drawn_shares_are_exact(batches: list[int], rule: str) -> None:
    sampler, composition = sampler_of(rule, "eeeeeeeee", "pppppprrcccccpp"), Composition(Targets(rule))  # type: ignore[arg-type]
    given_ = np.zeros(len(KINDS))
    shares: dict[Stratum, float] = {}
    for size in batches:
        draw, shares = composition.draw(sampler, size)
        assert len(draw) == sum(draw.counts) == size
        given_ += draw.counts
        assert (sampler.chunks(draw, HORIZON).stratum == np.repeat(KINDS, draw.counts)).all()
    wanted = sum(batches) * np.array([shares[kind] for kind in KINDS])
    assert np.abs(given_ - wanted).max() < 1.0 + 1e-9


def test_iwr_takes_half_of_every_batch_from_interventions() -> None:
    sampler, composition = sampler_of("iwr", "eeeeeeeee", "pppppprrcccccpp"), Composition(Targets("iwr"))
    for _ in range(20):
        batch = sampler.chunks(composition.draw(sampler, 32)[0], HORIZON)
        assert np.isin(batch.stratum, (Stratum.RECOVERY, Stratum.CORRECTION)).sum() in (15, 16, 17)


# ---- fine-tuning ----


def base_policy(process: FlowPath | DiffusionChain | None = None, history: int = 1) -> GenerativePolicy:
    spec = PolicySpec(name="base", task="task", horizon=HORIZON, action=ACTION, observation=FEATURES, history=history)
    process = process or FlowPath()
    config = GenerativeConfig(
        net=ExpertConfig(embed_dim=16, layers=1, heads=2, step_conditioned=False),
        process=process,
        solver=SolverConfig(kind="euler" if isinstance(process, FlowPath) else "ddim", steps=4),
        observation=MinMaxNormalizer(centre=(2.0, 5.0), half_range=(5.0, 8.0)),
        action=MinMaxNormalizer(centre=(0.0,), half_range=(1.0,)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GenerativePolicy(spec, config, build_net(config.net, sizes_of(spec, config)))


def ingredients(base: GenerativePolicy | None) -> Ingredients:
    statistics = Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0))
    return Ingredients(action=ACTION, observation=FEATURES, standardizer=statistics, base=base, seed=3)


QUICK = FineTuningConfig(lr=5e-3, warmup_steps=1, ema_max=0.9)


def numbers(steps: int, updates_per_step: float = 0.25) -> TrainerSettings:
    return TrainerSettings(
        target_steps=steps,
        start_after_steps=10,
        warmup_updates=3,
        updates_per_step=updates_per_step,
        publish_every_steps=10,
        batch_size=16,
        n_step=1,
        discount=0.9,
    )


def trainer(log: StepStore, settings_: ImitationSettings, numbers_: TrainerSettings) -> Trainer:
    recipe = build_recipe(settings_, ingredients(base_policy()))
    replays = {place: Replay(ReplayConfig(500, 2, 1, lookahead=recipe.lookahead)) for place in Place}
    for i, step in enumerate(episode("eeeeee", number=99)):
        replays[Place.DEMONSTRATIONS].add(replay_step(step, i, FEATURES, Stratum.DEMONSTRATION))
    return Trainer(numbers_, recipe, log, replays, FEATURES, seed=3)


def run(made: Trainer) -> None:
    while made.advance():
        pass


def fingerprint(made: Trainer) -> dict[str, bytes]:
    tensors, meta = made.state()
    return {name: value.tobytes() for name, value in tensors.items()} | {"meta": meta}


SHARED = ("pppprrrccc", "pppppp", "pprrcc", "pppppppp", "eeeeee", "pppprc")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StepStore]:
    with StepStore(tmp_path / "log", durability="process") as made:
        steps = [step for number, who in enumerate(SHARED) for step in episode(who, number)]
        made.append([pack(step) for step in steps])
        yield made


@pytest.mark.parametrize("rule", ["rac", "sirius"])
@pytest.mark.parametrize("kill_after", [7, 17, 30])
def test_killed_in_mid_episode_and_restored_equals_never_killed(log: StepStore, rule: str, kill_after: int) -> None:
    settings_ = ImitationSettings(rule=rule, batch_size=16, update=QUICK)  # type: ignore[arg-type]
    uninterrupted = trainer(log, settings_, numbers(len(log)))
    run(uninterrupted)
    killed = trainer(log, settings_, numbers(len(log)))
    for _ in range(kill_after):
        killed.advance()
    tensors, meta = killed.state()
    restored = trainer(log, settings_, numbers(len(log)))
    restored.restore(tensors, meta)
    run(restored)
    assert uninterrupted.version > 0
    assert fingerprint(restored) == fingerprint(uninterrupted)
    assert restored.metrics == uninterrupted.metrics


def test_the_counts_of_the_curator_are_reported(log: StepStore) -> None:
    made = trainer(log, ImitationSettings(rule="rac", batch_size=16, update=QUICK), numbers(len(log)))
    run(made)
    metrics = made.metrics
    labelled = sum(value for name, value in metrics.items() if name.startswith("steps_"))
    assert labelled == made.trained_steps == len(log)
    assert (metrics["interventions"], metrics["episodes"], metrics["rounds"]) == (3.0, 6.0, 6.0)
    assert sum(value for name, value in metrics.items() if name.startswith("share_")) == pytest.approx(1.0)


@pytest.mark.parametrize("process", [FlowPath(), DiffusionChain(train_steps=10)])
def test_fine_tuning_moves_the_policy_towards_corrections(process: FlowPath | DiffusionChain) -> None:
    base = base_policy(process)
    settings_ = ImitationSettings(rule="hg_dagger", batch_size=32, update=QUICK)
    recipe = build_recipe(settings_, ingredients(base))
    replays = [Replay(ReplayConfig(500, 2, 1, lookahead=recipe.lookahead)) for _ in range(2)]
    for number in range(8):
        steps = [
            msgspec.structs.replace(step, action_sent=np.array([0.5], np.float32))
            for step in episode("ppcccccc", number)
        ]
        for i, step in enumerate(steps):
            for one in recipe.curator.take(step, replay_step(step, i, FEATURES)):
                replays[1].add(one.step)
    batches = Batches(Sampler(recipe.mix(*replays), seed=0, on_empty="redistribute"), 32, 1, 0.9)
    for _ in range(120):
        recipe.algorithm.update(batches)
    tuned = build_chunk_policy(settings_, base, 7, recipe.algorithm.actor_tensors())
    seen = Observation(id=0, stamp_ns=0, features={STATE: np.array((3, 4), np.float32)}, age_ns={}, index=0)
    before, after = (np.abs(one.predict(seen).actions - 0.5).mean() for one in (base, tuned))
    assert after < 0.15 < before
    assert tuned.predict(seen).weights_version == 7


def test_train_save_load_train_equals_train(log: StepStore) -> None:
    settings_ = ImitationSettings(rule="sirius", batch_size=16, update=QUICK)
    whole = build_recipe(settings_, ingredients(base_policy())).algorithm
    first = build_recipe(settings_, ingredients(base_policy())).algorithm
    second = build_recipe(settings_, ingredients(base_policy())).algorithm
    one, other = (Batches(sampler_of("sirius", "eeeeeeeee", "pppppprrcccccpp"), 16, 1, 0.9) for _ in range(2))
    for _ in range(12):
        whole.update(one)
    for _ in range(5):
        first.update(other)
    second.load_state(first.state())
    torch.rand(3)  # what others draw from torch's own generator makes no difference
    for _ in range(7):
        second.update(other)
    state, expected = second.state(), whole.state()
    assert state.keys() == expected.keys()
    assert all((state[name] == expected[name]).all() for name in expected)


def test_an_update_leaves_torchs_own_generator_alone() -> None:
    algorithm = build_recipe(ImitationSettings(batch_size=8), ingredients(base_policy())).algorithm
    before = torch.random.get_rng_state()
    algorithm.update(Batches(sampler_of("rac", "eeeeeeeee", "pprrcc"), 8, 1, 0.9))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_first_published_weights_are_the_base_policys() -> None:
    base = base_policy()
    settings_ = ImitationSettings()
    algorithm = build_recipe(settings_, ingredients(base)).algorithm
    same = build_chunk_policy(settings_, base, 0, algorithm.actor_tensors())
    seen = Observation(id=0, stamp_ns=0, features={STATE: np.ones(2, np.float32)}, age_ns={})
    assert (same.predict(seen).actions == base.predict(seen).actions).all()
    with pytest.raises(PolicyError):
        build_chunk_policy(settings_, base, 0, {"wrong": np.zeros(1, np.float32)})


@pytest.mark.parametrize("process", [FlowPath(), DiffusionChain(train_steps=10)])
def test_actions_of_no_weight_do_not_count(process: FlowPath | DiffusionChain) -> None:
    net = base_policy(process).sampler.denoiser
    generator = torch.Generator().manual_seed(1)
    actions, condition = torch.randn(6, HORIZON, 1, generator=generator), (torch.randn(6, 1, 2, generator=generator),)
    weight = torch.ones(6, HORIZON)

    def loss(weight_: torch.Tensor | None) -> float:
        again = torch.Generator().manual_seed(2)
        return training_loss(net, process, actions, condition, again, weight=weight_).item()

    assert loss(weight) == pytest.approx(loss(None), rel=1e-5)
    halves = [torch.zeros(6, HORIZON) for _ in range(2)]
    halves[0][:3] = halves[1][3:] = 1.0
    assert (loss(halves[0]) + loss(halves[1])) / 2 == pytest.approx(loss(None), rel=1e-5)
    assert loss(halves[0]) != pytest.approx(loss(None), rel=1e-3)


@pytest.mark.parametrize("base", [None, "history"])
def test_a_base_policy_that_cannot_be_tuned_is_refused(base: str | None) -> None:
    with pytest.raises(ConfigError):
        build_recipe(ImitationSettings(), ingredients(base_policy(history=2) if base else None))


@pytest.mark.parametrize("rule", RULES)
def test_every_preset_composes(rule: str) -> None:
    config = compose_config([f"algorithm={rule}", "algorithm.update.lr=0.001"])
    assert isinstance(config.algorithm, ImitationSettings)
    assert config.algorithm.rule == rule and config.algorithm.update.lr == 0.001
    with pytest.raises(ConfigError):
        compose_config([f"algorithm={rule}", "algorithm.intervention_share=1.5"])
