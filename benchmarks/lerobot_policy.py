"""Times LeRobot's `DiffusionPolicy` in LeRobot's own environment; started by `python -m benchmarks.lerobot_inference`.

    PYTHONPATH=. .venv-lerobot/bin/python -P benchmarks/lerobot_policy.py --channels 64 128 [--seed N]

A U-Net of that size over a state and an environment state, untrained: the values do not change the time. It answers one
JSON list of {wall_s, cpu_s}, one for each chunk, for every line `KIND STEPS COUNT` on its standard input, where KIND is
`ddpm` or `ddim`. The first line that it prints has the versions and the number of parameters.

What is timed is `generate_actions` alone, batch 1, on inputs that are normalised tensors already.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from importlib.metadata import version
from typing import Any

import torch

from policies.lerobot.imports import policy_class


def make_policy(options: argparse.Namespace, kind: str, steps: int) -> Any:
    cls = policy_class("diffusion")
    types = importlib.import_module("lerobot.configs.types")
    settings = importlib.import_module("lerobot.policies.diffusion.configuration_diffusion").DiffusionConfig
    feature, kinds = types.PolicyFeature, types.FeatureType
    torch.manual_seed(options.seed)
    config = settings(
        input_features={
            "observation.state": feature(kinds.STATE, (options.state,)),
            "observation.environment_state": feature(kinds.ENV, (options.environment,)),
        },
        output_features={"action": feature(kinds.ACTION, (options.action,))},
        down_dims=tuple(options.channels),
        horizon=options.horizon,
        n_obs_steps=options.history,
        noise_scheduler_type=kind.upper(),
        num_inference_steps=steps,
        device="cpu",
    )
    return cls(config).eval()


def timed(policy: Any, batch: dict[str, torch.Tensor], count: int) -> list[dict[str, float]]:
    passed = []
    for _ in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            policy.diffusion.generate_actions(batch)
        passed.append({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu})
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", required=True)
    for name, default in (
        ("state", 9),
        ("environment", 9),
        ("action", 7),
        ("horizon", 16),
        ("history", 2),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    batch = {
        "observation.state": torch.zeros(1, options.history, options.state),
        "observation.environment_state": torch.zeros(1, options.history, options.environment),
    }
    policies: dict[tuple[str, int], Any] = {}
    first = make_policy(options, "ddim", 2)
    parameters = sum(parameter.numel() for parameter in first.parameters())
    hello = {"lerobot": version("lerobot"), "torch": torch.__version__, "parameters": parameters}
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        kind, steps, count = line.split()
        key = kind, int(steps)
        if key not in policies:
            policies[key] = make_policy(options, *key)
            timed(policies[key], batch, 1)
        print(json.dumps(timed(policies[key], batch, int(count))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
