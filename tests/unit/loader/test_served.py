"""A Hugging Face data set in the loader: the batches of torch's, read by the core, whoever supplies the indices."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

import shufflestore as ss
from tests.torch_sets import batches

N = 103
Torch = torch.utils.data.DataLoader
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    made = Dataset.from_dict(
        {
            "n": list(range(N)),
            "pair": [[i, i + 1] for i in range(N)],
            "ragged": [list(range(i % 5)) for i in range(N)],
            "text": [f"record {i}" for i in range(N)],
        }
    )
    made.save_to_disk(folder / "data", num_shards=3)
    return Dataset.load_from_disk(str(folder / "data"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SHUFFLESTORE_CACHE", str(tmp_path_factory.getbasetemp() / "served-cache"))


def plain(data):
    return data.select_columns(["n", "pair", "text"])


VIEWS = {
    "torch": lambda data: plain(data).with_format("torch"),
    "numpy": lambda data: plain(data).with_format("numpy"),
    "python": plain,
    "selected": lambda data: plain(data).select(range(90, 3, -2)).with_format("torch"),
    "shuffled": lambda data: plain(data).shuffle(seed=1).with_format("torch"),
    "transformed": lambda data: plain(data).with_transform(lambda batch: {"m": [2 * n for n in batch["n"]]}),
}
ORDERS = {
    "in order": lambda data: {"batch_size": 8},
    "dropping": lambda data: {"batch_size": 8, "drop_last": True},
    "sampler": lambda data: {"batch_size": 4, "sampler": [5, 1, 1, 0, 9]},
    "random": lambda data: {
        "batch_size": 5, "sampler": RandomSampler(data, generator=torch.Generator().manual_seed(1))
    },
    "batches": lambda data: {"batch_sampler": BatchSampler(SequentialSampler(data), 7, drop_last=True)},
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("view", VIEWS)
def test_batches_are_torchs_and_the_core_reads_them(saved, view, order):
    data = VIEWS[view](saved)
    ours = ss.DataLoader(data, **ORDERS[order](data))
    assert batches(ours) == batches(Torch(data, **ORDERS[order](data)))
    assert ours.stats().engine in ("mmap", "pread")
    assert len(ours) == len(Torch(data, **ORDERS[order](data)))
    assert ours.dataset is data


def rows(records):
    return [(int(record["n"]), record["ragged"].tolist()) for record in records]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_fn_gets_what_the_data_sets_records_are(saved, workers):
    data = saved.with_format("torch")
    ours = ss.DataLoader(data, 8, collate_fn=rows, num_workers=workers)
    assert list(ours) == list(Torch(data, 8, collate_fn=rows))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_of_the_data_set_runs_in_workers_too(saved, workers):
    data = VIEWS["transformed"](saved)
    assert batches(ss.DataLoader(data, 8, num_workers=workers)) == batches(Torch(data, 8))


def numbers(loader):
    return [n for batch in loader for n in batch["n"].tolist()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"batch_size": 8, "shuffle": True, "seed": 4},
        lambda: {"batch_size": 8, "sampler": ss.ShuffleSampler(N, seed=4)},
        lambda: {"batch_sampler": BatchSampler(ss.ShuffleSampler(N, seed=4), 8, drop_last=False)},
        lambda: {"batch_size": 8, "sampler": list(range(N))},
    ],
    ids=["ours", "sampler", "batch sampler", "a list"],
)
def test_state_is_exact(saved, make):
    data = plain(saved).with_format("torch")
    whole = numbers(ss.DataLoader(data, **make()))
    assert sorted(whole) == list(range(N))
    loader = ss.DataLoader(data, **make())
    iterator = iter(loader)
    got = [n for _ in range(3) for n in next(iterator)["n"].tolist()]
    after = ss.DataLoader(data, **make())
    after.load_state_dict(loader.state_dict())
    second = iter(after)
    got += next(second)["n"].tolist()
    last = ss.DataLoader(data, **make())
    last.load_state_dict(after.state_dict())
    assert got + numbers(last) == whole


def test_a_format_set_in_place_counts_from_the_next_epoch_on(saved):
    data = saved.select_columns(["n", "pair"])
    loader = ss.DataLoader(data, 8)
    for format in (None, "torch", "numpy", "pandas"):
        data.set_format(format)
        if format == "pandas":
            loader = ss.DataLoader(data, 8, collate_fn=len)
            assert list(loader) == list(Torch(data, 8, collate_fn=len))
        else:
            assert batches(loader) == batches(Torch(data, 8))


def test_what_cannot_be_served_goes_through_datasets_with_a_line(saved, caplog):
    memory = Dataset.from_dict({"n": [1, 2, 3]}).with_format("torch")
    with caplog.at_level(logging.INFO, "shufflestore"):
        loader = ss.DataLoader(memory, 2)
    assert "in memory" in caplog.text
    assert batches(loader) == batches(Torch(memory, 2))
    assert loader.stats().engine == "torch"


def test_a_cache_that_cannot_be_written_is_no_error(saved, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SHUFFLESTORE_CACHE", str(tmp_path / "file" / "cache"))
    data = plain(saved).with_format("torch")
    with caplog.at_level(logging.INFO, "shufflestore"):
        assert batches(ss.DataLoader(data, 50)) == batches(Torch(data, 50))
    assert "cannot be" in caplog.text


def test_single_records_and_seeded_ones_go_through_datasets(saved):
    data = plain(saved).with_format("torch")
    assert batches(ss.DataLoader(data, batch_size=None)) == batches(Torch(data, batch_size=None))
    loader = ss.DataLoader(data, 8, seed_records=True)
    assert batches(loader) == batches(Torch(data, 8))
    assert loader.stats().engine == "torch"
    assert np.isfinite(loader.stats().records_per_second)
