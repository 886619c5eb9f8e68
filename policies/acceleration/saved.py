"""How a policy is accelerated, beside the policy: solver and cache schedule in one file."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from policies.acceleration.schedule import CacheSchedule
from policies.generative.config import SolverConfig
from policies.generative.digest import weights_sha256
from policies.generative.policy import GenerativePolicy
from robot_stack.core.errors import PolicyError
from robot_stack.core.files import write_atomically

ACCELERATION_SCHEMA_VERSION = 1


class Acceleration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Solver and schedule of the policy whose weights have this hash; a schedule found for other weights is refused."""

    schema_version: int = ACCELERATION_SCHEMA_VERSION
    weights_sha256: str
    solver: SolverConfig
    schedule: CacheSchedule | None


def save_acceleration(policy: GenerativePolicy, path: Path) -> None:
    """Write the policy's solver and schedule, atomically, in the place of what stood there; StorageError."""
    record = Acceleration(
        weights_sha256=weights_sha256(policy.sampler.denoiser),
        solver=policy.config.solver,
        schedule=policy.config.schedule,
    )
    write_atomically(path, msgspec.json.format(msgspec.json.encode(record), indent=1))


def load_accelerated(policy: GenerativePolicy, path: Path) -> GenerativePolicy:
    """The policy with the solver and the schedule of that file, on its own back-end.

    PolicyError if there is no such file, it is malformed, or it was made for other weights, another architecture or
    another solver.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Acceleration)
    except OSError as error:
        raise PolicyError(f"no acceleration at {path} ({error}); make one: robot-stack accelerate") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} is malformed: {error}; make it anew: robot-stack accelerate") from error
    if record.schema_version != ACCELERATION_SCHEMA_VERSION:
        raise PolicyError(
            f"{path} has schema {record.schema_version}; this program reads {ACCELERATION_SCHEMA_VERSION}; make it "
            "anew: robot-stack accelerate"
        )
    found = weights_sha256(policy.sampler.denoiser)
    if found != record.weights_sha256:
        raise PolicyError(
            f"{path} was made for other weights ({record.weights_sha256[:12]}...) than the policy's "
            f"({found[:12]}...); make it anew: robot-stack accelerate"
        )
    return policy.with_solver(record.solver, record.schedule)
