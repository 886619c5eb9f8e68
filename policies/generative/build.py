"""From configuration to networks, and the names by which parts that belong together know each other."""

from __future__ import annotations

import hashlib

import msgspec

from policies.common.denoiser import Denoiser
from policies.common.sizes import Sizes
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.config import GenerativeConfig, NetConfig, Process, SolverConfig
from robot_stack.core.specs import PolicySpec


def build_net(net: NetConfig, sizes: Sizes) -> Denoiser:
    """An untrained network, initialised from torch's global generator."""
    if isinstance(net, TransformerConfig):
        from policies.diffusion.transformer import DiffusionTransformer

        return DiffusionTransformer(net, sizes)
    if isinstance(net, UNetConfig):
        from policies.diffusion.unet import DiffusionUNet

        return DiffusionUNet(net, sizes)
    if isinstance(net, ExpertConfig):
        from policies.flow.expert import FlowExpert

        return FlowExpert(net, sizes)
    from policies.vla.model import VisionLanguageAction

    return VisionLanguageAction(net, sizes)


def sizes_of(spec: PolicySpec, config: GenerativeConfig) -> Sizes:
    """Shapes of a policy's tensors."""
    return Sizes.of(spec, words=len(config.vocabulary))


def fingerprint(net: NetConfig, sizes: Sizes, process: Process, solver: SolverConfig) -> str:
    """What a cache schedule belongs to: 16 hexadecimal digits."""
    parts = (net, [sizes.horizon, sizes.action_dim, sizes.history, sizes.vector_dim, sizes.images], process, solver)
    return hashlib.sha256(b"\n".join(msgspec.json.encode(part) for part in parts)).hexdigest()[:16]
