"""Where an epoch stands: what a training run saves and resumes from.

A cursor names the data set, the order, and how many positions of the order have been *delivered*. Ranks,
batch size and workers are not in it, so that all of them may change on resume. As a dict it is JSON
of less than 1 KiB, with a check value that catches a damaged or edited state.
"""

from __future__ import annotations

__all__ = ["CURSOR_VERSION", "Cursor", "Share"]

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from shufflestore.errors import StateError

CURSOR_VERSION = 1

_MAX_RECORDS = 2**62
_MAX_WORD = 2**64 - 1
_MAX_IDENTITY_CHARS = 256
_MAX_ORDER_CHARS = 128
# field -> largest value; each of these is an integer and starts at 0
_INTEGERS = {
    "snapshot": 2**63 - 1,
    "seed": _MAX_WORD,
    "epoch": _MAX_WORD,
    "position": _MAX_RECORDS,
    "length": _MAX_RECORDS,
}
_TEXTS = {"dataset": _MAX_IDENTITY_CHARS, "order": _MAX_ORDER_CHARS}
_MAY_BE_NONE = ("snapshot", "length")
_FIELDS = ("version", "dataset", "snapshot", "order", "seed", "epoch", "position", "length")
_OPTIONAL = ("finished", "share")
_MAX_RANGES = 4096


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank delivered where batches come out of order; to be merged with those of the other ranks.

    Attributes:
        rank: In [0, world_size).
        world_size: Ranks.
        records: Of this rank, all delivered, counted from where the iteration began.
        beyond: Ranges [first, stop) of this rank's records that were delivered too.
    """

    rank: int
    world_size: int
    records: int
    beyond: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in one epoch of one order of one data set.

    Attributes:
        dataset: The data set's identity, 1 to 256 ASCII characters.
        snapshot: The snapshot the run reads, or None where the data set has none.
        order: The order's name, 1 to 128 ASCII characters.
        seed: In [0, 2**64).
        epoch: In [0, 2**64).
        position: Positions of the order already delivered, in [0, length].
        length: Records in the order, if known: a cheap second check of the data set.
        finished: Ranges (first, stop, stride) of positions beyond `position` that were delivered too.
        share: Where this is what one of several ranks delivered out of order: `position` and `finished` are then
            those at which the iteration began.
        version: Of this layout; 1.

    Raises:
        StateError: A field is of another type or out of range; it is named.

    >>> cursor = Cursor(dataset="3f2a", snapshot=1, order="global", seed=42, epoch=3, position=512, length=1000)
    >>> cursor.to_dict()["position"]
    512
    >>> Cursor.from_dict(cursor.to_dict()) == cursor
    True
    """

    dataset: str
    snapshot: int | None
    order: str
    seed: int
    epoch: int
    position: int
    length: int | None = None
    finished: tuple[tuple[int, int, int], ...] = ()
    share: Share | None = None
    version: int = CURSOR_VERSION

    def __post_init__(self) -> None:
        """Check every field."""
        _check_version(self.version)
        for name, most in _TEXTS.items():
            _check_text(name, getattr(self, name), most)
        for name, most in _INTEGERS.items():
            _check_integer(name, getattr(self, name), most, may_be_none=name in _MAY_BE_NONE)
        if self.length is not None and self.position > self.length:
            raise StateError(f"position is {self.position}, outside [0, {self.length}], the length of the order")
        top = _MAX_RECORDS if self.length is None else self.length
        if len(self.finished) > _MAX_RANGES or not all(_is_range(r, 3, self.position, top) for r in self.finished):
            raise StateError(
                f"finished is {_short(self.finished)}, not ranges (first, stop, stride) in [{self.position}, {top}]"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the cursor as plain JSON values, under 1 KiB, with its check value."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        if self.finished:
            fields["finished"] = [list(each) for each in self.finished]
        if self.share is not None:
            rank, world_size, records, beyond = (getattr(self.share, name) for name in Share.__slots__)
            fields["share"] = [rank, world_size, records, [list(each) for each in beyond]]
        return {**fields, "check": _digest(fields)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Cursor:
        """Return the cursor that `to_dict` made `state` of.

        Args:
            state: As saved; nothing about it is taken on trust. Not modified.

        Raises:
            StateError: A field is missing, unknown, of another type or out of range, the version is not
                known, or the check value disagrees. The message names the field, its value and what
                was allowed.
        """
        if not isinstance(state, dict):
            raise StateError(f"a saved state is a dict, not {type(state).__name__}; pass what state_dict() returned")
        if "version" not in state:
            raise StateError(f"the saved state has no field 'version'; its fields are {_names(state)}")
        _check_version(state["version"])
        missing = [name for name in (*_FIELDS, "check") if name not in state]
        if missing:
            raise StateError(f"the saved state has no field {missing[0]!r}; its fields are {_names(state)}")
        unknown = [name for name in state if name not in (*_FIELDS, *_OPTIONAL, "check")]
        if unknown:
            raise StateError(
                f"the saved state has an unknown field {_short(unknown[0])}; version 1 has {_names(_FIELDS)}"
            )
        fields = {name: state[name] for name in (*_FIELDS, *_OPTIONAL) if name in state}
        cursor = cls(**{**fields, "finished": _ranges(fields.get("finished")), "share": _share(fields.get("share"))})
        if state["check"] != _digest(fields):
            raise StateError(
                f"the saved state is corrupted: its check value is {_short(state['check'])} "
                f"but its fields give {_digest(fields)!r}; resume from another checkpoint"
            )
        return cursor

    def check(self, identity: str, order: str, seed: int | None = None, length: int | None = None) -> None:
        """Refuse to resume something else.

        Args:
            identity: The identity of the data set at hand.
            order: The name of the order at hand.
            seed: The seed that was asked for by name, any integer; None takes the cursor's.
            length: Records at hand; None is not compared.

        Raises:
            StateError: One of them is not the cursor's; both values are named.
        """
        if identity != self.dataset:
            raise StateError(
                f"the saved state is of data set {self.dataset!r}, but this one is {identity!r}; open the data set it "
                "was taken from, or start without a state"
            )
        if order != self.order:
            raise StateError(
                f"the saved state is of order {self.order!r}, but the order here is {order!r}; use the same one"
            )
        if seed is not None and seed % 2**64 != self.seed:
            raise StateError(
                f"the saved state is of seed {self.seed}, but seed {seed} was given; leave the seed out to resume, "
                "or start without a state"
            )
        if length is not None and self.length is not None and length != self.length:
            raise StateError(
                f"the saved state is of {self.length} records, but there are {length} here; open snapshot "
                f"{self.snapshot} of the data set, or start without a state"
            )


def _is_range(value: Any, size: int, least: int, most: int) -> bool:
    if len(value) != size or not all(type(number) is int for number in value):
        return False
    return bool(least <= value[0] < value[1] <= most and value[-1] > 0)


def _ranges(value: Any) -> tuple[tuple[int, int, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, list) for each in value):
        raise StateError(f"finished is {_short(value)}, not a list of ranges [first, stop, stride]")
    return tuple(map(tuple, value))


def _share(value: Any) -> Share | None:
    if value is None:
        return None
    good = isinstance(value, list) and len(value) == 4 and isinstance(value[3], list)
    if good:
        rank, world_size, records, beyond = value
        numbers = all(type(number) is int and number >= 0 for number in (rank, world_size, records))
        ranges = all(isinstance(each, list) and _is_range(each, 2, records, _MAX_RECORDS) for each in beyond)
        if numbers and rank < world_size and ranges:
            return Share(rank, world_size, records, tuple(map(tuple, beyond)))
    raise StateError(f"share is {_short(value)}, not [rank, world size, records, ranges beyond them]")


def _check_version(version: object) -> None:
    if type(version) is not int or version != CURSOR_VERSION:
        raise StateError(
            f"version is {_short(version)}; this release reads version {CURSOR_VERSION} of a saved state: "
            "resume with the release that saved it"
        )


def _check_integer(name: str, value: object, most: int, *, may_be_none: bool) -> None:
    if value is None and may_be_none:
        return
    # type(), because a bool is an int to isinstance
    if type(value) is not int or not 0 <= value <= most:
        allowed = f"an integer in [0, {most}]" + (" or None" if may_be_none else "")
        raise StateError(f"{name} is {_short(value)}, not {allowed}")


def _check_text(name: str, value: object, most: int) -> None:
    if type(value) is not str or not 1 <= len(value) <= most or not value.isascii() or not value.isprintable():
        raise StateError(f"{name} is {_short(value)}, not a text of 1 to {most} printable ASCII characters")


def _digest(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, digest_size=8).hexdigest()


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _names(names: object) -> str:
    return _short(", ".join(sorted(str(name) for name in names)))  # type: ignore[attr-defined]  # any iterable
