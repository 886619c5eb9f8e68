"""Does a policy do what it is told? Demonstrations of `touch_block`, training of a vision-language-action policy, and
its choices on held-out scenes.

    python -m benchmarks.language [--quick] [--seed N] [--runs DIRECTORY]

Each scene has three blocks of different colours, of which the instruction names one; where they are stands in the
picture alone. Counted is which block is touched first. The control gets the same scenes with an instruction that names
one of the three at random: a policy that understands follows it, and touches the scene's own block in a third of them.
Wilson 95 % intervals. Interrupted, the same command goes on. The full run writes `benchmarks/results/language.json`;
the last line of output is the same JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import Struct
from tqdm import tqdm

from hardware.franka.sim import SimulatedFranka
from hardware.sim.experts import make_expert
from hardware.sim.rendering import CameraConfig
from hardware.sim.tasks.touch_block import NO_BLOCK, PALETTE
from policies.generative.config import FlowPath, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.vla.config import VlaConfig
from robot_stack.core.clock import ManualClock, s_to_ns
from robot_stack.core.messages import Array, Command, FloatArray, Lifecycle, Observation, RobotState
from robot_stack.core.specs import IMAGES, STATE, PolicySpec
from robot_stack.evaluation.statistics import wilson_interval
from robot_stack.learner.imitation import ImitationProgress, train
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.imitation_data import DecodedImages, DemonstrationArrays
from robot_stack.safety.guard import RobotGuard

RESULTS = Path(__file__).parent / "results"
TASK = "touch_block"
CAMERA = "front"
PIXELS = 64
HORIZON = 8
EXECUTE = 4
HELD_OUT = 1_000_000  # scenes from this seed on are never demonstrated
NET = VlaConfig(patch=16, prefix_dim=64, expert_dim=64, layers=2, heads=4, max_words=4)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done. `noise`: on the demonstrator's action, as a fraction of its range."""

    demonstrations: int = 1200
    noise: float = 0.2
    steps: int = 1500
    batch_size: int = 64
    lr: float = 2e-3
    scenes: int = 300


QUICK = Plan(demonstrations=8, steps=20, batch_size=16, scenes=5)


class Choices(Struct, frozen=True, kw_only=True):
    """What was touched first. `followed`: the block that the instruction given to the policy names; `named`: the one
    that the scene asks for. `success` is the share of all scenes with `named`, `accuracy` that of those with a touch.
    """

    scenes: int
    followed: int
    named: int
    nothing: int
    success: float
    success_interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]


class LanguageSummary(Struct, frozen=True, kw_only=True):
    """The benchmark's result. `told`: with the scene's instruction; `shuffled`: with that of a random block."""

    command: str
    seed: int
    demonstrations: int
    demonstrated_steps: int
    train_steps: int
    train_cpu_s: float
    predict_p50_s: float
    told: Choices
    shuffled: Choices


# ---- scenes -----------------------------------------------------------------------------------------------------


class Scene:
    """One simulated arm behind its guard, in lock-step, with a camera."""

    def __init__(self) -> None:
        cameras = (CameraConfig(name=CAMERA, width=PIXELS, height=PIXELS),)
        self._clock = ManualClock()
        self.robot = SimulatedFranka("franka_0", TASK, cameras=cameras, clock=self._clock)
        self._guard = RobotGuard(self.robot, self._clock)
        self._guard.connect()
        self._guard.acquire_lease("benchmark", "benchmark")
        self._guard.transition(Lifecycle.ACTIVE)
        self._seq = 0

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads: no number here tells where a block is."""
        offered = self.robot.spec
        return PolicySpec(
            name="language",
            task=TASK,
            horizon=HORIZON,
            action=offered.action,
            observation={key: offered.observation[key] for key in (STATE, IMAGES + CAMERA)},
        )

    def reset(self, seed: int) -> RobotState:
        self._guard.reset(seed)
        return self._seen()

    def step(self, action: FloatArray) -> RobotState:
        self._seq += 1
        spec = self.robot.spec
        deadline_ns = self._clock.now_ns() + s_to_ns(spec.command_timeout_s)
        self._guard.command(Command(session="benchmark", seq=self._seq, deadline_ns=deadline_ns, action=action))
        for _ in range(round(spec.tick_rate_hz / spec.control_rate_hz)):
            self._guard.tick()
            self.robot.advance(1.0 / spec.tick_rate_hz)
            self._clock.advance_ns(s_to_ns(1.0 / spec.tick_rate_hz))
        return self._seen()

    def close(self) -> None:
        self._guard.close()

    def _seen(self) -> RobotState:
        state = self._guard.state()
        state.features[IMAGES + CAMERA] = self.robot.render(CAMERA).copy()
        return state


def _ended(state: RobotState) -> bool:
    return state.task is not None and state.task.terminated


def _truth(state: RobotState, name: str) -> int:
    return int((state.ground_truth or {})[name][0])


# ---- demonstrations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Episode:
    """One demonstration, T steps: states (T, D), intended actions (T, A), pictures (T, height, width, 3)."""

    vector: FloatArray
    action: FloatArray
    image: Array
    instruction: str


def demonstrate(scene: Scene, seed: int, noise: float) -> Episode | None:
    """The expert's episode with disturbed actions; None if it failed."""
    expert = make_expert(TASK, scene.robot.spec)
    rng = np.random.default_rng([seed, 1])
    lower, upper = scene.spec.action.lower_array(), scene.spec.action.upper_array()
    state = scene.reset(seed)
    vectors, actions, images = [], [], []
    for _ in range(scene.robot.spec.max_episode_steps):
        action = expert.act(state.features, state.ground_truth or {})
        vectors.append(state.features[STATE])
        images.append(state.features[IMAGES + CAMERA])
        actions.append(action)
        disturbed = action + rng.normal(0.0, noise, action.shape) * (upper - lower) / 2
        state = scene.step(np.clip(disturbed, lower, upper).astype(np.float32))
        if _ended(state):
            break
    if state.task is None or not state.task.success:
        return None
    return Episode(np.stack(vectors), np.stack(actions), np.stack(images), state.instruction)


def collect(path: Path, scene: Scene, plan: Plan, seed: int) -> DemonstrationArrays:
    """The demonstrations of that many scenes, recorded once."""
    if not path.exists():
        first = seed * 100_000
        played = (demonstrate(scene, first + number, plan.noise) for number in range(plan.demonstrations))
        episodes = [one for one in tqdm(played, total=plan.demonstrations, desc="demonstrations") if one is not None]
        names = sorted({one.instruction for one in episodes})
        lengths = [len(one.action) for one in episodes]
        aside = path.with_suffix(".aside.npz")
        np.savez(
            aside,
            vector=np.concatenate([one.vector for one in episodes]),
            action=np.concatenate([one.action for one in episodes]),
            image=np.concatenate([one.image for one in episodes]),
            ends=np.cumsum(lengths),
            instruction=np.repeat([names.index(one.instruction) for one in episodes], lengths),
            names=np.array(names),
        )
        aside.rename(path)
    with np.load(path, allow_pickle=False) as stored:
        return DemonstrationArrays(
            vector=stored["vector"],
            action=stored["action"],
            episode_ends=stored["ends"],
            images=(DecodedImages(stored["image"]),),
            instruction=stored["instruction"],
            instructions=tuple(str(name) for name in stored["names"]),
        )


# ---- training ---------------------------------------------------------------------------------------------------


def learn(runs: Path, data: DemonstrationArrays, spec: PolicySpec, plan: Plan, seed: int) -> GenerativePolicy:
    """The policy of these demonstrations, trained once."""
    folder = runs / "policy"
    if not folder.exists():
        config = ImitationConfig(
            net=NET,
            process=FlowPath(),
            solver=SolverConfig(kind="euler", steps=5),
            steps=plan.steps,
            batch_size=plan.batch_size,
            lr=plan.lr,
            warmup_steps=min(200, plan.steps // 4),
            clip_norm=1.0,
            device="cpu",
            checkpoint_every=max(1, plan.steps // 8),
            seed=seed,
        )
        began_s = time.process_time()
        with tqdm(total=plan.steps, desc="training") as bar:

            def report(progress: ImitationProgress) -> None:
                bar.update(progress.step - bar.n)
                bar.set_postfix(loss=f"{progress.loss:.4f}")

            train(data, spec, config, progress=report, resume_dir=runs / "training").save(folder)
        (runs / "train_cpu_s").write_text(f"{time.process_time() - began_s:.1f}")
    return GenerativePolicy.load(folder)


# ---- evaluation -------------------------------------------------------------------------------------------------


class Outcome(Struct, frozen=True, kw_only=True):
    """One held-out scene, by numbers of blocks: of the instruction, of the scene's own target, of the one touched."""

    asked: int
    target: int
    touched: int


class Outcomes(Struct, frozen=True, kw_only=True):
    """Of all held-out scenes."""

    scenes: list[Outcome]
    predict_p50_s: float


def evaluate(path: Path, scene: Scene, policy: GenerativePolicy, plan: Plan, *, shuffled: bool) -> Outcomes:
    """Play the held-out scenes, once; `shuffled`: the instruction names a random block of the scene."""
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Outcomes)
    durations_s: list[float] = []
    scenes = []
    for seed in tqdm(range(HELD_OUT, HELD_OUT + plan.scenes), desc="shuffled" if shuffled else "told"):
        state = scene.reset(seed)
        target = asked = _truth(state, "target_block")
        instruction = state.instruction
        if shuffled:
            colours = (state.ground_truth or {})["block_colours"]
            asked = int(np.random.default_rng([seed, 2]).integers(len(colours)))
            instruction = f"touch the {list(PALETTE)[colours[asked]]} block"
        touched = _play(scene, policy, state, (seed, instruction), durations_s)
        scenes.append(Outcome(asked=asked, target=target, touched=touched))
    outcomes = Outcomes(scenes=scenes, predict_p50_s=float(np.median(durations_s)))
    aside = path.with_suffix(".aside")
    aside.write_bytes(msgspec.json.encode(outcomes))
    aside.rename(path)
    return outcomes


def _play(
    scene: Scene, policy: GenerativePolicy, state: RobotState, asked: tuple[int, str], durations_s: list[float]
) -> int:
    """The number of the block that is touched first, or `NO_BLOCK`."""
    seed, instruction = asked
    for index in range(scene.robot.spec.max_episode_steps):
        if index % EXECUTE == 0:
            observation = Observation(
                id=index,
                stamp_ns=state.stamp_ns,
                features=state.features,
                age_ns={},
                episode_seed=seed,
                index=index,
                instruction=instruction,
            )
            began_s = time.perf_counter()
            chunk = policy.predict(observation).actions
            durations_s.append(time.perf_counter() - began_s)
        state = scene.step(chunk[index % EXECUTE])
        if _ended(state):
            break
    return _truth(state, "touched_block")


def choices(outcomes: Outcomes) -> Choices:
    scenes = outcomes.scenes
    followed = sum(one.touched == one.asked for one in scenes)
    named = sum(one.touched == one.target for one in scenes)
    nothing = sum(one.touched == NO_BLOCK for one in scenes)
    touches = len(scenes) - nothing
    success, accuracy = wilson_interval(named, len(scenes)), wilson_interval(named, touches)
    return Choices(
        scenes=len(scenes),
        followed=followed,
        named=named,
        nothing=nothing,
        success=named / len(scenes),
        success_interval=(success.lower, success.upper),
        accuracy=named / max(touches, 1),
        accuracy_interval=(accuracy.lower, accuracy.upper),
    )


# ---- command ----------------------------------------------------------------------------------------------------


def run(runs: Path, plan: Plan, seed: int) -> LanguageSummary:
    """Everything that is not there yet, in order."""
    runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    scene = Scene()
    try:
        data = collect(runs / "demonstrations.npz", scene, plan, seed)
        policy = learn(runs, data, scene.spec, plan, seed)
        told = evaluate(runs / "told.json", scene, policy, plan, shuffled=False)
        shuffled = evaluate(runs / "shuffled.json", scene, policy, plan, shuffled=True)
    finally:
        scene.close()
    return LanguageSummary(
        command=" ".join(["python -m benchmarks.language", *sys.argv[1:]]),
        seed=seed,
        demonstrations=len(data.episode_ends),
        demonstrated_steps=len(data.action),
        train_steps=plan.steps,
        train_cpu_s=float((runs / "train_cpu_s").read_text()),
        predict_p50_s=told.predict_p50_s,
        told=choices(told),
        shuffled=choices(shuffled),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="too small to learn: only that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where data, policy and outcomes are kept")
    arguments = parser.parse_args()
    if arguments.quick:
        with tempfile.TemporaryDirectory() as scratch:
            summary = run(Path(scratch), QUICK, arguments.seed)
    else:
        summary = run(arguments.runs / f"language-{arguments.seed}", Plan(), arguments.seed)
    encoded = msgspec.json.encode(summary)
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "language.json").write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    sys.stdout.write(encoded.decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
