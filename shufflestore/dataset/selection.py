"""Which records of a split a view has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Selection"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Which records of a split a view has: an arithmetic range or a list."""

    start: int
    step: int
    count: int
    listed: NDArray[np.int64] | None = None

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the split's ids of the view's records."""
        if self.listed is not None:
            return self.listed[numbers]
        return numbers if self.start == 0 and self.step == 1 else self.start + numbers * self.step

    def narrowed(self, inner: Selection) -> Selection:
        """Return the selection `inner` of this one."""
        if inner.listed is not None:
            return Selection(0, 1, inner.count, self.ids(inner.listed))
        if self.listed is not None:
            stop = inner.start + inner.step * inner.count
            listed = self.listed[inner.start : stop if stop >= 0 else None : inner.step]
            return Selection(0, 1, inner.count, listed)
        return Selection(self.start + inner.start * self.step, self.step * inner.step, inner.count)

    @property
    def digest(self) -> str:
        """Text that differs where the records or their order differ. O(1), or O(count) for a list."""
        if self.listed is None:
            return f"{self.start}:{self.step}:{self.count}"
        return hashlib.sha256(np.ascontiguousarray(self.listed).data).hexdigest()[:32]
