"""The figures that a person, a logger or Prometheus makes of what a loader counted: pure values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from shufflestore.errors import OptionError

__all__ = ["BUCKETS", "LAST_BUCKET", "Stats"]

LAST_BUCKET: Final = (40 << 5) + 63
"""Waits of 2^46 ns (19 hours) and more are in it."""
BUCKETS: Final = LAST_BUCKET + 1
"""A wait of w < 64 ns is in bucket w; else, with s its number of bits less 6, in bucket 32 s + (w >> s)."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How a loader did, from its first batch to now, or between two such moments (`since`).

    `str` is one line for people, `to_dict` for loggers, `to_prometheus` for monitoring. docs/telemetry.md says in plain
    words what each figure means and what to do about it.

    >>> Stats(records=4_000, batches=2, waited_seconds=0.1, step_seconds=1.9).records_per_second
    2000.0

    Attributes:
        records: Delivered to the training loop by this rank.
        batches: Likewise; also those without records.
        waited_seconds: Spent in the loader's `next`, until it returned a batch.
        step_seconds: Spent outside, between a batch and the `next` that follows in the same pass. What lies between
            two passes counts in neither.
        bytes_read: Bytes that were asked of files, row indexes and look-ahead included; None if nobody counts them.
        bytes_used: Bytes of the delivered records; None likewise.
        engine: What reads.
        lookahead_fill: Share in [0, 1] of the look-ahead that is ready to be taken, at the end of the time measured;
            None where nothing is ahead.
        quarantined: Records that could not be read and were skipped or replaced.
        epoch: At the end of the time measured.
        rank: Of this process.
        waits: (BUCKETS,) batches by how long they were waited for; see `quantile`.
    """

    records: int = 0
    batches: int = 0
    waited_seconds: float = 0.0
    step_seconds: float = 0.0
    bytes_read: int | None = None
    bytes_used: int | None = None
    engine: str = ""
    lookahead_fill: float | None = None
    quarantined: int = 0
    epoch: int = 0
    rank: int = 0
    waits: tuple[int, ...] = field(default=(0,) * BUCKETS, repr=False)

    @property
    def seconds(self) -> float:
        """The time measured: waits and steps."""
        return self.waited_seconds + self.step_seconds

    @property
    def records_per_second(self) -> float:
        """Records by all of the time measured; 0.0 before the first batch."""
        return self.records / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float | None:
        """`bytes_used` in units of 10^6 by all of the time measured; None if nobody counts them."""
        if self.bytes_used is None:
            return None
        return self.bytes_used / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def stall_share(self) -> float:
        """Share in [0, 1] of the time measured that the training loop waited; 0.0 before the first batch."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0

    @property
    def p50_seconds(self) -> float:
        """Half of the batches were waited for no longer than that."""
        return self.quantile(0.5)

    @property
    def p99_seconds(self) -> float:
        """99 of 100 batches were waited for no longer than that."""
        return self.quantile(0.99)

    @property
    def bytes_read_per_byte_used(self) -> float | None:
        """Read amplification: 1.0 is ideal, more is read in vain. None if nobody counts, or nothing was used yet.

        A little less than 1 where small columns come from the row index, which stays in memory.
        """
        return self.bytes_read / self.bytes_used if self.bytes_read is not None and self.bytes_used else None

    def quantile(self, share: float) -> float:
        """Return the wait in seconds that a share of the batches did not exceed; 0.0 if there are none.

        It is the middle of the bucket that holds the wait of rank ceil(share x batches). Buckets are one
        nanosecond wide below 64 ns and at most 1/32 of their lower end above, so it is off by at most 1/64 (1.6 %) of
        that wait. Waits of over 19 hours count as 19 hours.

        Args:
            share: In (0, 1].

        Raises:
            OptionError: `share` is not.
        """
        if not 0 < share <= 1:
            raise OptionError(f"share={share!r}; a number above 0 and up to 1 is needed, e.g. 0.99")
        rank, reached = share * self.batches, 0
        for bucket, count in enumerate(self.waits):
            reached += count
            if count and reached >= rank:
                return _middle(bucket) / 1e9
        return 0.0

    def since(self, earlier: Stats) -> Stats:
        """Return the figures of the time between an earlier moment and this one.

        What is no count (engine, look-ahead, epoch, rank) is that of this moment.

        Args:
            earlier: Of the same loader. `Stats()` is the beginning.

        Raises:
            OptionError: It is later, or another loader's.
        """
        if earlier.batches > self.batches or earlier.records > self.records:
            raise OptionError(
                f"figures of {self.batches:,} batches and {self.records:,} records since those of {earlier.batches:,} and "
                f"{earlier.records:,}: earlier figures of the same loader are needed; write later.since(earlier)"
            )
        return replace(
            self,
            records=self.records - earlier.records,
            batches=self.batches - earlier.batches,
            waited_seconds=self.waited_seconds - earlier.waited_seconds,
            step_seconds=self.step_seconds - earlier.step_seconds,
            bytes_read=None if self.bytes_read is None else self.bytes_read - (earlier.bytes_read or 0),
            bytes_used=None if self.bytes_used is None else self.bytes_used - (earlier.bytes_used or 0),
            quarantined=self.quarantined - earlier.quarantined,
            waits=tuple(now - then for now, then in zip(self.waits, earlier.waits, strict=True)),
        )

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Return every figure by its name, for a logger. JSON; `waits` is left out."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "waits"}
        return given | {name: getattr(self, name) for name in _DERIVED}

    def to_prometheus(self, labels: Mapping[str, str] | None = None) -> str:
        """Return the figures in Prometheus' text format 0.0.4: totals, of which Prometheus makes rates.

        What nobody counts is left out. Not for what `since` returns: a counter must not fall.

        Args:
            labels: Further labels, beside "rank".

        Raises:
            OptionError: A label has a name that Prometheus does not take.
        """
        return _exposition(self, {"rank": str(self.rank)} | dict(labels or {}))

    def __str__(self) -> str:
        megabytes, amplification = self.megabytes_per_second, self.bytes_read_per_byte_used
        parts = [
            f"epoch {self.epoch}: {self.records_per_second:,.0f} records/s",
            "" if megabytes is None else f"{megabytes:,.1f} MB/s",
            f"waited {self.stall_share:.1%}",
            f"batch p50 {_readable(self.p50_seconds)} p99 {_readable(self.p99_seconds)}",
            "" if self.lookahead_fill is None else f"ahead {self.lookahead_fill:.0%}",
            self.engine,
            "" if amplification is None else f"read/used {amplification:.2f}",
            f"{self.quarantined:,} bad records" if self.quarantined else "",
        ]
        return ", ".join(part for part in parts if part)


_DERIVED: Final = (
    "seconds", "records_per_second", "megabytes_per_second", "stall_share", "p50_seconds", "p99_seconds",
    "bytes_read_per_byte_used",
)  # fmt: skip


def _middle(bucket: int) -> float:
    """Return the middle of a bucket in nanoseconds; see BUCKETS."""
    shift = max((bucket >> 5) - 1, 0)
    lowest = (bucket - (shift << 5)) << shift
    return lowest + ((1 << shift) - 1) / 2


def _readable(seconds: float) -> str:
    """Return a time with three digits.

    >>> _readable(0.0000004), _readable(0.00123), _readable(0.5), _readable(12.34), _readable(3600)
    ('0.4 us', '1.23 ms', '500 ms', '12.3 s', '3,600 s')
    """
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    unit, size = ("s", 1.0) if seconds >= 0.9995 else ("ms", 1e-3) if seconds >= 0.9995e-3 else ("us", 1e-6)
    return f"{seconds / size:.3g} {unit}"


# -- Prometheus ------------------------------------------------------------------------------------


def _exposition(stats: Stats, labels: dict[str, str]) -> str:
    """Return the text; one family after another: what it is, its type, its samples."""
    wait = "shufflestore_batch_wait_seconds"
    quantiles = [(wait, {"quantile": str(q)}, stats.quantile(q)) for q in (0.5, 0.99)]
    families: list[tuple[str, str, str, list[tuple[str, dict[str, str], float | None]]]] = [
        _single("shufflestore_records_total", "counter", "Records delivered to the training loop.", stats.records),
        (
            wait, "summary", "Time the training loop waited for a batch; quantiles of the whole run.",
            [*quantiles, (f"{wait}_sum", {}, stats.waited_seconds), (f"{wait}_count", {}, stats.batches)],
        ),
        _single("shufflestore_step_seconds_total", "counter", "Time spent between batches.", stats.step_seconds),
        _single("shufflestore_read_bytes_total", "counter", "Bytes asked of files.", stats.bytes_read),
        _single("shufflestore_used_bytes_total", "counter", "Bytes of delivered records.", stats.bytes_used),
        _single(
            "shufflestore_quarantined_records_total", "counter", "Records that could not be read.", stats.quarantined
        ),
        _single("shufflestore_epoch", "gauge", "Epoch of the newest iterator.", stats.epoch),
        _single(
            "shufflestore_lookahead_ratio", "gauge", "Share of the look-ahead that is ready to be taken.",
            stats.lookahead_fill,
        ),
        (
            "shufflestore_engine_info", "gauge", "What reads; the value is 1.",
            [("shufflestore_engine_info", {"engine": stats.engine}, 1 if stats.engine else None)],
        ),
    ]  # fmt: skip
    lines = []
    for name, kind, text, samples in families:
        told = [f"{sample}{_labels(labels | own)} {value}" for sample, own, value in samples if value is not None]
        if told:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *told]
    return "\n".join(lines) + "\n"


def _single(
    name: str, kind: str, text: str, value: float | None
) -> tuple[str, str, str, list[tuple[str, dict[str, str], float | None]]]:
    """A family of one sample."""
    return name, kind, text, [(name, {}, value)]


def _labels(labels: dict[str, str]) -> str:
    """Return labels as they stand behind a name."""
    for name in labels:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
            raise OptionError(
                f"label {name!r}; letters, digits and _ are allowed, no digit first, and names beginning with __ are "
                "Prometheus' own"
            )
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for k, v in labels.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
