"""Weights in each encoding: `python -m benchmarks.weights [--quick] [--seed N]`.

A residual actor and a large network, each published, changed a little (as by a few optimiser steps: every number by
about one part in a thousand) and published again; the second transfer is measured, publisher and edge in one thread,
no network between. `ratio` is what was sent over what a full transfer sends; `mb_per_s` counts decoded megabytes per
second of CPU time on both sides together; `delta_frozen` is a delta where only one tensor in ten has changed.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from robot_stack.core.messages import Array, GetWeights, WeightChunk, WeightEncoding
from robot_stack.edge.weights import WeightFetch, load_tensors
from robot_stack.learner.publication import WeightPublisher

HIDDEN = 256
SMALL_UPDATE = 1e-3


def residual_actor(rng: np.random.Generator) -> dict[str, Array]:
    """Shapes of the residual actor of the demo: 21 + 7 inputs, two hidden layers, 7 outputs."""
    widths = (28, HIDDEN, HIDDEN, 7)
    return {
        f"weight.{i}": (rng.standard_normal((1, a, b)) / np.sqrt(a)).astype(np.float32)
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    } | {"observation_mean": rng.standard_normal(21).astype(np.float32)}


def large_net(rng: np.random.Generator, size_mb: int) -> dict[str, Array]:
    width = 1000
    layers = size_mb * 1_000_000 // (4 * width * width)
    return {f"layer.{i}": (rng.standard_normal((width, width)) * 0.03).astype(np.float32) for i in range(layers)}


def changed(before: Mapping[str, Array], rng: np.random.Generator, share: float = 1.0) -> dict[str, Array]:
    """The first `share` of the tensors a little different."""
    moved = max(1, round(share * len(before)))
    after = dict(before)
    for name in list(before)[:moved]:
        value = before[name]
        noise = rng.standard_normal(value.shape).astype(np.float32)
        after[name] = (value * (1.0 + SMALL_UPDATE * noise)).astype(np.float32)
    return after


def measure(
    before: Mapping[str, Array], after: Mapping[str, Array], encoding: WeightEncoding, repeats: int
) -> dict[str, float]:
    """Medians over transfers of `after` to an edge that holds `before`."""
    sent_bytes, times_s, size = 0, [], 0
    for _ in range(repeats):
        publisher, fetch = WeightPublisher("residual"), WeightFetch(encoding)
        publisher.publish(1, before, 1)
        fetch.fetch(publisher.answer)
        publisher.publish(2, after, 2)
        size = publisher.answer(GetWeights()).snapshot.size
        sent_bytes = 0

        def ask(request: GetWeights, publisher: WeightPublisher = publisher) -> WeightChunk:
            nonlocal sent_bytes
            chunk = publisher.answer(request)
            sent_bytes += len(chunk.data)
            return chunk

        began_s = time.process_time()
        whole = fetch.fetch(ask)
        times_s.append(time.process_time() - began_s)
        if whole is None or load_tensors(whole[1]).keys() != after.keys():
            raise SystemExit("the weights did not arrive")
    return {
        "sent_mb": round(sent_bytes / 1e6, 4),
        "ratio": round(sent_bytes / size, 4),
        "mb_per_s": round(size / 1e6 / float(np.median(times_s)), 1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller network, fewer repetitions; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    size_mb, repeats = (24, 1) if options.quick else (100, 3)
    nets = {"actor": (residual_actor(rng), 20 * repeats), f"net_{size_mb}mb": (large_net(rng, size_mb), repeats)}
    results: dict[str, dict[str, float]] = {}
    for name, (before, count) in tqdm(nets.items(), file=sys.stderr):
        after = changed(before, rng)
        for encoding in WeightEncoding:
            results[f"{name}_{encoding.value}"] = measure(before, after, encoding, count)
        results[f"{name}_delta_frozen"] = measure(before, changed(before, rng, 0.1), WeightEncoding.DELTA, count)
    for name, figures in results.items():
        print(f"{name:28s}", *(f"{key} {value:10.4g}" for key, value in figures.items()))
    print(json.dumps({"benchmark": "weights", "seed": options.seed, "quick": options.quick} | results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
