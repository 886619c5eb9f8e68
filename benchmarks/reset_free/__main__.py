"""Practice without resets: `python -m benchmarks.reset_free [--quick] [--seed N] [--seeds K] [--work W]`.

The simulated Franka inserts a peg and pulls it out again, in turn, in one scene; the scene is set up anew only where a
person is called, and every call is counted. For each seed: demonstrations of both directions by the scripted expert, a
base policy by imitation, a classifier of success for each direction; then practice with each variant of who says that
a goal is reached. Success is that of the forward task, by its own predicate, of the deterministic policy, in episodes
from fresh resets on held-out seeds that nobody practised on. Finished runs are kept in the work folder and not
repeated; an interrupted one begins anew. The results go to `benchmarks/results/reset_free.json` and into
`docs/reset-free.md`; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct
from tqdm import tqdm

from benchmarks.reset_free.base import classifier_folder, make_base
from benchmarks.reset_free.curve import Point, is_finished
from benchmarks.reset_free.practice import Measuring, curve_path, measure_base, practise
from benchmarks.reset_free.report import Report, filled, rows_of, table
from benchmarks.reset_free.variants import (
    ALGORITHMS,
    BASE,
    DEFAULT_VARIANTS,
    VARIANTS,
    config_of,
    variant_of,
)
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.train import read_demonstrations
from robot_stack.core.direction import Direction
from robot_stack.core.errors import ConfigError
from robot_stack.core.files import write_atomically

RESULTS = Path(__file__).parents[1] / "results" / "reset_free.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "reset-free.md"


class Begun(Struct, frozen=True, kw_only=True):
    """What all runs of one work folder have in common."""

    algorithm: str
    demonstrations: int
    steps: int
    eval_every: int
    eval_episodes: int
    last_episodes: int


def remember(options: argparse.Namespace, work: Path) -> None:
    """ConfigError if the work folder was begun with other options: its runs could not be pooled with new ones."""
    begun = Begun(**{name: getattr(options, name) for name in Begun.__struct_fields__})
    path, encoded = work / "begun-with.json", msgspec.json.format(msgspec.json.encode(begun), indent=1)
    if path.exists() and path.read_bytes() != encoded:
        raise ConfigError(f"{work} was begun with other options (see {path}); move it away, or use another --work")
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encoded)


def run_seed(options: argparse.Namespace, work: Path, seed: int) -> None:
    """Base policy and every variant of one seed."""
    runs = work / f"seed-{seed}"
    overrides = (f"learner.target_steps={options.steps}", f"task.demonstrations={options.demonstrations}")
    measuring = Measuring(
        every=options.eval_every,
        episodes=options.eval_episodes,
        last_episodes=options.last_episodes,
        lanes=4 if options.quick else 32,
    )

    def show(point: Point) -> None:
        tqdm.write(
            f"seed {seed}: {point.env_steps} steps, {point.updates} updates, success {point.successes}/"
            f"{len(point.success)}, {point.calls} calls, {point.perturbations} perturbations, forward "
            f"{point.practice.forward.reached}/{point.practice.forward.attempts}, backward "
            f"{point.practice.backward.reached}/{point.practice.backward.attempts}, {point.cpu_s:.0f} s of CPU",
            file=sys.stderr,
        )

    base_config = config_of(runs, BASE, seed, options.algorithm, overrides, quick=options.quick)
    make_base(base_config)
    base = load_base_policy(base_config, RuntimeConfig())
    if not is_finished(curve_path(base_config)):
        measure_base(base_config, base, measuring, show)
    layout = RunLayout.of(base_config)
    demonstrations, spec = read_demonstrations(layout), layout.robot_spec()
    classifiers = {direction: classifier_folder(base_config, direction) for direction in Direction}
    for name in options.variants:
        config = config_of(runs, name, seed, options.algorithm, overrides, quick=options.quick)
        if is_finished(curve_path(config)):
            continue
        practise(config, variant_of(name), base, spec, demonstrations, classifiers, measuring, show)


def run(options: argparse.Namespace, work: Path) -> Report:
    use_one_torch_thread()
    seeds = range(options.seed, options.seed + options.seeds)
    if not options.report:
        remember(options, work)
        for seed in seeds:
            run_seed(options, work, seed)
    return Report(
        command=" ".join(["python -m benchmarks.reset_free", *sys.argv[1:]]),
        algorithm=options.algorithm,
        task="peg_cycle",
        demonstrations=options.demonstrations,
        quick=options.quick,
        load_average=os.getloadavg()[0],
        rows=rows_of(work, seeds, (BASE, *options.variants)),
    )


def _names(text: str) -> list[str]:
    return list(filter(None, text.split(",")))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reset_free",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("runs/reset-free"), help="what is kept from run to run")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument(
        "--variants", type=_names, default=list(DEFAULT_VARIANTS), help=f"of {', '.join(VARIANTS)}, separated by commas"
    )
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="residual_td3")
    parser.add_argument("--demonstrations", type=int, default=300, help="half of them in each direction")
    parser.add_argument("--steps", type=int, default=12_000, help="environment steps of practice")
    parser.add_argument("--eval-every", type=int, default=3_000, help="environment steps")
    parser.add_argument("--eval-episodes", type=int, default=50, help="on the way, on the same held-out seeds")
    parser.add_argument("--last-episodes", type=int, default=200, help="at the end, on other held-out seeds")
    parser.add_argument("--report", action="store_true", help="only report what is finished")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one seed, a few hundred steps")
    options = parser.parse_args(arguments)
    for name in options.variants:
        variant_of(name)
    if options.quick:
        options.seeds, options.demonstrations, options.variants = 1, 8, ["oracle", "learned", "medal"]
        options.steps, options.eval_every, options.eval_episodes, options.last_episodes = 250, 250, 4, 4
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory() as work:
            report = run(options, Path(work))
    else:
        report = run(options, options.work)
        RESULTS.parent.mkdir(exist_ok=True)
        write_atomically(RESULTS, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        if DOCUMENT.exists():
            write_atomically(DOCUMENT, filled(DOCUMENT.read_text(), report).encode())
    print(table(report))
    print(msgspec.json.encode(report).decode())


if __name__ == "__main__":
    main()
