"""How good reward models are, and what their errors do to the labels: `python -m benchmarks.rewards [--quick]`.

The simulated Franka picks up a cube, seen by small cameras. A third of the episodes succeed and hold the cube for a
while; in a third the hand goes up empty, which looks alike; in a third the scripted expert is disturbed. The models are
trained on some seeds and judged on others, every step against the task's own predicate, with 95 % intervals (Wilson).
`own_false_positive_rate`: what the model says of itself, from the episodes that its training held out.

`relabelled`: the learner's curator replaces the rewards of the test episodes: shares of the episodes without a success
that get one, of those with a success that get one, of these that get it too early, and of the steps that are left out
because they follow a success; `consecutive`: so many positive verdicts in a row are asked for. `injected`: the same
with the true verdicts, of which a known share was turned into false positives. These errors are independent of each
other, those of a model are not. `classifier_cautious`: its threshold was raised for few false positives. `--vlm MODEL
--question TEXT` asks a vision-language model too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import torch
from tqdm import tqdm

from hardware.franka.sim import SimulatedFranka
from hardware.sim.experts import make_expert
from hardware.sim.rendering import CameraConfig
from policies.common.vision_config import VisionConfig
from robot_stack.apps.reward_report import Rate, evaluate_rewards
from robot_stack.core.messages import Features, FloatArray, Source, Step, Verdict
from robot_stack.core.protocols import Judgement, Outcome, RewardModel
from robot_stack.core.specs import ENVIRONMENT_STATE, IMAGES, STATE, Feature, RobotSpec
from robot_stack.learner.curation import EveryStep
from robot_stack.learner.rewards.classifier import RewardClassifier, train_classifier
from robot_stack.learner.rewards.goals import GoalImages, fit_goals
from robot_stack.learner.rewards.outcomes import Labelled, outcomes_of
from robot_stack.learner.rewards.predicate import InjectedErrors, TaskPredicate
from robot_stack.learner.rewards.relabel import RewardedCurator
from robot_stack.learner.rewards.settings import ClassifierTraining, VlmSettings
from robot_stack.learner.trainer import replay_step
from robot_stack.safety.motion import MotionFilter

TASK = "pick_cube"
CAMERAS = ("front", "wrist_rgb")
SIDE = 48
EPISODE_STEPS = 50
HOLDING_STEPS = 10
STYLES = ("expert", "empty", "disturbed")
TEST_SEEDS_FROM = 10_000
RATES = (0.0, 0.05, 0.2)
CONSECUTIVE = (1, 2, 3)
CAUTIOUS_RATE = 0.005
JUDGED = 50

Episode = list[Step]


class Recorder:
    """Runs episodes and records them as a robot without a predicate of its own does: they end with time alone."""

    def __init__(self) -> None:
        cameras = tuple(CameraConfig(name=name, width=SIDE, height=SIDE) for name in CAMERAS)
        self._robot = SimulatedFranka("franka", TASK, cameras=cameras)
        self._robot.connect()
        self._expert = make_expert(TASK, self.spec)
        self._tick_s = 1.0 / self.spec.tick_rate_hz
        self._ticks = round(self.spec.tick_rate_hz / self.spec.control_rate_hz)
        self._limiter = MotionFilter(self._robot.limits, self._tick_s)

    @property
    def spec(self) -> RobotSpec:
        return self._robot.spec

    def episode(self, seed: int) -> Episode:
        rng, style = np.random.default_rng(seed), STYLES[seed % len(STYLES)]
        self._robot.reset(seed)
        self._limiter.start(self._robot.measured_setpoint())
        rises_at, steps, held = int(rng.integers(5, 25)), Episode(), 0
        before = self._see()
        for index in range(EPISODE_STEPS):
            action = self._action(style, index >= rises_at, before, rng)
            self._act(action)
            status, after = self._robot.task_status(), self._see()
            held += status.success
            is_last = index == EPISODE_STEPS - 1 or held == HOLDING_STEPS
            steps.append(_step(seed, index, before, action, status.success, after if is_last else None))
            if is_last:
                break
            before = after
        return steps

    def _action(self, style: str, rises: bool, features: Features, rng: np.random.Generator) -> FloatArray:
        lower, upper = self.spec.action.lower_array(), self.spec.action.upper_array()
        action = self._expert.act(features, self._robot.ground_truth())
        if style == "empty" and rises:
            action = np.array([0.0, 0.0, upper[2], 0.0, 0.0], np.float32)
        elif style == "disturbed":
            action = action + rng.normal(0.0, 0.6, action.shape).astype(np.float32) * (upper - lower)
        return np.clip(action, lower, upper).astype(np.float32)

    def _act(self, action: FloatArray) -> None:
        goal = self._robot.resolve(action)
        for tick in range(self._ticks):
            self._robot.send(self._limiter.toward(goal, (self._ticks - tick) * self._tick_s))
            self._robot.advance(self._tick_s)

    def _see(self) -> Features:
        return {**self._robot.read().features, **{IMAGES + name: self._robot.render(name) for name in CAMERAS}}


def _step(seed: int, index: int, seen: Features, action: FloatArray, success: bool, final: Features | None) -> Step:
    return Step(
        run="rewards",
        robot="franka",
        task=TASK,
        session="benchmark",
        seq=seed * EPISODE_STEPS + index,
        episode=seed,
        episode_seed=seed,
        segment=0,
        index=index,
        stamp_ns=0,
        observation=seen,
        action_base=action,
        action_asked=action,
        action_sent=action,
        verdict=Verdict.ACCEPTED,
        refusal=None,
        source=Source.EXPERT,
        weights_version=0,
        reward=float(success),
        success=success,
        terminated=False,
        truncated=final is not None,
        final_observation=final,
        final_action_base=None if final is None else action,
    )


def labelled(episodes: Sequence[Episode]) -> Labelled:
    """Every step with the task's own predicate as its label."""
    steps = [step for episode in episodes for step in episode]
    return Labelled.of(outcomes_of(steps), [step.success for step in steps])


def models(
    training: Labelled, observation: dict[str, Feature], options: argparse.Namespace
) -> Iterator[tuple[str, RewardModel]]:
    """The reward models by name, trained as they are asked for."""
    cameras = {IMAGES + name: observation[IMAGES + name] for name in CAMERAS}
    vectors = {STATE: observation[STATE], ENVIRONMENT_STATE: observation[ENVIRONMENT_STATE]}
    settings = ClassifierTraining(
        vision=VisionConfig(channels=(8, 16, 32), keypoints=16),
        batch_size=options.batch_size,
        steps=options.steps,
        seed=options.seed,
    )
    won = [one for one, label in zip(training.outcomes, training.labels, strict=True) if label]
    goals = won[: len(won) // 3 : HOLDING_STEPS]
    yield "task_predicate", TaskPredicate()
    yield "classifier_vectors", train_classifier(training, vectors, settings, name="vectors", task=TASK)
    pictures = train_classifier(training, cameras, settings, name="pictures", task=TASK)
    yield "classifier_pictures", pictures
    cautious = msgspec.structs.replace(settings, largest_false_positive_rate=CAUTIOUS_RATE)
    yield "classifier_cautious", train_classifier(training, cameras, cautious, name="cautious", task=TASK)
    yield "goal_image_pixels", fit_goals(goals, training, cameras, name="pixels", task=TASK)
    by_encoder = fit_goals(goals, training, cameras, name="encoder", task=TASK, classifier=pictures)
    yield "goal_image_encoder", by_encoder
    if options.vlm:
        from robot_stack.learner.rewards.vlm import VlmReward

        yield "vlm", VlmReward(VlmSettings(model=options.vlm, question=options.question))


def report(model: RewardModel, episodes: Sequence[Episode], trained_s: float) -> dict[str, object]:
    test = labelled(episodes)
    known = Known(model, test.outcomes)
    found = evaluate_rewards(known, test)
    started = time.process_time()
    for outcome in test.outcomes[:JUDGED]:
        model.judge([outcome])
    judging_s = time.process_time() - started
    result: dict[str, object] = {
        "precision": _shown(found.precision),
        "recall": _shown(found.recall),
        "false_positive_rate": _shown(found.false_positive_rate),
        "relabelled": [relabelled(episodes, known, consecutive) for consecutive in CONSECUTIVE],
        "training_cpu_s": round(trained_s, 2),
        "cpu_ms_per_step": round(1e3 * judging_s / JUDGED, 3),
    }
    if isinstance(model, RewardClassifier | GoalImages):
        result["own_false_positive_rate"] = round(model.config.held_out.false_positive_rate, 4)
        result["own_false_negative_rate"] = round(model.config.held_out.false_negative_rate, 4)
    return result


class Known:
    """A model whose judgements on some outcomes were asked for beforehand; a `RewardModel`."""

    def __init__(self, model: RewardModel, outcomes: Sequence[Outcome]) -> None:
        self.name, self.version = model.name, model.version
        judged = zip(outcomes, model.judge(outcomes), strict=True)
        self._found = {(one.step.episode, one.step.index): judgement for one, judgement in judged}

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        return [self._found[one.step.episode, one.step.index] for one in outcomes]


def relabelled(episodes: Sequence[Episode], model: RewardModel, consecutive: int) -> dict[str, float]:
    """What the episodes look like once the learner's curator has replaced their rewards."""
    won = [any(step.success for step in episode) for episode in episodes]
    given, early, learned = [], 0, 0
    for episode in episodes:
        curator = RewardedCurator(EveryStep(), model, consecutive)
        kept = [
            one.step
            for index, step in enumerate(episode)
            for one in curator.take(step, replay_step(step, index, {STATE: _state_of(step)}))
        ]
        learned += len(kept)
        given.append(curator.counts.successes == 1)
        early += given[-1] and any(step.success for step in episode) and not episode[kept[-1].index].success
    pairs = list(zip(won, given, strict=True))
    return {
        "consecutive": consecutive,
        "false_successes": _share(pairs.count((False, True)), won.count(False)),
        "kept_successes": _share(pairs.count((True, True)), won.count(True)),
        "early_successes": _share(early, won.count(True)),
        "left_out_steps": _share(sum(map(len, episodes)) - learned, sum(map(len, episodes))),
    }


def _state_of(step: Step) -> Feature:
    return Feature(dtype="float32", shape=step.observation[STATE].shape)


def _share(count: int, of: int) -> float:
    return round(count / of, 3) if of else 0.0


def _shown(rate: Rate) -> list[float | None]:
    """The share (None where there was no case), both ends of its interval, and the number of cases."""
    value = round(rate.value, 4) if rate.of else None
    return [value, round(rate.interval.lower, 4), round(rate.interval.upper, 4), rate.of]


def run(options: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    recorder = Recorder()
    first = options.seed * 1000
    seeds = [first + i for i in range(options.episodes)]
    test_seeds = [TEST_SEEDS_FROM + first + i for i in range(options.episodes)]
    training = [recorder.episode(seed) for seed in tqdm(seeds, desc="training episodes", file=sys.stderr)]
    test = [recorder.episode(seed) for seed in tqdm(test_seeds, desc="test episodes", file=sys.stderr)]
    data, judged = labelled(training), labelled(test)
    results: dict[str, object] = {}
    found = models(data, recorder.spec.observation, options)
    while True:
        started = time.process_time()
        one = next(found, None)
        if one is None:
            break
        results[one[0]] = report(one[1], test, time.process_time() - started)
        sys.stdout.write(f"{one[0]}: {json.dumps(results[one[0]])}\n")
    table = [
        {"rate": rate, **relabelled(test, InjectedErrors(TaskPredicate(), rate, 0.0, options.seed), consecutive)}
        for consecutive in CONSECUTIVE
        for rate in RATES
    ]
    for row in table:
        sys.stdout.write(f"injected: {json.dumps(row)}\n")
    positives = sum(judged.labels)
    counts = {"test_steps": len(judged.labels), "test_successes": positives, "test_episodes": len(test)}
    return {"benchmark": "rewards", "seed": options.seed, **counts, "models": results, "injected": table}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vlm", default="", help="folder or hub name of a vision-language model")
    parser.add_argument("--question", default="Is the cube lifted off the table? Answer yes or no.")
    options = parser.parse_args(arguments)
    options.episodes, options.steps, options.batch_size = (36, 150, 64) if options.quick else (240, 300, 256)
    sys.stdout.write(json.dumps(run(options)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
