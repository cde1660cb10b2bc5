"""How a loader works, beyond what and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from shufflestore.collate.layouts import LAYOUTS, Layout, Nulls
from shufflestore.errors import OptionError

__all__ = ["FORMATS", "Format", "LoaderOptions"]

Format = Literal["torch", "numpy", "arrow"]
FORMATS: Final = ("torch", "numpy", "arrow")


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
