"""The run's base policy: accelerated if `robot-stack accelerate` did so, on the back-end of the configuration."""

from __future__ import annotations

from policies.acceleration.saved import load_accelerated
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime import backend_maker
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.apps.accelerate import schedule_path
from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import StackConfig


def load_base_policy(config: StackConfig, runtime: RuntimeConfig | None = None) -> GenerativePolicy:
    """PolicyError if there is none, or it or its acceleration is damaged. `runtime`: not the configured one."""
    layout = RunLayout.of(config)
    make_backend = backend_maker(runtime or config.policy.runtime, layout.acceleration)
    policy = GenerativePolicy.load(layout.policy)
    schedule = schedule_path(layout)
    if schedule.exists():
        policy = load_accelerated(policy, schedule)
    return policy if make_backend is None else policy.with_backend(make_backend)
