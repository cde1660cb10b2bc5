"""Batches as tensors: the same memory where torch has the type, int64 where it has not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shufflestore.collate.layouts import Jagged, Padded
from shufflestore.collate.tensors import to_torch
from shufflestore.errors import SchemaError


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_types_that_torch_has_share_their_memory(dtype):
    array = np.arange(4).astype(dtype)
    tensor = to_torch(array)
    assert torch.from_numpy(array).dtype == tensor.dtype
    array[0] = 1
    assert tensor.tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8"])
def test_unsigned_integers_become_int64_with_their_values(dtype):
    largest = min(np.iinfo(dtype).max, 2**63 - 1)
    tensor = to_torch(np.array([0, largest], dtype))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [0, largest]


def test_a_value_beyond_int64_is_refused_and_not_wrapped():
    with pytest.raises(SchemaError, match=r"passes 2\^63 - 1"):
        to_torch(np.array([1, 2**63], np.uint64))


def test_read_only_arrays_are_copied_and_empty_ones_kept():
    array = np.arange(3)
    array.flags.writeable = False
    tensor = to_torch(array)
    tensor[0] = 9
    assert array.tolist() == [0, 1, 2]
    assert to_torch(np.empty((0, 3), np.uint64)).shape == (0, 3)


def test_whole_batches_keep_their_shape_and_other_leaves():
    batch = {
        "j": Jagged(np.arange(3), np.array([0, 3])),
        "p": Padded(np.ones((1, 2)), np.array([2])),
        "s": ["a"],
        "d": {"x": np.ones(2)},
    }
    made = to_torch(batch)
    assert isinstance(made["j"], Jagged)
    assert made["j"][0].tolist() == [0, 1, 2]
    assert made["p"].mask.tolist() == [[True, True]]
    assert made["s"] == ["a"]
    assert made["d"]["x"].dtype == torch.float64


def test_jagged_and_padded_move_and_convert_but_keep_their_offsets():
    made = to_torch({"j": Jagged(np.arange(3), np.array([0, 3])), "p": Padded(np.ones((1, 2)), np.array([2]))})
    moved = made["j"].to(torch.float16)
    assert (moved.values.dtype, moved.offsets.dtype) == (torch.float16, torch.int64)
    assert made["p"].to("cpu", torch.float32).lengths.dtype == torch.int64
