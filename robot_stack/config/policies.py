"""The choices of `policy=...`: network, process and training that go together."""

from __future__ import annotations

from policies.diffusion.config import UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.config import DiffusionChain, FlowPath, SolverConfig
from policies.vla.config import VlaConfig
from robot_stack.config.schema import PolicySettings
from robot_stack.learner.imitation_config import ImitationConfig

POLICY_PRESETS: dict[str, PolicySettings] = {
    "diffusion": PolicySettings(),
    "unet": PolicySettings(
        name="unet",
        horizon=16,
        history=2,
        training=ImitationConfig(
            net=UNetConfig(),
            process=DiffusionChain(train_steps=100, prediction="epsilon"),
            solver=SolverConfig(kind="ddim", steps=10),
            steps=6_000,
            lr=5e-4,
            betas=(0.95, 0.999),
            clip_norm=1.0,
            validation_share=0.05,
        ),
    ),
    "flow": PolicySettings(
        name="flow",
        horizon=16,
        training=ImitationConfig(
            net=ExpertConfig(),
            process=FlowPath(),
            solver=SolverConfig(kind="euler", steps=5),
            steps=6_000,
            lr=1e-3,
            clip_norm=1.0,
            validation_share=0.05,
        ),
    ),
    "vla": PolicySettings(
        name="vla",
        horizon=16,
        training=ImitationConfig(
            net=VlaConfig(),
            process=FlowPath(),
            solver=SolverConfig(kind="euler", steps=10),
            steps=8_000,
            batch_size=64,
            lr=5e-4,
            warmup_steps=500,
            betas=(0.9, 0.95),
            clip_norm=1.0,
            amp=True,
            validation_share=0.05,
        ),
    ),
}
