"""Nested tensors: over the memory read into, of whole batches through a loader, and refused where there is no torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import shufflestore as ss
from shufflestore.collate.layouts import Jagged, to_numpy
from shufflestore.collate.tables import assembler
from shufflestore.collate.tensors import nested, tensor
from shufflestore.errors import OptionError
from shufflestore.format.decode import Column

TOKENS = [[1, 2], [], [3], [4, 5, 6]]
TABLE = pa.table(
    {
        "tokens": pa.array(TOKENS, pa.list_(pa.uint16())),
        "weight": pa.array([[0.5] * len(t) for t in TOKENS], pa.list_(pa.float32())),
        "other": pa.array([[1]] * 4, pa.list_(pa.int64())),
        "deep": pa.array([[[1]], [], [[2, 3], []], []], pa.list_(pa.list_(pa.int64()))),
        "of": pa.array([{"x": t} for t in TOKENS]),
        "text": ["a", "b", "c", "d"],
    }
)


@pytest.fixture
def folder(tmp_path):
    with pa.ipc.new_file(tmp_path / "x.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE)
    ss.index(tmp_path / "x.arrow")
    return tmp_path / "x.arrow"


def records(made):
    return [record.tolist() for record in made.unbind()]


def weighted(batch):
    return batch | {"product": batch["tokens"] * batch["weight"]}


def test_a_nested_tensor_is_over_the_same_values_and_knows_its_longest_record():
    values, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3])
    made = nested({"x": Jagged(values, offsets)})["x"]
    assert made.values().data_ptr() == values.data_ptr()
    assert made.offsets() is offsets
    assert (made._maybe_max_seqlen, made._maybe_min_seqlen) == (2, 1)


def test_a_batch_without_records_is_nested_too():
    made = nested({"x": Jagged(torch.empty(0), torch.tensor([0]))})["x"]
    assert (made.size(0), records(made)) == (0, [])


def test_what_torch_cannot_nest_stays_jagged(folder):
    batch = next(iter(ss.DataLoader(folder, batch_size=4, layout="nested")))
    assert records(batch["tokens"]) == TOKENS
    assert records(batch["of"]["x"]) == TOKENS
    assert isinstance(batch["deep"], Jagged)
    assert batch["text"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("workers", [0, 1])
def test_columns_of_equal_lengths_can_be_computed_with_each_other(folder, workers):
    loader = ss.DataLoader(
        folder, batch_size=4, layout="nested", columns=["tokens", "weight", "other"], num_workers=workers,
        transform=weighted,
    )  # fmt: skip
    (batch,) = loader
    assert records(batch["product"]) == [[n / 2 for n in t] for t in TOKENS]
    with pytest.raises(RuntimeError):
        batch["tokens"] + batch["other"]
    moved = batch["tokens"].to(torch.float64) + batch["weight"].to("cpu")
    assert records(moved) == [[n + 0.5 for n in t] for t in TOKENS]


@pytest.mark.parametrize("format", ["numpy", "arrow"])
def test_other_formats_than_torch_refuse_it_when_the_loader_is_made(folder, format):
    with pytest.raises(OptionError, match=r"layout='nested'"):
        ss.DataLoader(folder, batch_size=4, layout="nested", format=format)
    with pytest.raises(OptionError, match=r"layout='nested'"):
        ss.open(folder).batches(4, format=format, options=ss.BatchOptions(layout="nested"))


def test_a_single_column_refuses_it_as_well():
    column = Column(pa.list_(pa.int8()), 0, offsets=np.zeros(1, np.int64), children=(Column(pa.int8(), 0),))
    with pytest.raises(OptionError, match="needs format='torch'"):
        to_numpy("x", column, "nested")


def test_fixed_shapes_within_records_are_kept():
    type_ = pa.list_(pa.list_(pa.int16(), 2))
    inner = Column(pa.int16(), 6, values=np.arange(6, dtype=np.int16))
    pairs = Column(pa.list_(pa.int16(), 2), 3, children=(inner,))
    column = Column(type_, 2, offsets=np.array([0, 1, 3]), children=(pairs,))
    made = assembler(pa.schema([("x", type_)]), ["x"], "arrays", "nested", leaf=tensor)(np.arange(2), {"x": column})
    assert records(made["x"]) == [[[0, 1]], [[2, 3], [4, 5]]]
