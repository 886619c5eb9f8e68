"""Checkpoints of LeRobot, made and run by LeRobot itself; a program for LeRobot's own environment.

    PYTHONPATH=. .venv-lerobot/bin/python -P tests/lerobot_kit.py FOLDER

It saves small, untrained checkpoints with LeRobot's own code, runs LeRobot's own inference on them, and our adapter on
the same folders. Its last line is one JSON object: the largest difference for each checkpoint, and what was refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from policies.lerobot.adapter import LeRobotPolicy, chunk_seed
from policies.lerobot.imports import policy_class
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Features, Observation
from robot_stack.core.specs import Feature, PolicySpec, vector

ACTIONS, IMAGE = 2, (48, 40)
CAMERA = "observation.images.top"
SPEC = PolicySpec(
    name="lerobot",
    task="t",
    horizon=8,
    history=2,
    action=vector(("a", "b"), (-3.0, -6.0), (5.0, 6.0)),
    observation={
        "observation.state": vector(("x", "y", "z")),
        "observation.environment_state": vector(("u", "v")),
        CAMERA: Feature(dtype="uint8", shape=(*IMAGE, 3)),
    },
)


def statistics(generator: np.random.Generator) -> dict[str, dict[str, torch.Tensor]]:
    shapes = {"observation.state": (3,), "observation.environment_state": (2,), CAMERA: (3, 1, 1), "action": (ACTIONS,)}
    made = {}
    for name, shape in shapes.items():
        low, high = -generator.uniform(1, 2, shape), generator.uniform(1, 3, shape)
        parts = {"mean": (low + high) / 2, "std": (high - low) / 3, "min": low, "max": high}
        made[name] = {part: torch.from_numpy(value.astype(np.float32)) for part, value in parts.items()}
    return made


def make(kind: str, images: bool) -> tuple[Any, Any, Any]:
    """LeRobot's policy, preprocessor and postprocessor."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (2,)),
    }
    if images:
        features[CAMERA] = PolicyFeature(FeatureType.VISUAL, (3, *IMAGE))
    common = {
        "input_features": features,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTIONS,))},
        "device": "cpu",
        "pretrained_backbone_weights": None,
    }
    torch.manual_seed(0)
    network = policy_class(kind)
    if kind == "act":
        from lerobot.policies.act.configuration_act import ACTConfig
        from lerobot.policies.act.processor_act import make_act_pre_post_processors as processors

        sizes = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "n_encoder_layers": 2, "n_vae_encoder_layers": 1}
        config: Any = ACTConfig(chunk_size=8, n_action_steps=8, **sizes, **common)
    else:
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
        from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors as processors

        config = DiffusionConfig(down_dims=(16, 32), n_groups=4, num_train_timesteps=10, **common)
    policy = network(config).eval()
    before, after = processors(config, statistics(np.random.default_rng(1)))
    return policy, before, after


def observations(spec: PolicySpec) -> list[Observation]:
    """Three steps of an episode, with their history."""
    generator = np.random.default_rng(2)
    frames: list[Features] = []
    for _ in range(3):
        frame: Features = {}
        for name, feature in spec.observation.items():
            if feature.dtype == "uint8":
                frame[name] = generator.integers(0, 256, feature.shape).astype(np.uint8)
            else:
                frame[name] = generator.normal(size=feature.shape).astype(np.float32)
        frames.append(frame)
    return [
        Observation(
            id=index,
            stamp_ns=0,
            features=frame,
            age_ns={},
            episode_seed=-1,
            index=index,
            past=tuple(frames[max(0, index + 1 - spec.history) : index]),
        )
        for index, frame in enumerate(frames)
    ]


def lerobots_own(policy: Any, before: Any, after: Any, seen: list[Observation], spec: PolicySpec) -> np.ndarray:
    """What LeRobot's loop executes for the last observation, after it saw the ones before."""
    policy.reset()
    for observation in seen:
        frame: dict[str, torch.Tensor] = {}
        for name, value in observation.features.items():
            tensor = torch.from_numpy(value)
            frame[name] = tensor.permute(2, 0, 1).float() / 255 if value.dtype == np.uint8 else tensor
        batch = before(frame)
        torch.manual_seed(chunk_seed(observation))
        if hasattr(policy, "_queues"):
            policy._queues["action"].clear()  # predict anew at every step
        else:
            policy._action_queue.clear()
        actions = [after(policy.select_action(dict(batch)))]
    actions += [after(policy.select_action(dict(batch))) for _ in range(spec.horizon - 1)]
    return np.clip(torch.cat(actions).numpy(), spec.action.lower_array(), spec.action.upper_array())


def old_layout(folder: Path, policy: Any) -> None:
    """As checkpoints were before processors: statistics among the weights."""
    from safetensors.torch import save_file

    stats = statistics(np.random.default_rng(1))
    tensors = {name: value.contiguous() for name, value in policy.state_dict().items()}
    for name, parts in stats.items():
        places = ("normalize_targets", "unnormalize_outputs") if name == "action" else ("normalize_inputs",)
        for place in places:
            for part, value in parts.items():
                tensors[f"{place}.buffer_{name.replace('.', '_')}.{part}"] = value.clone()
    policy.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")


def refusals(folder: Path, spec: PolicySpec) -> dict[str, str]:
    """What the adapter says of folders and specs that it must not take."""
    found = {
        "horizon": refusal(folder, replace(spec, horizon=7)),
        "history": refusal(folder, replace(spec, history=5)),
        "feature": refusal(folder, replace(spec, observation={"observation.state": vector(("x", "y", "z"))})),
    }
    for path in folder.glob("policy_p*normalizer_processor.safetensors"):
        path.unlink()
    found["statistics"] = refusal(folder, spec)
    return found


def refusal(folder: Path, spec: PolicySpec) -> str:
    try:
        LeRobotPolicy.load(folder, spec)
    except PolicyError as error:
        return str(error)
    return "taken"


def main() -> int:
    folder = Path(sys.argv[1])
    differences: dict[str, float] = {}
    spread: dict[str, float] = {}
    refused: dict[str, str] = {}
    for kind, images in (("diffusion", False), ("diffusion", True), ("act", False), ("act", True)):
        names = [name for name in SPEC.observation if images or name != CAMERA]
        spec = replace(
            SPEC, history=1 if kind == "act" else 2, observation={name: SPEC.observation[name] for name in names}
        )
        seen = observations(spec)
        policy, before, after = make(kind, images)
        expected = lerobots_own(policy, before, after, seen, spec)
        label = f"{kind}{'_images' if images else ''}"
        policy.save_pretrained(folder / label)
        before.save_pretrained(folder / label)
        after.save_pretrained(folder / label)
        old_layout(folder / f"{label}_old", policy)
        for name in (label, f"{label}_old"):
            chunk = LeRobotPolicy.load(folder / name, spec).predict(seen[-1])
            differences[name] = float(np.abs(chunk.actions - expected).max())
        spread[label] = float(expected.std())
        if label == "diffusion":
            refused = refusals(folder / label, spec)
    print(json.dumps({"differences": differences, "spread": spread, "refused": refused}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
