"""State over samplers and iterable data sets of other people: how many batches came; they are run again on resume."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from shufflestore.errors import OptionError, StateError
from shufflestore.loader.course import Records

__all__ = ["Replay", "Skipping"]

_log = logging.getLogger("shufflestore")
_FIELDS = {"version": int, "replay": str, "dataset": str, "epoch": int, "delivered": int}


class Replay:
    """How many batches of which epoch were delivered, where the order is somebody else's."""

    def __init__(self, records: Callable[[], Records], what: str) -> None:
        """Prepare.

        Args:
            records: The data at hand.
            what: Whose order it is, for the state and the log.
        """
        self._records, self._what = records, what
        self._next_epoch: int | None = None
        self._loaded: tuple[int, int] | None = None
        self.epoch = 0
        """Of the newest iterator."""
        self._delivered: Callable[[], int] | None = None
        """Asks the newest iterator that has begun."""
        self._coming: Callable[[], int] | None = None
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterator; a loaded position of another epoch is dropped."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise OptionError(f"epoch {epoch!r}; an integer of at least 0 is needed")
        if self._loaded is not None and self._loaded[0] != epoch:
            _log.warning("set_epoch(%d) drops the loaded position of epoch %d", epoch, self._loaded[0])
            self._loaded = None
        self._next_epoch = epoch

    def watch(self, delivered: Callable[[], int]) -> None:
        """Take note of a new iterator, which says how many batches it has returned."""
        self._coming = delivered

    @property
    def to_skip(self) -> int:
        """Batches that the next iterator will leave out."""
        return 0 if self._loaded is None else self._loaded[1]

    def begin(self, are_made: bool = False) -> int:
        """Settle the epoch of the newest iterator. Returns how many batches it has to skip.

        Args:
            are_made: Whether it makes those too, so that it counts them.
        """
        before = self._total()
        if self._loaded is not None:
            self.epoch, skip = self._loaded
        else:
            after = self.epoch + (1 if before else 0)
            self.epoch, skip = after if self._next_epoch is None else self._next_epoch, 0
        if skip:
            _log.info(
                "%s is run again over its first %d batches, which have to be those of the saved run", self._what, skip
            )
        self._loaded = self._next_epoch = None
        self._delivered, self._skipped = self._coming, 0 if are_made else skip
        return skip

    def _total(self) -> int:
        """Batches of its epoch up to where the newest iterator is."""
        return 0 if self._delivered is None else self._skipped + self._delivered()

    def state_dict(self) -> dict[str, Any]:
        """Return where the newest iterator is."""
        if self._loaded is not None:
            epoch, delivered = self._loaded
        elif self._delivered is None:
            epoch, delivered = self._next_epoch or 0, 0
        else:
            epoch, delivered = self.epoch, self._total()
        fields = {
            "version": 1, "replay": self._what, "dataset": self._records().identity, "epoch": epoch, "delivered": delivered
        }  # fmt: skip
        return {**fields, "check": _digest(fields)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator go on where a state was taken.

        Raises:
            StateError: It is damaged, of another data set, or of an order that is not replayed.
        """
        fields = {name: state.get(name) for name in _FIELDS}
        for name, kind in _FIELDS.items():
            value = fields[name]
            if type(value) is not kind or (kind is int and isinstance(value, int) and value < 0):
                raise StateError(f"the saved state's {name} is {value!r}; a loader with {self._what} saves another one")
        if fields["version"] != 1 or state.get("check") != _digest(fields):
            raise StateError(
                f"the saved state of version {fields['version']} is damaged; resume from another checkpoint"
            )
        here = self._records().identity
        if fields["dataset"] != here or fields["replay"] != self._what:
            raise StateError(
                f"the saved state is of {fields['dataset']!r} by {fields['replay']}, but here is {here!r} by {self._what}"
            )
        self._loaded = (state["epoch"], state["delivered"])
        self._next_epoch = None


class Skipping:
    """A user's sampler, of which a resumed epoch leaves out the first batches."""

    def __init__(self, sampler: Any, skip: Callable[[], int]) -> None:
        self._sampler, self._skip = sampler, skip

    def __iter__(self) -> Iterator[Any]:
        items = iter(self._sampler)
        skip = self._skip()
        for number, item in enumerate(items):
            if number >= skip:
                yield item

    def __len__(self) -> int:
        return len(self._sampler)


def _digest(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, digest_size=8).hexdigest()
