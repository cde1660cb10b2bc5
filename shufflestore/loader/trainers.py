"""What accelerate does for loaders that it makes anew, done for those that it leaves alone.

`Accelerator.prepare` puts a loader's data set into a loader of its own, which divides it among the processes, moves
batches to the device, and says which batch is the last: the step of gradients accumulated so far depends on that. A
loader that gives each rank its share already says that it is prepared, and does the rest here. accelerate is not
imported: where no program has loaded it, there is nothing to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from shufflestore.errors import OptionError

__all__ = ["Accompanied", "accompany"]


def accompany(
    batches: Iterator[Any], steps: Callable[[], int], *, is_pinned: bool, is_padded: bool, is_placed: bool
) -> Iterator[Any]:
    """Return an iterator over batches that does what accelerate expects of a prepared loader.

    Args:
        batches: Of a loader that was prepared.
        steps: Asked at the first `next`: how many batches there are.
        is_pinned: Whether they are in page-locked memory, from which they can be copied beside the computation.
        is_padded: Whether the last batches may repeat records.
        is_placed: Whether the loader was told its rank.

    Returns:
        `batches` itself where no `Accelerator` exists.

    Raises:
        OptionError: Several processes need the same batches, and nobody said which.
    """
    module = sys.modules.get("accelerate.state")
    if module is None or not module.is_initialized():
        return batches
    state = module.AcceleratorState()
    layout = getattr(state, "parallelism_config", None)
    copies = 1 if layout is None else int(layout.non_data_parallel_size)
    if copies > 1 and not is_placed:
        raise OptionError(
            f"accelerate lets {copies} processes work on the same batch (tensor, context or sequence parallel), and this "
            "loader gives every process another one; pass rank= and world_size= of the data-parallel group to the DataLoader"
        )
    return Accompanied(batches, steps, state.device, module.GradientState(), is_pinned, is_padded)


class Accompanied(Iterator[Any]):
    """Batches on accelerate's device. While it is in use, accelerate asks it whether the last one came."""

    def __init__(
        self,
        batches: Iterator[Any],
        steps: Callable[[], int],
        device: Any,
        gradients: Any,
        is_pinned: bool,
        is_padded: bool,
    ) -> None:
        """See `accompany`."""
        self.end_of_dataloader = False
        self.remainder = -1 if is_padded else 0
        """Of the last step's records, how many are to be kept: all of them, or accelerate cannot tell which."""
        self._batches, self._steps = batches, steps
        self._device, self._gradients, self._is_pinned = device, gradients, is_pinned
        self._left: int | None = None

    def __next__(self) -> Any:
        if self._left is None:
            self._left = self._steps()
            self._gradients._add_dataloader(self)
        try:
            batch = next(self._batches)
        except StopIteration:
            self._leave()
            raise
        batch = sys.modules["accelerate.utils"].send_to_device(batch, self._device, non_blocking=self._is_pinned)
        self._left -= 1
        self.end_of_dataloader = self._left <= 0
        return batch

    def close(self) -> None:
        """Stop reading ahead. Idempotent."""
        self._leave()
        closing = getattr(self._batches, "close", None)
        if closing is not None:
            closing()

    def _leave(self) -> None:
        if self._left is not None and self._gradients.initialized:
            self._gradients._remove_dataloader(self)

    def __del__(self) -> None:
        """A loop that breaks off leaves the enclosing loop's loader as the active one."""
        self._leave()
