"""The demo: collect, train, practise with three processes, evaluate, report. Stopped at any point, it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec import Struct
from tqdm import tqdm

from robot_stack.apps.build import has_simulated_vendor
from robot_stack.apps.collect import collect
from robot_stack.apps.connections import learner_client
from robot_stack.apps.evaluate import BASE, IMPROVED, evaluate_run
from robot_stack.apps.keys import VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.local_robot import local_robot_server
from robot_stack.apps.process import Lifetime
from robot_stack.apps.reporting import Findings, write_run_report
from robot_stack.apps.showing import film_rollouts, run_on_wall_clock
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.apps.train import train
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import TransportError
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import GetProgress, LearnerProgress
from robot_stack.evaluation.results import EvaluationResult

QUICK = (
    "run=quick",
    "task.demonstrations=20",
    "policy.training.steps=600",
    "algorithm.exploration.warmup_steps=400",
    "learner.target_steps=1500",
    "learner.checkpoint_every_s=3",
    "evaluation.episodes=16",
    "evaluation.replan_every=[4]",
    "evaluation.replan_episodes=8",
    "evaluation.videos=1",
)
QUICK_RESIDUAL = ("algorithm.update.critic_only_updates=100",)
INTERRUPTED = 130


class DemoState(Struct, frozen=True, kw_only=True):
    """What a demo remembers beside its data: seconds worked so far, restarts, whether practice is over."""

    worked_s: float = 0.0
    restarts: dict[str, int] = {}
    practised: bool = False


class _StateFile:
    """Saves the state at every stage; `worked_s` counts on over interruptions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = DemoState()
        if path.exists():
            self.state = msgspec.json.decode(path.read_bytes(), type=DemoState)
        self._worked_before_s = self.state.worked_s
        self._began_s = time.monotonic()

    def save(self, *, restarts: dict[str, int] | None = None, practised: bool | None = None) -> DemoState:
        state = self.state
        total = dict(state.restarts)
        for name, count in (restarts or {}).items():
            total[name] = total.get(name, 0) + count
        self.state = DemoState(
            worked_s=self._worked_before_s + time.monotonic() - self._began_s,
            restarts=total,
            practised=state.practised if practised is None else practised,
        )
        write_atomically(self._path, msgspec.json.encode(self.state))
        return self.state


def run_demo(overrides: Sequence[str], *, quick: bool) -> int:
    """The whole loop. The last line of output is the run's result as one JSON object."""
    overrides = [*_quick(overrides), *overrides] if quick else list(overrides)
    config = compose_config(overrides)
    layout = RunLayout.of(config)
    layout.remember(config)
    ensure_keys(layout)
    memory = _StateFile(layout.root / "demo.json")
    _say(f"run '{config.run}': everything is kept in {layout.root}; Ctrl-C stops, the same command goes on")
    with Lifetime() as life:
        try:
            for stage in (_collect, _train, _practise):
                stage(config, overrides, life, memory)
                if not life.running():
                    raise KeyboardInterrupt
            report_on(config, overrides, life.running)
        except KeyboardInterrupt:
            _say("interrupted: the same command goes on from here")
            return INTERRUPTED
        finally:
            memory.save()
    return 0


def _quick(overrides: Sequence[str]) -> Sequence[str]:
    another = any(override.startswith("algorithm=") for override in overrides)
    return QUICK if another else (*QUICK, *QUICK_RESIDUAL)


def _collect(config: StackConfig, overrides: Sequence[str], life: Lifetime, memory: _StateFile) -> None:
    layout = RunLayout.of(config)
    if layout.policy.exists():
        return
    _say("1/5 collect demonstrations")
    with local_robot_server(config, overrides) as network:
        collect(config, network, life.running)


def _train(config: StackConfig, overrides: Sequence[str], life: Lifetime, memory: _StateFile) -> None:
    if not RunLayout.of(config).policy.exists():
        _say("2/5 train the base policy by imitation")
        train(config, life.running, overrides)


def _practise(config: StackConfig, overrides: Sequence[str], life: Lifetime, memory: _StateFile) -> None:
    """Robot server, learner and edge practise until the learner has had all its steps."""
    if memory.state.practised:
        return
    _say("3/5 practise: robot server, edge node and learner as three processes")
    layout = RunLayout.of(config)
    with Supervisor(layout.logs, announce=tqdm.write) as supervisor:
        vendor = ("vendor-sim",) if has_simulated_vendor(config) else ()
        page = _page(config, layout)
        for name in (*vendor, "robot-server", "learner", "edge"):
            supervisor.start(name, robot_stack_command(name, *overrides, *page))
        if page:
            supervisor.start("teleop", robot_stack_command("teleop", *overrides, *page), shown=True)
        try:
            finished = _watch(config, supervisor, life)
        finally:
            memory.save(restarts=supervisor.restarts())
    if finished:
        memory.save(practised=True)


def _page(config: StackConfig, layout: RunLayout) -> list[str]:
    """Overrides with which people can watch and take over in the browser; none where that is not installed, or somebody
    else operates the robot."""
    if find_spec("fastapi") is None or config.edge.operator != "none" or config.practice.mode != "episodic":
        return []
    return ["edge.operator=seat", "teleop.port=0", f"teleop.directory={layout.root / 'teleop'}"]


def _watch(config: StackConfig, supervisor: Supervisor, life: Lifetime) -> bool:
    """Show progress until edge and learner are done; False if interrupted."""
    keys = ensure_keys(RunLayout.of(config))
    target = config.learner.target_steps
    bar = tqdm(total=target, unit="step", desc="practise")
    with learner_client(config.network, keys, VIEWER_KEY) as client, bar:
        while life.running():
            supervisor.watch()
            try:
                progress = client.request(GetProgress(), timeout_s=1.0)
            except TransportError:
                continue
            if isinstance(progress, LearnerProgress):
                _show(bar, progress)
                if progress.finished and supervisor.finished("edge"):
                    return True
            life.sleep(0.3)
    return False


def _show(bar: tqdm[NoReturn], progress: LearnerProgress) -> None:
    bar.set_postfix(updates=progress.updates, weights=progress.weights_version, durable=progress.durable_steps)
    bar.update(min(progress.trained_steps, progress.target_steps) - bar.n)


def report_on(config: StackConfig, overrides: Sequence[str], keep_running: Callable[[], bool]) -> None:
    """Evaluate what the run has, and write report and result; the result is the last line of output."""
    layout = RunLayout.of(config)
    memory = _StateFile(layout.root / "demo.json")
    _say("4/5 evaluate on held-out episodes")
    results = evaluate_run(config, overrides, keep_running)
    _say("5/5 film, run on the wall clock, write the report")
    before, after = _of(results, BASE), _of(results, IMPROVED)
    clips = film_rollouts(config, overrides, before, after) if before and after else []
    wall_clock = run_on_wall_clock(config, overrides)
    state = memory.save()
    findings = Findings(
        results=results, restarts=state.restarts, wall_s=state.worked_s, clips=clips, wall_clock=wall_clock
    )
    result = write_run_report(config, findings)
    for found in results:
        interval = found.interval()
        _say(
            f"  {found.subject.policy:20} re-planning every {found.subject.replan_every}: "
            f"{found.success_rate:6.1%} [{interval.lower:.1%}, {interval.upper:.1%}] of {found.n} episodes"
        )
    _say(f"report: {layout.report}")
    _say(msgspec.json.encode(result).decode())


def _of(results: Sequence[EvaluationResult], policy: str) -> EvaluationResult | None:
    return next((result for result in results if result.subject.policy == policy), None)


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()
