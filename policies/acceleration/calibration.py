"""From a policy and a handful of observations to a cache schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from policies.acceleration.adaptive import adaptive_updates, bubbling_union
from policies.acceleration.baselines import teacache_for_budget, uniform_updates
from policies.acceleration.recording import Recording, record
from policies.acceleration.schedule import CacheSchedule
from policies.generative.policy import GenerativePolicy
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Observation

Method = Literal["adaptive", "adaptive_no_union", "uniform", "teacache", "deepcache"]
Updates = tuple[tuple[int, ...], ...]

NEEDS_RECORDING = frozenset({"adaptive", "adaptive_no_union", "teacache"})


def make_schedule(
    policy: GenerativePolicy,
    observations: Sequence[Observation],
    method: Method,
    budget: int,
    union: int = 5,
    recording: Recording | None = None,
) -> CacheSchedule:
    """A schedule for the policy's network and solver with `budget` updates of each block, the first call's included.

    adaptive: block-wise adaptive caching with a bubbling union of `union` blocks, which adds updates to them.
    adaptive_no_union: without it. uniform: evenly spread (FORA). teacache: the whole network at once, when its input
    has changed enough. deepcache: a U-Net's inner levels evenly spread, the outer ones at every call (Ma et al., CVPR
    2024). The adaptive ones and teacache look at the chunks predicted for `observations`, or at the `recording` of them
    (which saves the time if several schedules are made of the same).

    PolicyError for a budget outside 1..T, no observations where they are needed, or deepcache without a U-Net.
    """
    calls, blocks = len(policy.sampler.calls), policy.sampler.denoiser.block_names
    if method in NEEDS_RECORDING and recording is None:
        recording = record(policy, observations)
    updates: Updates
    if recording is not None and method in ("adaptive", "adaptive_no_union"):
        updates = tuple(adaptive_updates(similarity, budget) for similarity in recording.similarity)
        if method == "adaptive":
            updates = bubbling_union(blocks, updates, recording.errors, union)
    elif recording is not None and method == "teacache":
        updates = (teacache_for_budget(recording.changes, budget),) * len(blocks)
    elif method == "deepcache":
        inner = _deep_blocks(policy)
        spread = uniform_updates(calls, budget)
        updates = tuple(spread if name in inner else tuple(range(calls)) for name in blocks)
    else:
        updates = (uniform_updates(calls, budget),) * len(blocks)
    return CacheSchedule(method=method, calls=calls, blocks=blocks, updates=updates, belongs_to=policy.fingerprint)


def _deep_blocks(policy: GenerativePolicy) -> frozenset[str]:
    from policies.diffusion.unet import DiffusionUNet

    net = policy.sampler.denoiser
    if not isinstance(net, DiffusionUNet):
        raise PolicyError("the method deepcache is for U-Nets; take adaptive or uniform for this network")
    return frozenset(net.deep_blocks)
