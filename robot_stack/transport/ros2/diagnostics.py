"""/diagnostics: what the robot server counts and how well this node hears it, once a second.

Levels: OK; WARN where it works but not as it should; ERROR for a latched fault; STALE where nothing new is known.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from robot_stack.core.messages import Lifecycle, RobotDiagnostics
from robot_stack.transport.ros2.robot_connection import RobotConnection

PERIOD_S = 1.0
MIN_RATE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Health:
    """One line of /diagnostics: `level` is OK, WARN, ERROR or STALE; `values` are shown as they are."""

    level: str
    message: str
    values: dict[str, str]


class RobotHealth:
    """Judges one connection. Call `look` once per period: rates and new refusals count since the last look."""

    def __init__(self, connection: RobotConnection) -> None:
        self._connection = connection
        self._states_before = 0
        self._refused_before: dict[str, int] = {}
        self._boot = ""

    def look(self, elapsed_s: float, warnings: tuple[str, ...] = ()) -> Health:
        """`elapsed_s`: since the last look. `warnings`: what else is wrong, in words."""
        connection = self._connection
        rate_hz = (connection.states - self._states_before) / elapsed_s if elapsed_s > 0.0 else 0.0
        self._states_before = connection.states
        values = self._values(rate_hz)
        if not connection.alive or connection.state is None or connection.info is None:
            return Health("STALE", connection.problem or "no state arrives", values)
        if connection.state.fault or connection.state.lifecycle is Lifecycle.FAULT:
            return Health("ERROR", f"fault, a person has to clear it: {connection.state.fault}", values)
        found = [*warnings, *self._warnings(rate_hz, connection.info.spec.tick_rate_hz)]
        if found:
            return Health("WARN", "; ".join(found), values)
        return Health("OK", connection.state.lifecycle.value, values)

    def _warnings(self, rate_hz: float, nominal_hz: float) -> list[str]:
        connection = self._connection
        found = [connection.problem] if connection.problem else []
        if rate_hz < MIN_RATE_SHARE * nominal_hz:
            found.append(f"states arrive at {rate_hz:.0f} of {nominal_hz:.0f} Hz")
        if connection.state is not None and connection.state.held_back:
            found.append(f"held back: {connection.state.held_back}")
        if connection.diagnostics is not None:
            found += self._new_refusals(connection.diagnostics)
        return found

    def _new_refusals(self, diagnostics: RobotDiagnostics) -> list[str]:
        if diagnostics.boot != self._boot:
            self._boot, self._refused_before = diagnostics.boot, {}
        before, self._refused_before = self._refused_before, dict(diagnostics.refusals)
        new = {reason: count - before.get(reason, 0) for reason, count in diagnostics.refusals.items()}
        return [f"{count} refused: {reason}" for reason, count in sorted(new.items()) if count > 0]

    def _values(self, rate_hz: float) -> dict[str, str]:
        connection = self._connection
        values = {"state_rate_hz": f"{rate_hz:.1f}", "state_age_s": f"{connection.state_age_s:.3f}"}
        if connection.info is not None:
            spec = connection.info.spec
            values |= {"robot": spec.name, "model": spec.model, "task": spec.task, "simulated": str(spec.simulated)}
        if connection.state is not None:
            values |= {
                "boot": connection.state.boot,
                "lifecycle": connection.state.lifecycle.value,
                "fault": connection.state.fault,
                "moving": str(connection.state.moving),
                "stopping": str(connection.state.stopping),
            }
        if connection.diagnostics is not None:
            values |= _counts(connection.diagnostics)
        return values


def _counts(diagnostics: RobotDiagnostics) -> dict[str, str]:
    """Every field of the server's answer; a count by reason becomes one value per reason: `refusals.stale`."""
    values: dict[str, str] = {}
    for name, value in structs.asdict(diagnostics).items():
        if isinstance(value, dict):
            values |= {f"{name}.{key}": str(count) for key, count in sorted(value.items())}
        elif isinstance(value, float):
            values[name] = f"{value:.5f}"
        elif not isinstance(value, enum.Enum):
            values[name] = str(value)
    return values


def diagnostic_array(header: Any, lines: dict[str, Health], hardware_id: str) -> Any:
    """diagnostic_msgs/DiagnosticArray with one status per line, by name."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    statuses = [
        DiagnosticStatus(
            level=getattr(DiagnosticStatus, health.level),
            name=name,
            message=health.message,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in health.values.items()],
        )
        for name, health in lines.items()
    ]
    return DiagnosticArray(header=header, status=statuses)
