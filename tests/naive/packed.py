"""Records end to end, believed at sight: what the layouts packed and nested must agree with."""

from __future__ import annotations

from typing import Any


def packed(records: list[list[Any]]) -> tuple[list[Any], list[int], int, list[int]]:
    """Return (values, cu_seqlens, max_seqlen, position_ids) of records."""
    values, ends, places, longest = [], [0], [], 0
    for record in records:
        for place, value in enumerate(record):
            values.append(value)
            places.append(place)
        ends.append(len(values))
        longest = max(longest, len(record))
    return values, ends, longest, places
