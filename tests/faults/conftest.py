"""The small run of the system tests serves here too."""

from __future__ import annotations

from tests.system.conftest import prepared_run, small_run

__all__ = ["prepared_run", "small_run"]
