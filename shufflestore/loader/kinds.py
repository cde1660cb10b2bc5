"""What is known about data sets of other people: whether several threads may read one at once."""

from __future__ import annotations

import io
import logging
from typing import Any, Final

from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from shufflestore.errors import OptionError

__all__ = ["MANY", "fetch_threads_for"]

_log = logging.getLogger("shufflestore")
MANY: Final = 16
"""Fetch threads of a process where several may read: they wait more than they compute."""
_SAFE_CLASSES: Final = frozenset(
    {
        ("datasets.arrow_dataset", "Dataset"),
        ("torchvision.datasets.folder", "DatasetFolder"),
        ("torchvision.datasets.folder", "ImageFolder"),
        ("shufflestore.dataset.dataset", "Dataset"),
    }
)
"""Read by opening files anew, or from memory."""
_HANDLES: Final = (
    ("h5py.", "an h5py object"),
    ("lmdb", "an LMDB environment"),
    ("sqlite3", "an SQLite connection"),
    ("tarfile", "an open tar file"),
    ("zipfile", "an open zip file"),
)
"""Modules whose objects have one position, or one lock, for all who use them."""


def fetch_threads_for(dataset: Any, asked: int | str) -> int:
    """Return how many threads fetch from a data set in each process.

    Args:
        dataset: Map-style.
        asked: A number, or "auto": many where the data set is known to be safe or says `thread_safe = True`.

    Raises:
        OptionError: No such number, or several for a data set that holds what threads cannot share.
    """
    if asked != "auto" and (isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= 1024):
        raise OptionError(f"fetch_threads={asked!r}; allowed are 'auto' and integers in [1, 1024]")
    if isinstance(asked, int):
        held = _handle_in(dataset)
        if asked > 1 and held is not None and not _says_safe(dataset):
            raise OptionError(
                f"fetch_threads={asked}, but {held}, which threads cannot share; open it in each call or once a thread "
                "(threading.local), and set `thread_safe = True` on the data set; or take fetch_threads=1"
            )
        return asked
    if _is_safe(dataset):
        return MANY
    _log.info(
        "records of %s are fetched by one thread a process: whether it may be read by several is not known. If it may, "
        "set `thread_safe = True` on it or pass fetch_threads=%d",
        type(dataset).__qualname__,
        MANY,
    )
    return 1


def _says_safe(dataset: Any) -> bool:
    return getattr(dataset, "thread_safe", None) is True


def _is_safe(dataset: Any) -> bool:
    said = getattr(dataset, "thread_safe", None)
    if isinstance(said, bool):
        return said
    if isinstance(dataset, Subset):
        return _is_safe(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return all(map(_is_safe, dataset.datasets))
    if isinstance(dataset, StackDataset):
        parts = dataset.datasets
        return all(map(_is_safe, parts.values() if isinstance(parts, dict) else parts))
    # Of exactly these classes: a subclass may do anything.
    return type(dataset) is TensorDataset or (type(dataset).__module__, type(dataset).__qualname__) in _SAFE_CLASSES


def _handle_in(dataset: Any) -> str | None:
    """Name the first attribute that threads cannot share."""
    for name, value in getattr(dataset, "__dict__", {}).items():
        where = f"{type(dataset).__qualname__}.{name} is"
        module = type(value).__module__
        for prefix, words in _HANDLES:
            if f"{module}.".startswith(f"{prefix.rstrip('.')}."):
                return f"{where} {words}"
        if isinstance(value, io.IOBase) and not isinstance(value, (io.BytesIO, io.StringIO)):
            return f"{where} an open file"
        if name in ("dataset", "datasets"):
            parts = value if isinstance(value, (list, tuple)) else [value]
            for part in parts:
                if (found := _handle_in(part)) is not None:
                    return found
    return None
