"""Every error that shufflestore raises on purpose.

    ShuffleStoreError
    |-- OptionError        (ValueError)         an argument is outside its range
    |-- OrderError         (ValueError)         positions, ids or lengths that no order has
    |-- StateError         (ValueError)         a resume state that does not fit
    |-- SchemaError        (TypeError)          columns that are missing, clash or have no home
    |-- SourceError        (ValueError)         input that cannot be converted
    |-- MissingDependency  (ImportError)        an optional package is not installed
    |-- FormatError        (ValueError)         bytes that are not what they should be
    |   |-- UnsupportedFeature                  written by a newer version, or beyond this reader
    |   |-- CorruptData                         a checksum, digest or length disagrees
    |   `-- UndecodableRecord                   one record of a batch, which itself came whole
    `-- StorageError       (OSError)            the place that holds the bytes failed
        |-- NotFound       (FileNotFoundError)  nothing there by that name
        |-- AlreadyExists  (FileExistsError)    something there already
        |-- ShardTruncated                      a file is shorter than its manifest says
        |-- DataChanged                         an object is not the one that was read before
        |-- OutOfSpace                          no room to write
        `-- EngineUnavailable                   an engine asked for by name cannot run here

Each takes one string, so that it crosses processes unharmed, and the string says what
happened, the values, what was allowed and the next step.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AlreadyExists",
    "CorruptData",
    "DataChanged",
    "EngineUnavailable",
    "FormatError",
    "MissingDependency",
    "NotFound",
    "OptionError",
    "OrderError",
    "OutOfSpace",
    "SchemaError",
    "ShardTruncated",
    "ShuffleStoreError",
    "SourceError",
    "StateError",
    "StorageError",
    "UndecodableRecord",
    "UnsupportedFeature",
]


class ShuffleStoreError(Exception):
    """The base of every error raised on purpose."""

    def __init__(self, message: str = "") -> None:
        # OSError and ImportError keep fields of their own; one argument is all that pickling needs.
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes with the message, notes and cause; Python's own way loses the cause."""
        cause = {} if self.__cause__ is None else {"__cause__": _portable(self.__cause__)}
        return type(self), self.args, self.__dict__ | cause


def _portable(cause: BaseException) -> BaseException:
    """A cause that can cross processes: itself, or what it says if it may hold what cannot."""
    plain = (str, bytes, int, float, type(None))
    of_python = type(cause).__reduce__ in (BaseException.__reduce__, OSError.__reduce__)
    if isinstance(cause, ShuffleStoreError):
        return cause
    if of_python and type(cause).__module__ == "builtins" and all(isinstance(a, plain) for a in cause.args):
        return cause
    return ShuffleStoreError(f"{type(cause).__name__}: {cause}")


class OptionError(ShuffleStoreError, ValueError):
    """An argument is outside its range."""


class OrderError(ShuffleStoreError, ValueError):
    """Positions, ids or lengths that no order has."""


class StateError(ShuffleStoreError, ValueError):
    """A resume state that does not fit this data set, order or version."""


class SchemaError(ShuffleStoreError, TypeError):
    """Columns that are missing, clash, or have a type with no home here."""


class SourceError(ShuffleStoreError, ValueError):
    """Input that cannot be converted."""


class MissingDependency(ShuffleStoreError, ImportError):
    """An optional package is not installed; the message holds the `pip install` line."""


class FormatError(ShuffleStoreError, ValueError):
    """Bytes that are not what they should be."""


class UnsupportedFeature(FormatError):
    """Written by a newer version, or using something this reader does not know."""


class CorruptData(FormatError):
    """A checksum, digest or length disagrees with the bytes."""


class UndecodableRecord(FormatError):
    """One record's value cannot be decoded; the rest of its batch can.

    Attributes:
        column: Its name.
        position: Of the record in its batch, in [0, records).
        record_id: Its number in the split, where the batch has ids.
    """

    column: str = ""
    position: int = -1
    record_id: int | None = None


class StorageError(ShuffleStoreError, OSError):
    """The place that holds the bytes failed."""


class NotFound(StorageError, FileNotFoundError):
    """Nothing is there by that name."""


class AlreadyExists(StorageError, FileExistsError):
    """Something is there already."""


class ShardTruncated(StorageError):
    """A file is shorter than its manifest says."""


class DataChanged(StorageError):
    """An object of a store was replaced while it was being read."""


class OutOfSpace(StorageError):
    """There is no room to write."""


class EngineUnavailable(StorageError):
    """An engine that was asked for by name cannot run here."""
