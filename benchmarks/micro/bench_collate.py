"""Gathered bytes to what a training step takes: decode, numpy, torch. One batch of 256 records.

python -m pytest benchmarks/micro/bench_collate.py --benchmark-enable
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.harness.audit import Opened, check_batch
from benchmarks.micro.conftest import BATCH, Window
from shufflestore.collate.layouts import Jagged, Padded
from shufflestore.collate.tables import assembler
from shufflestore.collate.tensors import tensor
from shufflestore.format.decode import Column, Gathered

pytestmark = pytest.mark.benchmark(group="collate")


@pytest.fixture
def gathered(window: Window) -> Gathered:
    """One batch, read."""
    (ready,) = window.data.reading.submit(window.ids[:BATCH], np.array([BATCH]), window.projection)
    ready.pending.wait(60)
    ready.gathered.outputs = ready.pending.take()
    return ready.gathered


def _decode(window: Window, gathered: Gathered) -> dict[str, Column]:
    return {name: decode(gathered, BATCH) for _, name, decode in window.projection.plan if decode is not None}


def test_decode(benchmark: Any, window: Window, gathered: Gathered, per_record: Any) -> None:
    """Bytes -> columns."""
    columns = benchmark(_decode, window, gathered)
    per_record(BATCH)
    tokens = columns["tokens"]
    check_batch(Opened(columns["label"].values, tokens.children[0].values, tokens.offsets), len(window.data))


@pytest.mark.parametrize("layout", ["jagged", "padded", "list"])
def test_to_numpy(benchmark: Any, window: Window, gathered: Gathered, layout: Any, per_record: Any) -> None:
    """Columns -> arrays."""
    columns = _decode(window, gathered)
    assemble = assembler(window.data.schema, window.projection.names, "arrays", layout)
    arrays = benchmark(assemble, window.ids[:BATCH], columns)
    per_record(BATCH)
    tokens = arrays["tokens"]
    if isinstance(tokens, Padded):
        tokens = [row[:length] for row, length in zip(tokens.values, tokens.lengths, strict=True)]
    joined = tokens.values if isinstance(tokens, Jagged) else np.concatenate(tokens)
    lengths = [len(record) for record in tokens]
    check_batch(Opened(arrays["label"], joined, np.concatenate([[0], np.cumsum(lengths)])), len(window.data))


def test_to_torch(benchmark: Any, window: Window, gathered: Gathered, per_record: Any) -> None:
    """Columns -> tensors over the same memory."""
    columns = _decode(window, gathered)
    assemble = assembler(window.data.schema, window.projection.names, "arrays", leaf=tensor)
    tensors = benchmark(assemble, window.ids[:BATCH], columns)
    per_record(BATCH)
    tokens = tensors["tokens"]
    check_batch(Opened(tensors["label"], tokens.values, tokens.offsets), len(window.data))
