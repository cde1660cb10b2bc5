"""Batches as tensors: the same memory where torch has the type, int64 where it has not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from shufflestore.collate.layouts import Jagged, Padded
from shufflestore.collate.tables import assembler
from shufflestore.collate.tensors import tensor
from shufflestore.errors import SchemaError
from tests.invented import arrow_bytes, memory_store, opened


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_types_that_torch_has_share_their_memory(dtype):
    array = np.arange(4).astype(dtype)
    made = tensor(array)
    assert torch.from_numpy(array).dtype == made.dtype
    array[0] = 1
    assert made.tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8"])
def test_unsigned_integers_become_int64_with_their_values(dtype):
    largest = min(np.iinfo(dtype).max, 2**63 - 1)
    made = tensor(np.array([0, largest], dtype))
    assert made.dtype == torch.int64
    assert made.tolist() == [0, largest]


def test_a_value_beyond_int64_is_refused_and_not_wrapped():
    with pytest.raises(SchemaError, match=r"passes 2\^63 - 1"):
        tensor(np.array([1, 2**63], np.uint64))


def test_empty_ones_keep_their_shape():
    assert tensor(np.empty((0, 3), np.uint64)).shape == (0, 3)


def test_every_number_of_a_batch_becomes_a_tensor_and_other_leaves_stay(tmp_path):
    table = pa.table(
        {
            "j": [[0, 1, 2], []],
            "s": ["a", None],
            "d": [{"x": 0.5, "t": "u"}, {"x": 1.5, "t": "v"}],
            "deep": [[{"y": [1]}, {"y": []}], []],
            "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.uint16(), 2)),
            "kind": pa.array(["c", "d"]).dictionary_encode(),
            "code": pa.array([7, 8], pa.uint32()).dictionary_encode(),
        }
    )
    data = opened(memory_store([arrow_bytes(table)]))
    projection = data.projection()
    columns = data.columns_at(np.arange(2), projection)

    def made(layout):
        return assembler(data.schema, projection.names, "arrays", layout, leaf=tensor, with_ids=True)(
            np.arange(2), columns
        )

    jagged = made("jagged")
    assert isinstance(jagged["j"], Jagged)
    assert jagged["j"][0].tolist() == [0, 1, 2]
    assert jagged["s"] == ["a", None]
    assert (jagged["d"]["x"].dtype, jagged["d"]["t"]) == (torch.float64, ["u", "v"])
    assert isinstance(jagged["deep"].values["y"].values, torch.Tensor)
    assert (jagged["fixed"].dtype, jagged["fixed"].tolist()) == (torch.int64, [[1, 2], [3, 4]])
    assert jagged["kind"] == ["c", "d"]
    assert (jagged["code"].dtype, jagged["code"].tolist()) == (torch.int64, [7, 8])
    assert jagged["record_id"].tolist() == [0, 1]
    jagged["code"][0] = 9  # also what Arrow itself has made may be written to
    padded = made("padded")["j"]
    assert isinstance(padded, Padded)
    assert padded.mask.tolist() == [[True, True, True], [False, False, False]]
    assert [record.tolist() for record in made("list")["j"]] == [[0, 1, 2], []]


def test_jagged_and_padded_move_and_convert_but_keep_their_offsets():
    jagged = Jagged(tensor(np.arange(3)), tensor(np.array([0, 3])))
    moved = jagged.to(torch.float16)
    assert (moved.values.dtype, moved.offsets.dtype) == (torch.float16, torch.int64)
    padded = Padded(tensor(np.ones((1, 2))), tensor(np.array([2])))
    assert padded.to("cpu", torch.float32).lengths.dtype == torch.int64
