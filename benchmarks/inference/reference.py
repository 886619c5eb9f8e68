"""The baseline of all ratios: a diffusion policy as it is commonly run."""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from policies.generative.backend import Arrays
from policies.generative.config import DiffusionChain
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray


class DiffusersBackend:
    """Eager DDPM over all steps of the chain: the whole network at every call, then diffusers' `scheduler.step`.

    A `Backend`; its fresh noise comes from `generator`, not from the caller. PolicyError for a flow.
    """

    def __init__(self, sampler: ChunkSampler, generator: torch.Generator) -> None:
        if not isinstance(sampler.process, DiffusionChain):
            raise PolicyError("the baseline samples a diffusion chain; this policy is a flow")
        self._denoiser = sampler.denoiser.eval().requires_grad_(False)
        self._generator = generator
        self._scheduler = DDPMScheduler(
            num_train_timesteps=sampler.process.train_steps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type=sampler.process.prediction,
            variance_type="fixed_small",
            clip_sample=True,
        )
        self._scheduler.set_timesteps(sampler.process.train_steps)

    @torch.inference_mode()
    def sample(self, noise: FloatArray, step_noise: FloatArray | None, condition: Arrays) -> FloatArray:
        noisy, seen = torch.from_numpy(noise), tuple(torch.from_numpy(part) for part in condition)
        strides = torch.zeros(len(noisy))
        for time in self._scheduler.timesteps:
            output = self._denoiser(noisy, time.float().expand(len(noisy)), strides, seen)
            noisy = self._scheduler.step(output, time, noisy, generator=self._generator).prev_sample
        chunks: FloatArray = noisy.numpy()
        return chunks
