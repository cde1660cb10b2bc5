"""Where `RecordBuilder` is found; it lives with the source that reads dicts."""

from __future__ import annotations

from shufflestore.convert.sources.iterable.records import RecordBuilder
from shufflestore.convert.sources.iterable.values import infer_schema

__all__ = ["RecordBuilder", "infer_schema"]
