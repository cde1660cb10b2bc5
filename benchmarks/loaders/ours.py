"""shufflestore.DataLoader on a converted store: jagged torch tensors in fresh buffers, checksums on."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import shufflestore as ss
from benchmarks.harness.audit import Opened
from benchmarks.harness.workload import Workload
from shufflestore.orders import kernels

__all__ = ["Ours", "rivals"]


class Ours:
    """One form of our own loader."""

    is_slow = False
    is_reused = False

    def __init__(
        self, name: str, form: str = "store", verify: bool = True, is_compiled: bool = True, **options: Any
    ) -> None:
        """Say what to read: "store", "store-wide", "indexed" or "indexed-unchecked"; and how: options of `open`.

        With `is_compiled` the order's kernel is there at the start, else it comes when the loader thinks it worth while.
        """
        self.name = name
        self._form = form
        self._is_compiled = is_compiled
        self._options = {"verify": verify, **options}
        self._data: Any = None
        self._loader: Any = None
        self.labels = itemgetter("label")
        self.engine = ""
        """Which engine read, and why."""

    def prepare(self, workload: Workload) -> None:
        """Open the data and compile the order's kernel."""
        if self._form.startswith("store"):
            path = workload.store(narrow=self._form == "store")
        else:
            path = workload.indexed(self._form == "indexed")
        self._data = ss.open(path, **self._options)
        self._loader = ss.DataLoader(self._data, workload.batch_size, shuffle=True, seed=1)
        if self._is_compiled:
            kernels.warm()

    def batches(self, epoch: int) -> Iterator[Any]:
        """Return the loader's own iterator; nothing of ours stands between it and the clock."""
        self._loader.set_epoch(epoch)
        return iter(self._loader)

    def opened(self, batch: Any) -> Opened:
        """Return the tensors."""
        tokens = batch["tokens"]
        return Opened(batch["label"], tokens.values, tokens.offsets)

    def close(self) -> None:
        """Close the loader and its files."""
        if self._loader is not None:
            store = self._data.reading.store
            self.engine = f"{store.engine}: {store.engine_reason}"
            self._loader.close()
            self._data.close()


def rivals() -> list[Ours]:
    """Return our loader with and without checking what it reads."""
    return [Ours("ours", "store-wide"), Ours("ours, not verifying", "store-wide", verify=False)]
