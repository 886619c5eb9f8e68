"""The noising chain: diffusers' schedulers define it, a table of DDIM coefficients replays it cheaply.

`scheduler.step` costs as much as a small network's forward pass; one DDIM step (eta 0) only needs four numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from policies.diffusion.config import DiffusionConfig


def ddpm_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """The chain that training noises with: squared cosine, samples clipped to [-1, 1]."""
    scheduler: DDPMScheduler = DDPMScheduler(
        num_train_timesteps=config.train_steps,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        prediction_type=config.prediction,
    )
    return scheduler


def ddim_scheduler(config: DiffusionConfig) -> DDIMScheduler:
    """The deterministic sampler over the same chain (Song et al., 2020), started at its noisiest step."""
    scheduler: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=config.train_steps,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type=config.prediction,
    )
    scheduler.set_timesteps(config.inference_steps)
    return scheduler


@dataclass(frozen=True, slots=True)
class DdimStep:
    """One step: x0 = (x - sigma * eps) / alpha, clipped; x' = alpha_next * x0 + sigma_next * eps."""

    time: int
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float


def ddim_steps(config: DiffusionConfig) -> tuple[DdimStep, ...]:
    """The sampler's coefficients, noisiest step first."""
    scheduler = ddim_scheduler(config)
    cumulative = [float(value) for value in scheduler.alphas_cumprod]
    times = [int(time) for time in scheduler.timesteps]
    stride = config.train_steps // config.inference_steps
    steps = []
    for time in times:
        now = cumulative[time]
        following = cumulative[time - stride] if time >= stride else 1.0
        steps.append(
            DdimStep(
                time=time,
                alpha=now**0.5,
                sigma=(1.0 - now) ** 0.5,
                alpha_next=following**0.5,
                sigma_next=(1.0 - following) ** 0.5,
            )
        )
    return tuple(steps)
