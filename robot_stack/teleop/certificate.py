"""A self-signed certificate for the page, made at the first start and kept: browsers ask once whether to trust it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from robot_stack.core.errors import ConfigError, MissingDependencyError, StorageError

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

VALID_DAYS = 825


def ensure_certificate(directory: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """The files of certificate and private key (0600), made if there are none.

    Args:
        names: host names and IP addresses that it is for.

    Raises:
        MissingDependencyError: the package `cryptography` is not installed.
        ConfigError: the private key can be read by others.
    """
    certificate, key = directory / "certificate.pem", directory / "private-key.pem"
    if not (certificate.exists() and key.exists()):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(key, certificate, names)
        except OSError as error:
            raise StorageError(f"the certificate cannot be written to {directory}: {error.strerror}") from error
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{key} can be read by other users (mode {mode:04o}); remove it and {certificate.name}")
    return certificate, key


def _write(key_path: Path, certificate_path: Path, names: Sequence[str]) -> None:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise MissingDependencyError("cryptography", "gui", "https") from error
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "robot-stack teleop")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_name(one) for one in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key_path.unlink(missing_ok=True)
    descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _name(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
