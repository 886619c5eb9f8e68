"""What weights are, in one short text."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of names, shapes, dtypes and values of a module's parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
