"""Any table, format, view and batch: what is served from files is what `datasets` and torch make."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

datasets = pytest.importorskip("datasets")

from datasets import Array2D, Features, LargeList, List, Value  # noqa: E402

from shufflestore.loader.huggingface import recognise  # noqa: E402
from tests.huggingface import compared  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]) | st.just("\0"), max_size=4)
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "int8": st.integers(-128, 127),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint16": st.integers(0, 2**16 - 1),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "bool": st.booleans(),
    "string": TEXT,
    "binary": st.binary(max_size=3),
}


@st.composite
def columns(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:
    """A feature and a strategy of its values; nulls at one depth at most, so that some columns have none."""
    name = draw(st.sampled_from(list(LEAVES)))
    feature, values = Value(name), LEAVES[name]
    nulls = draw(st.integers(0, 4))
    values = st.none() | values if nulls == 1 else values
    kind = draw(st.sampled_from(["value", "list", "equal", "fixed", "large", "lists", "matrix", "struct", "array2d"]))
    if kind == "array2d":
        number = draw(st.sampled_from(["int32", "uint16", "float32", "float64"]))
        rows = st.lists(st.lists(LEAVES[number], min_size=2, max_size=2), min_size=3, max_size=3)
        return Array2D((3, 2), number), st.none() | rows if nulls == 2 else rows
    size = draw(st.integers(1, 3))
    if kind in ("list", "large"):
        feature, values = (LargeList if kind == "large" else List)(feature), st.lists(values, max_size=3)
    elif kind in ("equal", "fixed"):
        feature = List(feature, length=size) if kind == "fixed" else List(feature)
        values = st.lists(values, min_size=size, max_size=size)
    elif kind == "lists":
        feature, values = List(List(feature)), st.lists(st.lists(values, max_size=2), max_size=2)
    elif kind == "matrix":
        inner = st.lists(values, min_size=size, max_size=size)
        feature, values = List(List(feature)), st.lists(inner, min_size=2, max_size=2)
    elif kind == "struct":
        feature, values = {"a": feature}, st.fixed_dictionaries({"a": values})
    return feature, st.none() | values if nulls == 2 else values


@st.composite
def tables(draw: st.DrawFn) -> tuple[Features, dict[str, list[Any]]]:
    """Features and values of 1 to 12 records."""
    count = draw(st.integers(1, 12))
    drawn = {f"c{i}": draw(columns()) for i in range(draw(st.integers(1, 3)))}
    values = {name: draw(st.lists(v, min_size=count, max_size=count)) for name, (_, v) in drawn.items()}
    return Features({name: feature for name, (feature, _) in drawn.items()}), values


VIEWS = st.sampled_from(
    [
        lambda d, _: d,
        lambda d, n: d.select(range(n % len(d), len(d))),
        lambda d, n: d.shuffle(seed=n),
        lambda d, n: d.select(np.random.default_rng(n).integers(0, len(d), 5)),
        lambda d, n: datasets.concatenate_datasets([d.select(range(n % len(d), len(d))), d]),
        lambda d, n: d.select(range(n % len(d), len(d))).shuffle(seed=n).rename_column("c0", "z"),
    ]
)
EMPTY = (Features({"c0": List(List(Value("int32")))}), {"c0": [[[], []], [[], []]]})


@given(
    tables(), VIEWS, st.integers(0, 100), st.sampled_from([None, "torch", "numpy"]), st.booleans(), st.data()
)  # fmt: skip
@settings(max_examples=40)
@example(EMPTY, lambda d, _: d, 0, "torch", False, None)
@example((Features({"c0": Value("uint16")}), {"c0": [1, None, 3]}), lambda d, _: d, 0, "numpy", False, None)
def test_served_records_and_batches_are_those_of_datasets(table, view, number, format, is_part, data):
    features, values = table
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SHUFFLESTORE_CACHE"] = f"{folder}/cache"  # of the test that the fixture sets back
        whole = datasets.Dataset.from_dict(values, features=features)
        whole.save_to_disk(f"{folder}/saved", num_shards=min(2, len(whole)))
        dataset = view(datasets.load_from_disk(f"{folder}/saved"), number)
        part = {"columns": dataset.column_names[-1:], "output_all_columns": True} if is_part else {}
        dataset = dataset.with_format(format, **part)
        served = recognise(dataset)
        assert served is not None
        assert len(served.dataset) == len(dataset)
        some = st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=8)
        for ids in [list(range(len(dataset))), *([] if data is None else [data.draw(some)])]:
            assert compared(served, dataset, ids) is None
        served.dataset.close()
