"""Policies on disk: a folder with `weights.safetensors` and `policy.json`, complete and checked or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from msgspec import Struct

from policies.common.durable import write_directory
from robot_stack.core.errors import PolicyError, StorageError
from robot_stack.core.messages import Array
from robot_stack.core.specs import PolicySpec

POLICY_SCHEMA_VERSION = 1
WEIGHTS = "weights.safetensors"
MANIFEST = "policy.json"

C = TypeVar("C")


class PolicyManifest(Struct, Generic[C], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in policy.json. `config` is the policy's own record, normalisation statistics included.

    `sha256` covers the weights file and, in compact JSON, `spec` and `config` as they stand here: a changed statistic
    is found too. Fields that a later release adds are not in it, so policies stay readable.
    """

    schema_version: int
    kind: str
    sha256: str
    spec: PolicySpec
    config: C


def save_policy(directory: Path, *, kind: str, spec: PolicySpec, config: Struct, weights: Mapping[str, Array]) -> None:
    """Write a policy folder atomically. Saved policies never change: StorageError if the folder exists."""
    content = safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in weights.items()})
    manifest = PolicyManifest(
        schema_version=POLICY_SCHEMA_VERSION,
        kind=kind,
        sha256=_fingerprint(content, msgspec.json.encode(spec), msgspec.json.encode(config)),
        spec=spec,
        config=config,
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    try:
        write_directory(directory, {WEIGHTS: content, MANIFEST: encoded})
    except FileExistsError as error:
        raise StorageError(f"{directory} exists already; remove it or save the policy elsewhere") from error
    except OSError as error:
        raise StorageError(f"policy {directory} could not be written: {error}") from error


def load_policy(directory: Path, kind: str, config_type: type[C]) -> tuple[PolicyManifest[C], dict[str, Array]]:
    """The manifest and the verified weights of a policy folder; PolicyError says what is wrong with it."""
    manifest, stored = _load_manifest(directory / MANIFEST, kind, config_type)
    path = directory / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path} cannot be read ({error}); copy the whole policy folder again") from error
    found = _fingerprint(content, stored.spec, stored.config)
    if found != manifest.sha256:
        raise PolicyError(
            f"{directory}: {WEIGHTS} and {MANIFEST} do not belong together or are damaged (sha256 {found[:12]}..., "
            f"expected {manifest.sha256[:12]}...); copy the whole policy folder again"
        )
    return manifest, parse_tensors(content, str(path))


def parse_tensors(content: bytes, origin: str) -> dict[str, Array]:
    """Tensors of safetensors bytes, all finite; PolicyError names `origin` and what is wrong."""
    try:
        tensors: dict[str, Array] = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise PolicyError(f"{origin} is not a safetensors file: {error}") from error
    check_finite(tensors, origin)
    return tensors


def check_tensors(tensors: Mapping[str, Array], expected: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """PolicyError unless the tensors are exactly those expected, and all are finite."""
    check_shapes(tensors, expected, origin)
    check_finite(tensors, origin)


def check_finite(tensors: Mapping[str, Array], origin: str) -> None:
    """PolicyError if a tensor holds a number that is not finite."""
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise PolicyError(
                f"{origin}: tensor '{name}' has NaN or infinity; the training diverged, use older weights"
            )


def check_shapes(tensors: Mapping[str, Array], expected: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """PolicyError unless the tensors are exactly those expected: names and shapes."""
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise PolicyError(
            f"{origin}: tensors missing {missing}, not known {extra}; it belongs to another configuration"
        )
    for name, shape in expected.items():
        if tensors[name].shape != tuple(shape):
            raise PolicyError(f"{origin}: tensor '{name}' has shape {tensors[name].shape}, expected {tuple(shape)}")


def _fingerprint(content: bytes, spec: bytes | msgspec.Raw, config: bytes | msgspec.Raw) -> str:
    digest = hashlib.sha256(content)
    for part in (spec, config):
        digest.update(msgspec.json.format(bytes(part), indent=-1))
    return digest.hexdigest()


def _load_manifest(path: Path, kind: str, config_type: Any) -> tuple[PolicyManifest[Any], _Stored]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(
            f"no policy at {path.parent} ({error}); train one, or give the folder of a saved one"
        ) from error
    try:
        header = msgspec.json.decode(content, type=_Header)
        if header.schema_version != POLICY_SCHEMA_VERSION or header.kind != kind:
            raise PolicyError(
                f"{path} holds a policy of kind '{header.kind}', schema {header.schema_version}; "
                f"this program reads kind '{kind}', schema {POLICY_SCHEMA_VERSION}"
            )
        manifest: PolicyManifest[Any] = msgspec.json.decode(content, type=PolicyManifest[config_type])
        stored = msgspec.json.decode(content, type=_Stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} is malformed: {error}") from error
    return manifest, stored


class _Stored(Struct, frozen=True):
    """Spec and config exactly as they were written."""

    spec: msgspec.Raw
    config: msgspec.Raw


class _Header(Struct, frozen=True):
    schema_version: int
    kind: str
