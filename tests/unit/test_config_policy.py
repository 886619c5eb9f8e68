"""The `policy` group: networks and processes as blocks, what follows from them, and what demonstrations become."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.config import DiffusionChain, FlowPath, NetConfig, Process, SolverConfig
from policies.vla.config import VlaConfig
from robot_stack.apps.build import base_spec, step_spec
from robot_stack.apps.learner import relabelled
from robot_stack.apps.train import demonstration_arrays
from robot_stack.buffer.images import ImageCodec, encode_image
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, FloatArray, Observation, Source, Step, Verdict
from robot_stack.core.specs import Feature, PolicySpec, RobotSpec, vector

STATE, IMAGE = "observation.state", "observation.images.front"
ROBOT = RobotSpec(
    name="franka_0",
    model="m",
    task="touch_block",
    simulated=True,
    control_rate_hz=10.0,
    tick_rate_hz=100.0,
    command_timeout_s=0.2,
    max_episode_steps=50,
    action=vector(("a",), (-1.0,), (1.0,)),
    observation={STATE: vector(("x", "y")), IMAGE: Feature(dtype="uint8", shape=(8, 8, 3))},
)


@pytest.mark.parametrize(
    ("choice", "net", "process"),
    [
        ("diffusion", TransformerConfig, DiffusionChain),
        ("unet", UNetConfig, DiffusionChain),
        ("flow", ExpertConfig, FlowPath),
        ("vla", VlaConfig, FlowPath),
    ],
)
def test_a_choice_brings_network_process_and_solver_that_fit(
    choice: str, net: type[NetConfig], process: type[Process]
) -> None:
    policy = compose_config([f"policy={choice}", "policy.training.batch_size=7"]).policy
    assert isinstance(policy.training.net, net) and isinstance(policy.training.process, process)
    assert policy.training.batch_size == 7
    assert compose_config([f"policy={choice}"]).policy.name == choice


def test_the_default_is_trained_as_it_always_was() -> None:
    policy = compose_config([]).policy
    training = policy.training
    assert training.net == TransformerConfig(embed_dim=64, layers=2, heads=4)
    assert training.process == DiffusionChain(train_steps=20, prediction="sample")
    assert training.solver == SolverConfig(kind="ddim", steps=2)
    assert (policy.horizon, policy.history, policy.execute_steps) == (8, 1, 8)
    assert (training.steps, training.batch_size, training.lr, training.weight_decay) == (3500, 128, 2e-3, 1e-3)
    assert (training.clip_norm, training.validation_share) == (0.0, 0.0)


def test_the_inside_of_a_block_is_set_by_its_keys() -> None:
    overrides = ["policy=unet", "policy.training.net.channels=[8,16]", "policy.training.net.vision.keypoints=4"]
    training = compose_config([*overrides, "policy.training.solver.kind=dpmpp", "policy.training.betas=[0.8,0.9]"])
    net = training.policy.training.net
    assert isinstance(net, UNetConfig) and net.channels == (8, 16) and net.vision.keypoints == 4
    assert training.policy.training.solver.kind == "dpmpp" and training.policy.training.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["policy=flow", "policy.training.net.type=transformer"], "cannot be set: choose another policy"),
        (["robot=franka", "robot.kind=g1"], "cannot be set: choose another robot"),
        (["policy=flows"], "did you mean policy=flow"),
        (["policy=flow", "policy.training.net.embed_dims=8"], "did you mean 'policy.training.net.embed_dim'"),
        (["policy=flow", "policy.training.solver.kind=ddim"], "allowed for this policy: euler, heun"),
        (["policy.training.net.heads=3"], "multiple of twice the 3 heads"),
        (["policy.execute_steps=9"], "allowed: 1 to horizon, 8"),
        (["policy.training.device=gpu"], "gpu"),
        (["policy.runtime.threads=0"], "runtime.threads"),
    ],
)
def test_wrong_settings_are_refused(overrides: Sequence[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose_config(overrides)


def test_reading_a_configuration_loads_no_torch() -> None:
    look = "import sys; import robot_stack.config.compose; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_pictures_are_for_the_base_policy_alone() -> None:
    config = compose_config(
        ["task=touch_block", f"task.features=[{STATE},{IMAGE}]", "policy=flow", "policy.history=3", "policy.horizon=12"]
    )
    base = base_spec(config, ROBOT)
    assert base.observation == ROBOT.observation
    assert (base.name, base.horizon, base.history) == ("flow-touch_block", 12, 3)
    assert list(step_spec(config, ROBOT).observation) == [STATE]
    with pytest.raises(ConfigError, match="does not offer"):
        base_spec(compose_config([f"task.features=[{STATE},observation.images.wrist]"]), ROBOT)


def steps(count: int, episode: int = 0, instruction: str = "touch the block") -> list[Step]:
    """Their pictures are JPEG files, as they are stored."""

    def observation(index: int) -> dict[str, Array]:
        picture = np.full((8, 8, 3), 10 * index, np.uint8)
        return {
            STATE: np.array([index, episode], np.float32),
            IMAGE: encode_image(picture, ImageCodec.JPEG),
            "observation.extra": np.zeros(3, np.float32),
        }

    return [
        Step(
            run="r",
            robot="franka_0",
            task="touch_block",
            session="s",
            seq=10 * episode + index,
            episode=episode,
            episode_seed=40 + episode,
            segment=0,
            index=index,
            stamp_ns=index,
            observation=observation(index),
            action_base=np.array([index / 10], np.float32),
            action_asked=np.array([index / 10 + 0.01], np.float32),
            action_sent=np.array([index / 10 + 0.01], np.float32),
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=Source.EXPERT,
            weights_version=0,
            reward=0.0,
            success=index == count - 1,
            terminated=index == count - 1,
            truncated=False,
            final_observation=observation(count) if index == count - 1 else None,
            instruction=instruction,
        )
        for index in range(count)
    ]


SPEC = PolicySpec(
    name="p", task="touch_block", horizon=4, action=ROBOT.action, observation=ROBOT.observation, history=3
)


def test_demonstrations_become_arrays() -> None:
    data = demonstration_arrays([steps(3), steps(2, 1, "lift the block"), steps(1, 2)], SPEC)
    assert data.episode_ends.tolist() == [3, 5, 6]
    assert data.vector.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [0, 2]]
    np.testing.assert_allclose(data.action[:, 0], [0, 0.1, 0.2, 0, 0.1, 0])  # intended, not what noise made of it
    assert data.images[0].take(np.array([2]))[0, 0, 0].tolist() == [20, 20, 20]
    assert data.instructions == ("lift the block", "touch the block")
    assert data.instruction is not None and data.instruction.tolist() == [1, 1, 1, 0, 0, 1]


def test_an_instruction_of_the_configuration_stands_in_where_none_was_recorded() -> None:
    silent = [steps(2, instruction="")]
    assert demonstration_arrays(silent, SPEC).instructions == ()
    data = demonstration_arrays(silent, SPEC, "wave")
    assert data.instructions == ("wave",) and data.instruction is not None and data.instruction.tolist() == [0, 0]


def test_demonstrations_without_the_picture_are_refused() -> None:
    blind = PolicySpec(
        name="p",
        task="t",
        horizon=4,
        action=ROBOT.action,
        observation={**ROBOT.observation, "observation.images.wrist": Feature(dtype="uint8", shape=(8, 8, 3))},
    )
    with pytest.raises(PolicyError, match=r"no observation\.images\.wrist"):
        demonstration_arrays([steps(2)], blind)


class Watched:
    """A base policy that remembers what it was shown."""

    spec = SPEC

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        self.seen += observations
        return np.arange(4 * len(observations), dtype=np.float32).reshape(len(observations), 4, 1)


def test_relabelling_shows_the_base_what_it_would_see_on_the_robot() -> None:
    base = Watched()
    residual = PolicySpec(
        name="r", task="t", horizon=1, action=ROBOT.action, observation={STATE: ROBOT.observation[STATE]}
    )
    found = relabelled(steps(5), base, 2, residual)  # type: ignore[arg-type]
    assert [one.index for one in base.seen] == [0, 2, 4]
    assert [len(one.past) for one in base.seen] == [0, 2, 2]
    assert [[float(frame[STATE][0]) for frame in one.past] for one in base.seen] == [[], [0, 1], [2, 3]]
    assert all(one.instruction == "touch the block" and one.episode_seed == 40 for one in base.seen)
    assert base.seen[1].features[IMAGE][0, 0].tolist() == [20, 20, 20]
    assert "observation.extra" not in base.seen[0].features
    assert [float(step.action_base[0]) for step in found] == [0, 1, 4, 5, 8]  # two of each chunk, open loop
    assert found[0].observation.shape == (2,)
    assert found[-1].final_observation is not None and found[-1].final_action_base is not None
    assert float(found[-1].final_action_base[0]) == 9


def test_the_edge_executes_as_many_actions_as_the_algorithm_values_as_one() -> None:
    with pytest.raises(ConfigError, match=r"policy.execute_steps is 8, and the algorithm values 1 .*decision_steps=8"):
        compose_config(["robot=franka", "algorithm=expo"])
    assert compose_config(["robot=franka", "algorithm=expo", "policy.execute_steps=1"]).policy.execute_steps == 1
    assert compose_config(["robot=franka", "algorithm=q_chunking"]).policy.execute_steps == 8
