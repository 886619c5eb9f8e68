"""Ratios between the buffers of one run, and whether they are what is wanted."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.buffer.figures import Figures, IngestFigures, Target

OURS = ("ram_raw", "ram_jpeg", "disk_raw", "disk_jpeg")
OTHERS = ("lerobot", "lerobot_optimized", "ring")


def best_rate(figures: Figures) -> float:
    """Batches per second with or without prefetching, whichever is more."""
    return max(figures.batches_per_s, figures.prefetched_batches_per_s)


def ratios_of(buffers: Mapping[str, Figures]) -> dict[str, float]:
    """Speed, CPU time per batch and memory of each of ours over each of the others."""
    ratios: dict[str, float] = {}
    for other in (name for name in OTHERS if name in buffers):
        for name in OURS:
            ratios[f"{name}_speed_over_{other}"] = best_rate(buffers[name]) / best_rate(buffers[other])
            ratios[f"{name}_cpu_over_{other}"] = buffers[name].cpu_ms_per_batch / buffers[other].cpu_ms_per_batch
            ratios[f"{name}_memory_over_{other}"] = buffers[name].bytes_per_100k / buffers[other].bytes_per_100k
    return ratios


def targets_of(buffers: Mapping[str, Figures], ingest: Mapping[str, IngestFigures]) -> dict[str, Target]:
    """What is wanted, on the clock (meant for an idle machine) and beside it in CPU time (of one core, for any)."""
    reopen_s = buffers["disk_raw"].reopen_s
    targets = {
        "ram_batches_per_s": _at_least(150.0, best_rate(buffers["ram_raw"])),
        "ram_batches_per_cpu_s": _at_least(150.0, 1e3 / buffers["ram_raw"].cpu_ms_per_batch),
        "disk_warm_batches_per_s": _at_least(30.0, best_rate(buffers["disk_raw"])),
        "disk_warm_batches_per_cpu_s": _at_least(30.0, 1e3 / buffers["disk_raw"].cpu_ms_per_batch),
        "reopen_s_per_100k": Target(wanted="any", measured=reopen_s, met=reopen_s is not None),
    }
    for name, figures in ingest.items():
        targets[f"ingest_{name}_loss_percent"] = _at_most(20.0, figures.loss_percent)
        targets[f"ingest_{name}_cores_percent"] = _at_most(20.0, figures.cores_percent)
    for other in ("lerobot", "lerobot_optimized"):
        targets[f"speed_over_{other}_within_a_quarter_of_its_memory"] = _over_lerobot(buffers, other)
    return targets


def _over_lerobot(buffers: Mapping[str, Figures], other: str) -> Target:
    """The fastest of ours that takes a quarter of its memory at most, over its speed."""
    if other not in buffers:
        return Target(wanted=">= 3", measured=None, met=None)
    room = buffers[other].bytes_per_100k / 4
    ours = [best_rate(buffers[name]) for name in OURS if buffers[name].bytes_per_100k <= room]
    return _at_least(3.0, max(ours, default=0.0) / best_rate(buffers[other]))


def _at_least(wanted: float, measured: float) -> Target:
    return Target(wanted=f">= {wanted:g}", measured=measured, met=measured >= wanted)


def _at_most(wanted: float, measured: float) -> Target:
    return Target(wanted=f"<= {wanted:g}", measured=measured, met=measured <= wanted)
