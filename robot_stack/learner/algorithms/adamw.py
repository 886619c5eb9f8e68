"""AdamW whose whole state exists from the start, so that a checkpoint has one form at all times."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """An AdamW over these parameters; biases, norms and other vectors are not decayed."""
    listed = list(parameters)
    matrices = [parameter for parameter in listed if _is_matrix(parameter)]
    vectors = [parameter for parameter in listed if not _is_matrix(parameter)]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    for parameter in listed:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def adamw_tensors(optimizer: torch.optim.AdamW, prefix: str) -> dict[str, Tensor]:
    """The optimiser's own tensors (not copies), named `<prefix>.<parameter index>.<moment>`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{prefix}.{index}.{name}": value
        for index, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
    }


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and min(parameter.shape[-2:]) > 1
