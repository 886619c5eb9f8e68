"""AdamW whose whole state exists from the start, so that a checkpoint has one form at all times."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """An AdamW over these parameters; biases, norms and other vectors are not decayed."""
    listed = list(parameters)
    matrices = [parameter for parameter in listed if _is_matrix(parameter)]
    vectors = [parameter for parameter in listed if not _is_matrix(parameter)]
    return _with_state(matrices, vectors, lr, weight_decay, (0.9, 0.999))


def adamw_of_module(module: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """An AdamW over what the module trains; only weights of linear layers and convolutions are decayed, never biases,
    norms, embeddings and positions."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    weights = {id(part.weight) for part in module.modules() if isinstance(part, _DECAYED)}
    decayed = [parameter for parameter in trained if id(parameter) in weights]
    others = [parameter for parameter in trained if id(parameter) not in weights]
    return _with_state(decayed, others, lr, weight_decay, betas)


def adamw_tensors(optimizer: torch.optim.AdamW, prefix: str) -> dict[str, Tensor]:
    """The optimiser's own tensors (not copies), named `<prefix>.<parameter index>.<moment>`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{prefix}.{index}.{name}": value
        for index, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
    }


def _with_state(
    decayed: list[nn.Parameter],
    others: list[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> torch.optim.AdamW:
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    for parameter in (*decayed, *others):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and min(parameter.shape[-2:]) > 1
