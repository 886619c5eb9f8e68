"""Cache schedules of a policy, made once from observations of demonstrations and kept in the work folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.inference.configurations import Configuration
from policies.acceleration.calibration import make_schedule
from policies.acceleration.recording import Recording, record
from policies.acceleration.schedule import CacheSchedule
from policies.generative.policy import GenerativePolicy
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import Observation
from robot_stack.core.specs import Feature
from robot_stack.learner.imitation_data import DemonstrationArrays, EpisodeIndex

CALIBRATION = 16
CHECKED = 64

Schedules = dict[str, CacheSchedule | None]


def observations_of(
    data: DemonstrationArrays, features: Mapping[str, Feature], history: int, count: int, seed: int
) -> list[Observation]:
    """Observations of random steps of demonstrations without images, with the steps before them."""
    rows = np.random.default_rng(seed).choice(len(data.vector), count, replace=False)
    windows = EpisodeIndex(data.episode_ends).past(rows, history)
    ends = np.cumsum([feature.shape[0] for feature in features.values()])[:-1]
    observations = []
    for number, window in enumerate(windows):
        frames = [dict(zip(features, np.split(data.vector[row], ends), strict=True)) for row in window]
        observations.append(
            Observation(
                id=number,
                stamp_ns=0,
                features=frames[-1],
                age_ns={},
                episode_seed=seed,
                index=number,
                past=tuple(frames[:-1]),
            )
        )
    return observations


def schedules_of(
    policy: GenerativePolicy,
    configurations: Iterable[Configuration],
    observations: Sequence[Observation],
    directory: Path,
) -> Schedules:
    """The schedule of every configuration by its name, None where nothing is cached. `directory`: of these weights."""
    recordings: dict[str, Recording] = {}
    found: Schedules = {}
    for configuration in configurations:
        name, cache = str(configuration), configuration.cache
        if cache is None:
            found[name] = None
            continue
        path = directory / f"{name.rpartition('/')[2]}.json"
        solved = policy.with_solver(configuration.solver)
        if not path.exists():
            solver = str(configuration.uncached)
            if solver not in recordings:
                recordings[solver] = record(solved, observations)
            schedule = make_schedule(solved, observations, cache.method, cache.budget, recording=recordings[solver])
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.encode(schedule))
        found[name] = msgspec.json.decode(path.read_bytes(), type=CacheSchedule)
    return found


def block_calls(policy: GenerativePolicy, configuration: Configuration, schedule: CacheSchedule | None) -> int:
    """Blocks that one chunk computes."""
    if schedule is not None:
        return schedule.block_calls
    solved = policy.with_solver(configuration.solver).sampler
    return len(solved.calls) * len(solved.denoiser.block_names)


def action_rmse(
    policy: GenerativePolicy,
    configuration: Configuration,
    schedule: CacheSchedule | None,
    observations: Sequence[Observation],
) -> float:
    """Root mean square difference of the chunks to those of the same solver without caching and with the same noise;
    in normalised units, where an action's whole range is 2."""
    full = policy.with_solver(configuration.solver)
    cached = policy.with_solver(configuration.solver, schedule)
    chunks = [one.to_samples(one.predict_batch(observations)) for one in (full, cached)]
    return float(np.sqrt(np.mean((chunks[0] - chunks[1]) ** 2)))
