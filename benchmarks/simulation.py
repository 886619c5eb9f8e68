"""How fast the simulated Franka runs: `python -m benchmarks.simulation [--quick] [--seed N]`.

Per task, in one run and on one thread: whole control steps (resolve, filtered setpoints, physics, read, status)
against the same physics alone, and 128x128 frames of both cameras. Medians over interleaved rounds; the last line is
one JSON object. Absolute figures belong to this machine, the ratio travels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from hardware.franka.sim import SimulatedFranka
from hardware.sim.experts import make_expert
from hardware.sim.rendering import CameraConfig
from robot_stack.core.messages import FloatArray
from robot_stack.safety.motion import MotionFilter

TASKS = ("peg_insertion", "pick_cube")
CAMERAS = (CameraConfig(name="wrist_rgb"), CameraConfig(name="front"))


class Workload:
    """One task, driven by its expert: the contacts that are timed are those of real episodes."""

    def __init__(self, task: str, seed: int) -> None:
        self.robot = SimulatedFranka("franka", task, cameras=CAMERAS)
        self.robot.connect()
        self._expert = make_expert(task, self.robot.spec)
        self._tick_s = 1.0 / self.robot.spec.tick_rate_hz
        self._ticks = round(self.robot.spec.tick_rate_hz / self.robot.spec.control_rate_hz)
        self._limiter = MotionFilter(self.robot.limits, self._tick_s)
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._begin()

    def _begin(self) -> None:
        self.robot.reset(self._seed)
        self._limiter.start(self.robot.measured_setpoint())
        self._seed += 1

    def next_action(self) -> FloatArray:
        """The expert's action with exploration noise; a new episode where the last one ended. Not timed."""
        if self.robot.task_status().terminated:
            self._begin()
        action = self._expert.act(self.robot.read().features, self.robot.ground_truth())
        lower, upper = self.robot.spec.action.lower_array(), self.robot.spec.action.upper_array()
        noise = self._rng.normal(0.0, 0.1, action.shape) * (upper - lower)
        return np.clip(action + noise, lower, upper).astype(np.float32)

    def control_step(self, action: FloatArray) -> None:
        goal = self.robot.resolve(action)
        for tick in range(self._ticks):
            self.robot.send(self._limiter.toward(goal, (self._ticks - tick) * self._tick_s))
            self.robot.advance(self._tick_s)
        self.robot.read()
        self.robot.task_status()

    def physics_alone(self) -> None:
        """The same simulated time from the same state in one call."""
        self.robot.advance(self._ticks * self._tick_s)


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(task: str, seed: int, steps: int, frames: int) -> dict[str, float]:
    """Rates per second and the share of the physics in a whole control step."""
    work = Workload(task, seed)
    whole_s, physics_s, frame_s = [], [], []
    for index in range(steps):
        action = work.next_action()
        whole_s.append(timed(partial(work.control_step, action)))
        if index % 4 == 0:
            physics_s.append(timed(work.physics_alone))
    for camera in work.robot.cameras:
        work.robot.render(camera)
        frame_s += [timed(partial(work.robot.render, camera)) for _ in range(frames)]
    work.robot.close()
    whole, physics = statistics.median(whole_s), statistics.median(physics_s)
    return {
        "control_steps_per_s": round(1.0 / whole, 1),
        "physics_alone_steps_per_s": round(1.0 / physics, 1),
        "whole_step_over_physics": round(whole / physics, 2),
        "frames_per_s": round(1.0 / statistics.median(frame_s), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and frames")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps, frames = (600, 100) if options.quick else (5000, 1000)
    result = {task: measure(task, options.seed, steps, frames) for task in TASKS}
    for task, figures in result.items():
        print(task, *(f"{name}={value}" for name, value in figures.items()))
    print(json.dumps({"benchmark": "simulation", "seed": options.seed, **result}))


if __name__ == "__main__":
    main()
