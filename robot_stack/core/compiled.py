"""Functions compiled by numba, for the few loops that run at every tick of a robot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The function, compiled at its first call for the types that come then, and kept in `__pycache__` next to its
    file, else in the user's cache folder or NUMBA_CACHE_DIR; where none can be written it is compiled at every start.

    Nothing is fused or reordered, so the same inputs give the same bits, interpreted (NUMBA_DISABLE_JIT=1) or not.
    """
    try:
        return cast(_Function, njit(cache=True, error_model="numpy")(function))
    except RuntimeError:  # numba found no folder that can be written
        return cast(_Function, njit(error_model="numpy")(function))
