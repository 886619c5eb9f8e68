"""The benchmark's result as one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from benchmarks.inference.configurations import MARGIN, Configuration, Family
from benchmarks.inference.figures import CachingAlone, Rival, Row, Success, caching_alone, front, rivals_of, shipped


class PolicyFigures(Struct, frozen=True, kw_only=True):
    """A trained policy: parameters, demonstrations, and success of its reference solver with Wilson's interval."""

    task: str
    family: str
    parameters: int
    training_steps: int
    demonstrations: int
    n: int
    success: float
    ci: tuple[float, float]


class Report(Struct, frozen=True, kw_only=True):
    """Everything.

    Attributes:
        baseline_ms: for each task one chunk of eager DDPM with diffusers' `scheduler.step`: what speedups refer to.
        caching: the effect of caching alone, by policy and back-end.
        rows: all configurations on all back-ends. front: names of those that no other beats, by task, fastest first.
        default: by task, the fastest of the front that is not inferior to its reference by `margin`; '' if none is.
        rivals: configurations with caching beside the best without in the same time.
        backend_rmse: largest difference of a back-end's chunks to eager ones. refused: what could not be measured.
    """

    benchmark: str = "inference"
    seed: int
    quick: bool
    threads: int
    load_average: float
    episodes: int
    margin: float
    baseline_ms: dict[str, float]
    policies: list[PolicyFigures]
    caching: list[CachingAlone]
    rows: list[Row]
    front: dict[str, list[str]]
    default: dict[str, str]
    rivals: list[Rival]
    backend_rmse: dict[str, float]
    refused: dict[str, str]


class Measured(Struct, frozen=True, kw_only=True):
    """One policy family on one task, as the stages left it. Keys are names of configurations (of `latency_ms` with
    `@<backend>`). `baseline`: outcomes of what every success is paired with."""

    task: str
    name: str
    family: Family
    block_calls: dict[str, int]
    action_rmse: dict[str, float]
    latency_ms: Mapping[str, float]
    baseline_ms: float
    outcomes: Mapping[str, Sequence[bool]]
    baseline: Sequence[bool]

    def rows(self) -> list[Row]:
        """Of all that was timed and run."""
        rows = []
        for configuration in self.family.configurations(self.name):
            key = str(configuration)
            if not self.outcomes.get(key):
                continue
            timed = {at: ms for at, ms in self.latency_ms.items() if at.rpartition("@")[0] == key}
            for at, ms in timed.items():
                rows.append(self._row(configuration, at.rpartition("@")[2], ms))
        return rows

    def _row(self, configuration: Configuration, backend: str, ms: float) -> Row:
        key, solver = str(configuration), configuration.solver
        return Row(
            task=self.task,
            family=self.name,
            solver=f"{solver.kind}-{solver.steps}",
            cache=str(configuration.cache or ""),
            backend=backend,
            ms=round(ms, 3),
            speedup=round(self.baseline_ms / ms, 2),
            block_calls=self.block_calls[key],
            action_rmse=round(self.action_rmse[key], 5),
            success=Success.of(self.outcomes[key], self.baseline),
        )

    def caching(self, rows: Sequence[Row]) -> list[CachingAlone]:
        """Of the headline, on every back-end that both were timed on."""
        full, cached = self.family.headline_pair(self.name)
        solver, cache = f"{full.solver.kind}-{full.solver.steps}", str(cached.cache)
        paired = Success.of(self.outcomes.get(str(cached), []), self.outcomes.get(str(full), []))
        own = [row for row in rows if (row.task, row.family, row.solver) == (self.task, self.name, solver)]
        found = {(row.backend, row.cache): row for row in own}
        backends = {backend for backend, _ in found}
        return [
            caching_alone(found[backend, ""], found[backend, cache], paired)
            for backend in sorted(backends)
            if (backend, "") in found and (backend, cache) in found
        ]


def fronts(rows: Sequence[Row]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(front, default) by task."""
    by_task = {task: [row for row in rows if row.task == task] for task in sorted({row.task for row in rows})}
    defaults = {task: shipped(own, MARGIN) for task, own in by_task.items()}
    return (
        {task: [row.name for row in front(own)] for task, own in by_task.items()},
        {task: row.name if row else "" for task, row in defaults.items()},
    )


def all_rivals(measured: Sequence[Measured], rows: Sequence[Row]) -> list[Rival]:
    """Over all tasks and families."""
    outcomes = {f"{one.task}/{key}": found for one in measured for key, found in one.outcomes.items()}
    return rivals_of(rows, outcomes)
