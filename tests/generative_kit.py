"""Small generative policies with random weights, for tests of what runs them."""

from __future__ import annotations

import numpy as np
import torch

from policies.common.denoiser import Denoiser
from policies.common.normalization import MinMaxNormalizer
from policies.common.sizes import Sizes
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net
from policies.generative.config import DiffusionChain, FlowPath, GenerativeConfig, NetConfig, Process, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.core.messages import Observation
from robot_stack.core.specs import STATE, PolicySpec, vector

SPEC = PolicySpec(
    name="small",
    task="nothing",
    horizon=8,
    action=vector(("x_m", "y_m"), lower=(-1.0, -1.0), upper=(1.0, 1.0)),
    observation={STATE: vector(("p_m", "q_m", "r_m"))},
    history=2,
)
TRANSFORMER = TransformerConfig(embed_dim=16, layers=2, heads=2)
UNET = UNetConfig(channels=(8, 16), groups=4, time_dim=8, kernel=3)
EXPERT = ExpertConfig(embed_dim=16, layers=2, heads=2)
CHAIN = DiffusionChain(train_steps=20)
DDPM = SolverConfig(kind="ddpm", steps=20)
DDIM = SolverConfig(kind="ddim", steps=6)
FLOW = FlowPath()
EULER = SolverConfig(kind="euler", steps=6)


def make_policy(
    net: NetConfig = TRANSFORMER, process: Process = CHAIN, solver: SolverConfig = DDIM, seed: int = 0
) -> GenerativePolicy:
    """Random weights, large enough that every block matters."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = GenerativeConfig(
        net=net,
        process=process,
        solver=solver,
        observation=MinMaxNormalizer(centre=(0.0,) * 3, half_range=(1.0,) * 3),
        action=MinMaxNormalizer(centre=(0.0,) * 2, half_range=(1.0,) * 2),
    )
    return GenerativePolicy(SPEC, config, _alive(build_net(net, Sizes.of(SPEC))))


def observations(count: int) -> list[Observation]:
    """`count` steps of an episode, each with the one before."""
    generator = np.random.default_rng(1)
    frames = [{STATE: generator.uniform(-1, 1, 3).astype(np.float32)} for _ in range(count)]
    return [
        Observation(
            id=index,
            stamp_ns=0,
            features=frames[index],
            age_ns={},
            episode_seed=3,
            index=index,
            past=tuple(frames[max(0, index - 1) : index]),
        )
        for index in range(count)
    ]


def _alive(net: Denoiser) -> Denoiser:
    """Gates that start at zero are opened, and small weights made larger."""
    with torch.no_grad():
        for name, value in net.named_parameters():
            if value.dim() > 1:
                value.mul_(3.0) if value.any() else value.normal_(std=0.3)
            elif "modulation" in name:
                value.fill_(0.5)
    return net
