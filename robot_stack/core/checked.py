"""The base of every configuration record."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class Checked(Struct, frozen=True, kw_only=True):
    """Base: a subclass names its positive keys."""

    def __post_init__(self) -> None:
        for name in self.positive():
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{type(self).__name__}.{name} = {value} must be larger than 0")

    def positive(self) -> tuple[str, ...]:
        return ()
