"""Every solver as one table: a chunk is sampled by the same loop whatever is behind it.

At each call the network gives an estimate of the clean actions, x0. All solvers here are then linear:

    x' = c_noisy * x + c_clean * x0 + c_previous * (x0 of the call before) + c_noise * fresh noise

so one loop runs them, is unrolled into one graph, and is guided in one place. diffusers' schedulers define the chain
and its time steps; `scheduler.step` itself costs as much as a small network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from policies.generative.config import DiffusionChain, FlowPath, Process, SolverConfig


@dataclass(frozen=True, slots=True)
class SolverCall:
    """One call of the network: what it is told (`time`, and `stride`, how far in time it goes; 0 on a chain), where the
    noisy actions are (x = alpha * actions + sigma * noise), and the coefficients of what follows."""

    time: float
    alpha: float
    sigma: float
    c_noisy: float
    c_clean: float
    c_previous: float = 0.0
    c_noise: float = 0.0
    stride: float = 0.0


def solver_calls(process: Process, solver: SolverConfig) -> tuple[SolverCall, ...]:
    """The table of a solver, noisiest call first; ConfigError if it cannot sample from that process."""
    solver.check(process)
    if isinstance(process, FlowPath):
        return _heun(solver.steps) if solver.kind == "heun" else _euler(solver.steps)
    return {"ddpm": _ddpm, "ddim": _ddim, "dpmpp": _dpmpp}[solver.kind](process, solver.steps)


def noise_levels(chain: DiffusionChain) -> tuple[Tensor, Tensor]:
    """alpha and sigma (train_steps,) float64 of every step of the chain."""
    cumulative = torch.as_tensor(_scheduler(DDPMScheduler, chain).alphas_cumprod, dtype=torch.float64)
    return cumulative.sqrt(), (1.0 - cumulative).sqrt()


def clean_estimate(process: Process, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean actions that a network's output means; samples of a chain are clipped to [-1, 1]."""
    if isinstance(process, FlowPath):
        return noisy + sigma * output
    clean = output if process.prediction == "sample" else (noisy - sigma * output) / alpha
    return clean.clamp(-1.0, 1.0)


def _scheduler(kind: Any, chain: DiffusionChain, **settings: object) -> Any:
    return kind(
        num_train_timesteps=chain.train_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=chain.prediction,
        **settings,
    )


def _levels(chain: DiffusionChain, times: Sequence[int]) -> list[tuple[float, float]]:
    """(alpha, sigma) at these steps, then at the end, where nothing is noise."""
    alphas, sigmas = noise_levels(chain)
    return [(float(alphas[time]), float(sigmas[time])) for time in times] + [(1.0, 0.0)]


def _ddpm(chain: DiffusionChain, steps: int) -> tuple[SolverCall, ...]:
    """Ancestral sampling with the small, fixed variance (Ho et al., 2020)."""
    times = list(range(steps - 1, -1, -1))
    calls = []
    for time, ((alpha, sigma), (alpha_next, sigma_next)) in zip(times, pairwise(_levels(chain, times)), strict=True):
        kept = (alpha / alpha_next) ** 2  # 1 - beta of this step
        deviation = sigma_next / sigma * math.sqrt(1.0 - kept)
        calls.append(
            SolverCall(
                time=float(time),
                alpha=alpha,
                sigma=sigma,
                c_noisy=math.sqrt(kept) * sigma_next**2 / sigma**2,
                c_clean=alpha_next * (1.0 - kept) / sigma**2,
                c_noise=deviation if time > 0 else 0.0,
            )
        )
    return tuple(calls)


def _ddim(chain: DiffusionChain, steps: int) -> tuple[SolverCall, ...]:
    """Deterministic, from the noisiest step on (Song et al., 2020; eta 0, trailing steps)."""
    scheduler = _scheduler(DDIMScheduler, chain, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    times = [int(time) for time in scheduler.timesteps]
    return _straight([float(time) for time in times], _levels(chain, times))


def _dpmpp(chain: DiffusionChain, steps: int) -> tuple[SolverCall, ...]:
    """DPM-Solver++(2M) (Lu et al., 2022): second order but for the first and the last step."""
    scheduler = _scheduler(DPMSolverMultistepScheduler, chain, timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    times = [int(time) for time in scheduler.timesteps]
    levels = _levels(chain, times)
    logs = [math.log(alpha / sigma) for alpha, sigma in levels[:-1]] + [math.inf]
    calls = []
    for index, ((alpha, sigma), (alpha_next, sigma_next)) in enumerate(pairwise(levels)):
        weight = -alpha_next * math.expm1(logs[index] - logs[index + 1])
        first_order = index in (0, len(times) - 1)
        ratio = 0.0 if first_order else 0.5 * (logs[index + 1] - logs[index]) / (logs[index] - logs[index - 1])
        calls.append(
            SolverCall(
                time=float(times[index]),
                alpha=alpha,
                sigma=sigma,
                c_noisy=sigma_next / sigma,
                c_clean=weight * (1.0 + ratio),
                c_previous=-weight * ratio,
            )
        )
    return tuple(calls)


def _euler(steps: int) -> tuple[SolverCall, ...]:
    times = [index / steps for index in range(steps)]
    calls = _straight(times, [(time, 1.0 - time) for time in [*times, 1.0]])
    return tuple(replace(call, stride=1.0 / steps) for call in calls)


def _heun(steps: int) -> tuple[SolverCall, ...]:
    """Second order (the trapezoidal rule); the last step, which ends without noise, is Euler's, as in EDM."""
    calls: list[SolverCall] = []
    for index, call in enumerate(_euler(steps)):
        calls.append(call)
        if index == steps - 1:
            break
        step, sigma = 1.0 / steps, call.sigma
        sigma_next = sigma - step
        half = 1.0 - step / (2 * sigma)
        calls.append(
            SolverCall(
                time=call.time + step,
                stride=step,
                alpha=call.alpha + step,
                sigma=sigma_next,
                c_noisy=sigma / sigma_next * half - step / (2 * sigma_next),
                c_clean=step / (2 * sigma_next),
                c_previous=step / (2 * sigma) - step / sigma_next * half,
            )
        )
    return tuple(calls)


def _straight(times: Sequence[float], levels: Sequence[tuple[float, float]]) -> tuple[SolverCall, ...]:
    """The noise that the estimate implies is kept: DDIM on a chain, Euler on a flow."""
    return tuple(
        SolverCall(
            time=time,
            alpha=alpha,
            sigma=sigma,
            c_noisy=sigma_next / sigma,
            c_clean=alpha_next - alpha * sigma_next / sigma,
        )
        for time, ((alpha, sigma), (alpha_next, sigma_next)) in zip(times, pairwise(levels), strict=True)
    )
