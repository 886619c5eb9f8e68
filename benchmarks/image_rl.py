"""Reinforcement learning from pictures: `python -m benchmarks.image_rl [--quick] [--seed N] [--steps N]`.

`updates`: CPU milliseconds of an update of residual_td3 and rlpd, presets' settings, without and with one 64x64 camera,
in turns; medians. `acting`: CPU milliseconds of a control step's actor on the edge, and of an encoder's part of it.
`memory`: bytes of a replay's pictures for a step, raw and as JPEG, beside decoded copies of both observations.
`curve`: the simulated Franka touches the one block on the table. Where it lies is told by the camera alone. RLPD with
demonstrations of the scripted expert practises with the picture, and with the same network and a black picture;
success is the task's own predicate, with 95 % Wilson intervals, on scenes apart from those of practice, and the last
point is the result. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.learning.robot import LocalRobot
from hardware.franka.sim import SimulatedFranka
from hardware.sim.experts import TouchBlockExpert
from hardware.sim.rendering import CameraConfig
from hardware.sim.tasks.touch_block import TouchBlock, TouchBlockConfig
from policies.common.features import flatten, vector_features, vector_length
from policies.common.normalization import Standardizer, fit_standardizer
from policies.pixels.config import PixelsConfig
from robot_stack.apps.actors import step_builder
from robot_stack.buffer.images import ImageCodec, encode_image
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.core.messages import Array, Features, FloatArray, Observation
from robot_stack.core.protocols import ExploringPolicy, ResidualPolicy
from robot_stack.core.specs import ENVIRONMENT_STATE, IMAGES, STATE, Feature, PolicySpec
from robot_stack.evaluation.statistics import wilson_interval
from robot_stack.learner.algorithms.base import Algorithm, Batches, Ingredients, build_recipe
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Settings
from robot_stack.learner.algorithms.settings.sac import SacSettings

SIDE = 64
CAMERA = IMAGES + "front"
FEATURE = Feature(dtype="uint8", shape=(SIDE, SIDE, 3))
TEST_SEEDS = 1_000_000
"""Scenes of the evaluation begin here; practice and demonstrations use lower ones."""

AnySettings = ResidualTd3Settings | SacSettings


def settings_of(name: str, *, pictures: bool) -> AnySettings:
    found = ALGORITHM_PRESETS[name]
    if not isinstance(found, ResidualTd3Settings | SacSettings):
        raise TypeError(f"{name} reads no pictures")
    return msgspec.structs.replace(found, images=("front",) if pictures else ())


def spec_of(vectors: dict[str, Feature], action: Feature, *, pictures: bool) -> PolicySpec:
    observation = vectors | ({CAMERA: FEATURE} if pictures else {})
    return PolicySpec(name="step", task="touch_block", horizon=1, action=action, observation=observation)


def algorithm_of(settings: AnySettings, spec: PolicySpec, statistics: Standardizer, seed: int) -> Algorithm:
    return build_recipe(
        settings, Ingredients(spec.action, spec.observation, statistics, base=None, seed=seed)
    ).algorithm


def new_replay(settings: AnySettings, spec: PolicySpec, capacity: int) -> Replay:
    images = {CAMERA: (SIDE, SIDE, 3)} if settings.images else {}
    size = vector_length(vector_features(spec.observation))
    budget = 2 * capacity * SIDE * SIDE * 3
    return Replay(ReplayConfig(capacity, size, spec.action.shape[0], images, budget, lookahead=settings.n_step))


# ---- what it costs ----


def cpu_ms(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return 1e3 * (time.process_time() - begin)


def measure_costs(spec: PolicySpec, repeats: int, seed: int) -> dict[str, dict[str, float]]:
    """Updates and acting of every algorithm, without and with pictures, one after the other in turns."""
    found: dict[str, dict[str, float]] = {}
    for name in ("residual_td3", "rlpd"):
        lanes = {pictures: _lane(name, spec, pictures, seed) for pictures in (False, True)}
        times: dict[tuple[bool, str], list[float]] = {}
        for _ in tqdm(range(repeats), desc=f"{name} updates", file=sys.stderr):
            for pictures, (update, act) in lanes.items():
                times.setdefault((pictures, "update"), []).append(cpu_ms(update))
                times.setdefault((pictures, "act"), []).append(min(cpu_ms(act) for _ in range(3)))
        middle = {key: float(np.median(values[1:])) for key, values in times.items()}
        found[name] = {
            "update_ms": round(middle[False, "update"], 2),
            "update_with_pictures_ms": round(middle[True, "update"], 2),
            "ratio": round(middle[True, "update"] / middle[False, "update"], 2),
            "updates_per_s": round(1e3 / middle[False, "update"], 1),
            "updates_with_pictures_per_s": round(1e3 / middle[True, "update"], 1),
            "act_ms": round(middle[False, "act"], 3),
            "act_with_pictures_ms": round(middle[True, "act"], 3),
        }
    return found


def _lane(name: str, spec: PolicySpec, pictures: bool, seed: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """An update of a filled replay, and a control step of its actor."""
    spec = spec_of(vector_features(spec.observation), spec.action, pictures=pictures)
    settings, rng = settings_of(name, pictures=pictures), np.random.default_rng(seed)
    size, dims = vector_length(vector_features(spec.observation)), spec.action.shape[0]
    algorithm = algorithm_of(settings, spec, Standardizer(mean=(0.0,) * size, std=(1.0,) * size), seed)
    replay = new_replay(settings, spec, 600)
    for index in range(600):
        vector, action = rng.standard_normal(size).astype(np.float32), np.zeros(dims, np.float32)
        images = {CAMERA: rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)} if pictures else {}
        over = index % 30 == 29
        replay.add(
            ReplayStep(0, index, Stratum.ONLINE, vector, action, action, float(over), over, False, images=images)
        )
    batches = Batches(Sampler([Part(replay)], seed), settings.batch_size, settings.n_step, settings.discount)
    build = step_builder(settings, spec)
    policy = build(1, algorithm.actor_tensors()) if build is not None else None
    features: dict[str, Array] = {
        key: rng.standard_normal(one.shape).astype(np.float32) for key, one in vector_features(spec.observation).items()
    }
    features |= {CAMERA: rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)} if pictures else {}

    def act() -> object:
        seen = Observation(id=0, stamp_ns=0, features=features, age_ns={})
        return None if policy is None else policy.correct(seen, np.zeros(dims, np.float32))

    return lambda: algorithm.update(batches), act


# ---- what it learns ----


@dataclass
class Scene:
    """The robot with its camera; black pictures where `blank`."""

    robot: LocalRobot
    simulated: SimulatedFranka
    blank: bool = False
    count: int = 0

    def observe(self, features: Features) -> Observation:
        picture = self.simulated.render("front")
        shown = np.zeros_like(picture) if self.blank else picture
        self.count += 1
        return Observation(id=self.count, stamp_ns=0, features=dict(features) | {CAMERA: shown}, age_ns={})


Act = Callable[[Observation], FloatArray]


def episode(scene: Scene, spec: PolicySpec, seed: int, act: Act, stratum: Stratum) -> tuple[list[ReplayStep], bool]:
    """One episode as it is learned from, and whether it succeeded."""
    seen = scene.observe(scene.robot.reset(seed).state.features)
    steps: list[ReplayStep] = []
    for index in range(scene.robot.spec.max_episode_steps):
        action = act(seen)
        stepped = scene.robot.step(action)
        following, task = scene.observe(stepped.state.features), stepped.state.task
        terminated = task is not None and task.terminated
        truncated = not terminated and index == scene.robot.spec.max_episode_steps - 1
        vector, base = flatten(seen.features, spec.observation), np.zeros_like(action)
        steps.append(
            ReplayStep(
                stream=(stratum, seed),
                index=index,
                stratum=stratum,
                observation=vector,
                action_base=base,
                action=action,
                reward=task.reward if task is not None else 0.0,
                terminated=terminated,
                truncated=truncated,
                final_observation=flatten(following.features, spec.observation) if truncated else None,
                final_action_base=base if truncated else None,
                images={CAMERA: seen.features[CAMERA]},
                final_images={CAMERA: following.features[CAMERA]} if truncated else {},
            )
        )
        if terminated or truncated:
            return steps, task is not None and task.success
        seen = following
    raise RuntimeError("an episode has at least one step")


def demonstrate(scene: Scene, spec: PolicySpec, count: int, seed: int) -> list[ReplayStep]:
    expert, rng, found = TouchBlockExpert(scene.robot.spec), np.random.default_rng(seed), list[ReplayStep]()
    lower, upper = spec.action.lower_array(), spec.action.upper_array()

    def act(seen: Observation) -> FloatArray:
        meant = expert.act(seen.features, scene.simulated.ground_truth())
        noisy: FloatArray = np.clip(meant + 0.2 * upper * rng.standard_normal(3), lower, upper).astype(np.float32)
        return noisy

    for number in range(count):
        found += episode(scene, spec, seed * 10_000 + number, act, Stratum.DEMONSTRATION)[0]
    return found


@dataclass(frozen=True)
class Study:
    """How much is practised: environment steps, updates for each, updates before, demonstrations, and test scenes."""

    steps: int
    updates_per_step: int
    first_updates: int
    demonstrations: int
    test_scenes: int
    batch_size: int = 64


def learn(scene: Scene, spec: PolicySpec, study: Study, seed: int) -> Iterator[dict[str, float]]:
    """Points of a curve: before practice, in the middle, and at the end."""
    settings = msgspec.structs.replace(
        settings_of("rlpd", pictures=True), batch_size=study.batch_size, vision=PixelsConfig(embedding=50, shift=2)
    )
    shown = demonstrate(scene, spec, study.demonstrations, seed)
    algorithm = algorithm_of(settings, spec, fit_standardizer(np.stack([one.observation for one in shown])), seed)
    replays = [new_replay(settings, spec, len(shown)), new_replay(settings, spec, study.steps + 50)]
    for step in shown:
        replays[0].add(step)
    sampler = Sampler([Part(one, share=0.5) for one in replays], seed, on_empty="redistribute")
    batches = Batches(sampler, settings.batch_size, settings.n_step, settings.discount)
    build, rng, taken, scenes, begin = (
        step_builder(settings, spec),
        np.random.default_rng(seed),
        0,
        0,
        time.process_time(),
    )
    for _ in tqdm(range(study.first_updates), desc="demonstrations", file=sys.stderr):
        algorithm.update(batches)
    for target in (0, study.steps // 2, study.steps):
        with tqdm(total=target, initial=taken, desc="practice", file=sys.stderr) as bar:
            while taken < target and build is not None:
                policy = build(1, algorithm.actor_tensors())
                steps, _ = episode(scene, spec, seed * 10_000 + 5_000 + scenes, exploring(policy, rng), Stratum.ONLINE)
                for step in steps:
                    replays[1].add(step)
                for _ in range(len(steps) * study.updates_per_step):
                    algorithm.update(batches)
                taken, scenes = taken + len(steps), scenes + 1
                bar.update(len(steps))
        spent_s = time.process_time() - begin
        if build is not None:
            found = test(scene, spec, build(1, algorithm.actor_tensors()), study)
            tqdm.write(f"{taken} steps, {spent_s:.0f} s: {found}", file=sys.stderr)
            yield {"steps": taken, "cpu_s": round(spent_s, 1)} | found


def exploring(policy: ResidualPolicy, rng: np.random.Generator) -> Act:
    if not isinstance(policy, ExploringPolicy):
        raise TypeError("the policy does not explore by itself")
    return lambda seen: policy.explore(seen, np.zeros(3, np.float32), rng)


def test(scene: Scene, spec: PolicySpec, policy: ResidualPolicy, study: Study) -> dict[str, float]:
    """Success of the deterministic policy."""
    wins = 0
    for number in range(study.test_scenes):
        act: Act = lambda seen: policy.correct(seen, np.zeros(3, np.float32))  # noqa: E731 - one line says it
        wins += episode(scene, spec, TEST_SEEDS + number, act, Stratum.ONLINE)[1]
    interval = wilson_interval(wins, study.test_scenes)
    return {"success": wins / study.test_scenes, "low": round(interval.lower, 3), "high": round(interval.upper, 3)}


def memory_bytes(picture: Array) -> dict[str, int]:
    """For one step: as stored, once; and what two decoded float32 copies (observation, next) would take."""
    jpeg = encode_image(picture, ImageCodec.JPEG)
    return {"raw": picture.nbytes, "jpeg": jpeg.nbytes, "two_float_copies": 8 * picture.size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500, help="of practice, for each arm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(60, 1, 20, 3, 2) if options.quick else Study(options.steps, 2, 300, 30, 20)
    simulated = SimulatedFranka(
        "franka_0",
        TouchBlock(TouchBlockConfig(blocks=1, colours=("red",))),
        cameras=(CameraConfig(name="front", width=SIDE, height=SIDE),),
    )
    curves: dict[str, list[dict[str, float]]] = {}
    with LocalRobot(simulated, success_reward=True) as robot:
        vectors = {name: robot.spec.observation[name] for name in (STATE, ENVIRONMENT_STATE)}
        spec = spec_of(vectors, robot.spec.action, pictures=True)
        costs = measure_costs(spec, 4 if options.quick else 15, options.seed)
        robot.reset(0)
        memory = memory_bytes(simulated.render("front"))
        for name, blank in (("pictures", False), ("black_pictures", True)):
            curves[name] = list(learn(Scene(robot, simulated, blank), spec, study, options.seed))
    result = {
        "benchmark": "image_rl",
        "quick": options.quick,
        "seed": options.seed,
        "study": dataclasses.asdict(study),
        "updates": costs,
        "memory_bytes_per_step": memory,
        "curve": curves,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
