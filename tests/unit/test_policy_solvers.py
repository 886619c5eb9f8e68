"""Solvers: against diffusers, against plain integration of a flow, and on data whose exact estimate is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.generative.config import DiffusionChain, FlowPath, Process, SolverConfig
from policies.generative.sampler import ChunkSampler
from policies.generative.solver import noise_levels
from robot_stack.core.errors import ConfigError

CHAIN = DiffusionChain(train_steps=20)
Kind = Literal["ddpm", "ddim", "dpmpp", "euler", "heun"]


class Formula(Denoiser):
    """output = formula(noisy actions, time); reads no condition."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.block_names = ()
        self._formula = formula

    def context(self, condition: Tensors) -> Tensors:
        return ()

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        return (times[:, None, None],)

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        return self._formula(actions, clock[0])


def wavy(actions: Tensor, time: Tensor) -> Tensor:
    return 0.9 * torch.sin(2.0 * actions + 0.2 * time)


def sample(
    formula: Callable[[Tensor, Tensor], Tensor], process: Process, kind: Kind, steps: int, *noise: Tensor
) -> Tensor:
    sampler = ChunkSampler(Formula(formula), process, SolverConfig(kind=kind, steps=steps)).eval()
    chunks: Tensor = sampler(noise[0], noise[1] if len(noise) > 1 else None)
    return chunks


def shared(chain: DiffusionChain) -> dict[str, object]:
    return {
        "num_train_timesteps": chain.train_steps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": chain.prediction,
    }


def start(rows: int = 4) -> Tensor:
    return torch.randn((rows, 6, 2), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_ddim_equals_diffusers(prediction: Literal["epsilon", "sample"], steps: int) -> None:
    chain = DiffusionChain(train_steps=20, prediction=prediction)
    scheduler = DDIMScheduler(**shared(chain), timestep_spacing="trailing", clip_sample=True)
    scheduler.set_timesteps(steps)
    expected = start()
    for time in scheduler.timesteps:
        output = wavy(expected, time)
        (expected, *_) = scheduler.step(output, time, expected, use_clipped_model_output=True, return_dict=False)
    torch.testing.assert_close(sample(wavy, chain, "ddim", steps, start()), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_ddpm_equals_diffusers_under_the_same_noise(prediction: Literal["epsilon", "sample"]) -> None:
    chain = DiffusionChain(train_steps=20, prediction=prediction)
    scheduler = DDPMScheduler(**shared(chain), variance_type="fixed_small", clip_sample=True)
    scheduler.set_timesteps(20)
    expected, generator = start(), torch.Generator().manual_seed(2)
    for time in scheduler.timesteps:
        output = wavy(expected, time)
        (expected, *_) = scheduler.step(output, int(time), expected, generator=generator, return_dict=False)
    generator = torch.Generator().manual_seed(2)
    step_noise = torch.stack([torch.randn((4, 6, 2), generator=generator) for _ in range(20)])
    found = sample(wavy, chain, "ddpm", 20, start(), step_noise)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (found - sample(wavy, chain, "ddpm", 20, start(), step_noise.flip(0))).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20])
def test_dpm_solver_equals_diffusers_where_nothing_is_clipped(steps: int) -> None:
    chain = DiffusionChain(train_steps=20, prediction="sample")  # `wavy` stays inside [-1, 1]
    scheduler = DPMSolverMultistepScheduler(**shared(chain), timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    expected = start()
    for time in scheduler.timesteps:
        (expected, *_) = scheduler.step(wavy(expected, time), time, expected, return_dict=False)
    torch.testing.assert_close(sample(wavy, chain, "dpmpp", steps, start()), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_and_heun_integrate_the_velocity(steps: int) -> None:
    euler, heun, stride = start(), start(), 1.0 / steps
    for index in range(steps):
        time = torch.tensor(index * stride)
        euler = euler + stride * wavy(euler, time)
        first = wavy(heun, time)
        second = wavy(heun + stride * first, time + stride)
        heun = heun + stride * (first if index == steps - 1 else (first + second) / 2)
    torch.testing.assert_close(sample(wavy, FlowPath(), "euler", steps, start()), euler, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample(wavy, FlowPath(), "heun", steps, start()), heun, atol=1e-5, rtol=1e-5)


MEAN, DEVIATION = 0.2, 0.3  # three deviations are inside [-1, 1], where estimates are clipped


def exact_noise(chain: DiffusionChain) -> Callable[[Tensor, Tensor], Tensor]:
    """What the noise is on average in noisy actions, if the actions are normal with MEAN and DEVIATION."""
    alphas, sigmas = (level.to(torch.float32) for level in noise_levels(chain))

    def formula(noisy: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = alphas[time.long()], sigmas[time.long()]
        return sigma * (noisy - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)

    return formula


def exact_velocity(noisy: Tensor, time: Tensor) -> Tensor:
    variance = time**2 * DEVIATION**2 + (1.0 - time) ** 2
    return MEAN + (time * DEVIATION**2 - (1.0 - time)) / variance * (noisy - time * MEAN)


@pytest.mark.parametrize(
    ("kind", "steps", "tolerance"),
    [("ddpm", 100, 0.08), ("ddim", 100, 0.05), ("dpmpp", 20, 0.06), ("euler", 100, 0.04), ("heun", 20, 0.03)],
)
def test_the_exact_estimate_gives_the_mean_and_deviation_of_normal_data(
    kind: Kind, steps: int, tolerance: float
) -> None:
    chain, generator = DiffusionChain(train_steps=100), torch.Generator().manual_seed(3)
    noise = torch.randn((5000, 1, 1), generator=generator)
    if kind in ("euler", "heun"):
        chunks = sample(exact_velocity, FlowPath(), kind, steps, noise)
    else:
        fresh = torch.randn((100, 5000, 1, 1), generator=generator)
        chunks = sample(exact_noise(chain), chain, kind, steps, noise, fresh)
    assert float(chunks.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(chunks.std()) == pytest.approx(DEVIATION, rel=tolerance)


def test_higher_order_pays_off_at_as_many_calls_of_the_network() -> None:
    noise, chain = start(500), DiffusionChain(train_steps=100)
    exact = MEAN + DEVIATION * noise

    def error(process: Process, kind: Kind, steps: int) -> float:
        formula = exact_velocity if isinstance(process, FlowPath) else exact_noise(chain)
        return float((sample(formula, process, kind, steps, noise) - exact).abs().mean())

    assert error(FlowPath(), "heun", 10) < 0.7 * error(FlowPath(), "euler", 19)  # 19 calls each
    assert error(chain, "dpmpp", 20) < 0.5 * error(chain, "ddim", 20)


@pytest.mark.parametrize(
    ("process", "kind", "steps"),
    [
        (CHAIN, "euler", 5),
        (CHAIN, "ddim", 0),
        (CHAIN, "ddim", 21),
        (CHAIN, "ddpm", 10),
        (FlowPath(), "ddim", 5),
        (FlowPath(objective="shortcut"), "euler", 10),
        (FlowPath(objective="shortcut"), "euler", 256),
        (FlowPath(objective="shortcut"), "heun", 4),
        (FlowPath(objective="consistency"), "heun", 4),
    ],
)
def test_a_solver_that_cannot_sample_from_the_process_is_refused(process: Process, kind: Kind, steps: int) -> None:
    with pytest.raises(ConfigError, match="solver"):
        sample(wavy, process, kind, steps, start())
