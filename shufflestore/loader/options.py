"""How a loader works, beyond what and in which order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from shufflestore.collate.layouts import LAYOUTS, Layout, Nulls
from shufflestore.errors import OptionError

__all__ = ["DATA_ONLY", "FORMATS", "Format", "LoaderOptions", "check_foreign", "check_native"]

_log = logging.getLogger("shufflestore")

Format = Literal["torch", "numpy", "arrow"]
FORMATS: Final = ("torch", "numpy", "arrow")
DATA_ONLY: Final[dict[str, Any]] = {
    "columns": None, "format": "torch", "layout": "jagged", "transform": None, "transform_threads": 1,
    "prefetch_bytes": None, "fill_nulls": None, "return_ids": False, "split": None,
}  # fmt: skip
"""Arguments that say how columns become batches, which only our own data has; with their defaults."""


@dataclass(frozen=True)
class LoaderOptions:
    """Checked once, where they enter."""

    batch_size: int
    columns: Sequence[str] | None = None
    format: Format = "torch"
    layout: Layout = "jagged"
    """Of variable-length numbers: jagged and packed waste nothing, padded and nested suit models, list suits loops."""
    transform: Callable[[Any], Any] | None = None
    transform_threads: int = 1
    """Of the transform: one keeps a batch of work beside the training step and never races with itself."""
    fill_nulls: Nulls = None
    """What stands for null numbers; None refuses them, since any number would be a guess."""
    prefetch_bytes: int | None = None
    """Look-ahead; None for what suits the store: 8 MiB of files in memory, 64 MiB where reads wait for a disk."""
    return_ids: bool = False
    """Whether each batch has a "record_id"; audits need it, training does not."""

    def __post_init__(self) -> None:
        whole = (("batch_size", 1), ("transform_threads", 1), ("prefetch_bytes", 0))
        for name, least in whole:
            value = getattr(self, name)
            if value is None and name == "prefetch_bytes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r}; an integer of at least {least} is needed")
        if self.format not in FORMATS:
            raise OptionError(f"format={self.format!r}; allowed are {list(FORMATS)}")
        if self.layout not in LAYOUTS:
            raise OptionError(f"layout={self.layout!r}; allowed are {list(LAYOUTS)}")
        if self.transform is not None and not callable(self.transform):
            raise OptionError(f"transform={self.transform!r} cannot be called; give a function of one batch")


def check_native(format: str, collate_fn: object, seed_records: bool, completion_order: bool) -> None:
    """Raise OptionError for arguments that mean nothing over our own data."""
    if collate_fn is not None:
        if format != "torch":
            raise OptionError(f"collate_fn builds the batch itself, so format={format!r} has no say; leave one out")
        _log.info("collate_fn gets a list of record dicts: the slow path; a transform of the whole batch is faster")
    for name, value in (("seed_records", seed_records), ("completion_order", completion_order)):
        if value:
            raise OptionError(
                f"{name}=True is for data sets of other kinds; records of this one are read by the core, each into its slot. "
                "For random augmentation take shufflestore.record_rng(seed, epoch, record_id) with return_ids=True"
            )


def check_foreign(given: dict[str, Any]) -> None:
    """Raise OptionError for arguments that mean nothing over a data set without columns."""
    for name, default in DATA_ONLY.items():
        if given[name] != default:
            raise OptionError(
                f"{name}={given[name]!r} says how columns become batches, which this data set does not have: it is neither a "
                "path nor what shufflestore.open returned. Use collate_fn, or convert it with shufflestore.convert"
            )
