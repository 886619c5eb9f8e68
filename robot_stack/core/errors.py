"""Every error the stack raises on purpose, in one tree.

    RobotStackError                exit code 1
    |-- ConfigError                2   a name, key or value in the configuration is wrong
    |-- SpecMismatchError          3   policy, robot and data disagree on names, shapes or bounds
    |-- MissingDependencyError     4   an optional package is not installed
    |-- TransportError             5   a message or a link is wrong
    |   |-- UnreachableError       6   nobody answers at that address
    |   |-- AuthenticationError    7   the peer refused our key or our role
    |   `-- MessageError           8   malformed, oversized, of another schema version
    |-- RobotError                 9   the robot, or what was asked of it
    |   |-- CommandRefusedError    10  a request was refused; carries the reason
    |   |-- RobotFaultError        11  a latched fault; a person clears it
    |   `-- CameraHangsError       75  a camera gives nothing fresh; its process is worth starting again
    |-- StorageError               12  disk: full, corrupt, not ours
    |   `-- CorruptDataError       13
    |-- PolicyError                14  weights or statistics are missing or fail their checks
    `-- DeviceError                15  an input device of a person is gone, or says what cannot be

A message names the device or file, the value, the allowed range, and what to do next. Command-line programs
print the message alone, without a traceback, and end with the class's `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


class RobotStackError(Exception):
    """Root of the tree; catching it catches everything the stack raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(RobotStackError):
    exit_code = 2


class SpecMismatchError(RobotStackError):
    exit_code = 3


class MissingDependencyError(RobotStackError):
    exit_code = 4

    def __init__(self, package: str, extra: str, used_for: str) -> None:
        super().__init__(
            f"the package '{package}' is needed for {used_for} and is not installed; "
            f"install it with: pip install 'robot-stack[{extra}]' -c constraints.txt"
        )


class TransportError(RobotStackError):
    exit_code = 5


class UnreachableError(TransportError):
    exit_code = 6


class AuthenticationError(TransportError):
    exit_code = 7


class MessageError(TransportError):
    exit_code = 8


class RobotError(RobotStackError):
    exit_code = 9


class CommandRefusedError(RobotError):
    exit_code = 10

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RobotFaultError(RobotError):
    exit_code = 11


class CameraHangsError(RobotError):
    exit_code = 75


class StorageError(RobotStackError):
    exit_code = 12


class DataInUseError(StorageError):
    """Another process has the data for itself; perhaps only for a moment."""


class CorruptDataError(StorageError):
    exit_code = 13


class PolicyError(RobotStackError):
    exit_code = 14


class DeviceError(RobotStackError):
    exit_code = 15
