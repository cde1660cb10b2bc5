"""The data set in a plain torch DataLoader: any workers, any start method, views, torch's own collation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.utils.data

import shufflestore as ss
from shufflestore.errors import OptionError
from tests.scenes import check_record, good, run, save

N = 300
# Python 3.12 on warns of forks with threads: torch's own way to start workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("torch") / "data", N)


@pytest.fixture(scope="module")
def data(folder):
    with ss.open(folder) as opened:
        yield opened


def loader_of(data, workers=0, method=None, **options):
    chosen = {"batch_size": 16, "collate_fn": list, "num_workers": workers, "timeout": 60 if workers else 0}
    return torch.utils.data.DataLoader(data, multiprocessing_context=method if workers else None, **(chosen | options))


def check_all(loader, expected) -> None:
    seen = []
    for batch in loader:
        for record in batch:
            check_record(record, int(record["label"]))
            seen.append(int(record["label"]))
    assert seen == list(expected)


def test_it_is_a_map_style_data_set(data):
    assert len(data) == N
    check_record(data[0], 0)
    check_record(data[-1], N - 1)
    check_record(data[np.int64(7)], 7)
    for i, record in zip((5, 3, 5), data.__getitems__([5, 3, 5]), strict=True):
        check_record(record, i)
    assert data.__getitems__([]) == []
    for bad in (N, -N - 1):
        with pytest.raises(IndexError):
            data[bad]
    with pytest.raises(OptionError, match="300"):
        data.__getitems__([0, N])
    assert [int(record["label"]) for record in data] == list(range(N))


def test_a_batch_is_read_together(data, monkeypatch):
    asked = []
    read = ss.Dataset.__getitems__
    monkeypatch.setattr(ss.Dataset, "__getitems__", lambda self, ids: asked.append(list(ids)) or read(self, ids))
    check_all(loader_of(data), range(N))
    assert asked[0] == list(range(16))
    assert len(asked) == 19


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_deliver_every_record_in_order(data, workers):
    loader = loader_of(data, workers)
    assert len(loader) == 19
    for _ in range(2):
        check_all(loader, range(N))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_may_be_started_afresh(data, method):
    """One loader in turn for the whole and for views: starting a process with torch takes seconds."""
    view = data.select(range(N - 1, 0, -3)).project(["text", "label", "kind", "pixels", "tokens"])
    both = torch.utils.data.ConcatDataset([data, view])
    check_all(loader_of(both, 1, method), [*range(N), *range(N - 1, 0, -3)])


@pytest.mark.campaign
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_campaign_every_way_to_start_workers(data, method, workers):
    loader = loader_of(data, workers, method, persistent_workers=True, shuffle=True)
    for _ in range(20):
        assert sorted(int(record["label"]) for batch in loader for record in batch) == list(range(N))


@pytest.mark.parametrize("workers", [0, 2])
def test_views_go_to_workers(data, workers):
    check_all(loader_of(data.select(range(200, 100, -3)), workers), range(200, 100, -3))
    check_all(loader_of(data.select([5, 5, 299, 0]), workers), [5, 5, 299, 0])
    check_all(loader_of(data[10:20].select([9, 0]), workers), [19, 10])
    for batch in loader_of(data.project(["text"]), workers):
        assert all(set(record) == {"text"} for record in batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_splits_go_to_workers(tmp_path, workers):
    datasets = pytest.importorskip("datasets")
    splits = {name: datasets.Dataset.from_dict({"x": list(range(k))}) for name, k in (("train", 40), ("test", 20))}
    ss.convert(datasets.DatasetDict(splits), tmp_path / "store")
    train = ss.open(tmp_path / "store", split="train")
    for view, count in ((train, 40), (train.split("test"), 20)):
        seen = [int(record["x"]) for batch in loader_of(view, workers) for record in batch]
        assert seen == list(range(count))


def test_torchs_own_collation_stacks_numeric_records(data):
    numeric = data.project(["label", "pixels"])
    for workers in (0, 1):
        start = 0
        for batch in loader_of(numeric, workers, collate_fn=None):
            stop = min(start + 16, N)
            assert batch["label"].tolist() == list(range(start, stop))
            assert batch["label"].dtype == torch.int64
            assert batch["pixels"].dtype == torch.uint8
            assert batch["pixels"].tolist() == [[i % 251] * 4 for i in range(start, stop)]
            start = stop
        assert start == N
    text = next(iter(loader_of(data.project(["text"]), collate_fn=None)))
    assert text["text"] == [f"record {i}" for i in range(16)]


def test_a_random_sampler_and_a_batch_sampler_of_torchs_work(data):
    shuffled = [int(r["label"]) for b in loader_of(data, 2, shuffle=True) for r in b]
    assert sorted(shuffled) == list(range(N))
    assert shuffled != list(range(N))
    batches = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(data), 7, drop_last=True)
    own = torch.utils.data.DataLoader(data, batch_sampler=batches, collate_fn=list)
    assert [len(batch) for batch in own] == [7] * (N // 7)
    check_record(torch.utils.data.DataLoader(data, batch_size=None, collate_fn=dict).__iter__().__next__(), 0)


def test_torchs_subsets_and_splits_of_it_work(data):
    first, second = torch.utils.data.random_split(data, [100, 200], torch.Generator().manual_seed(1))
    labels = [int(r["label"]) for part in (first, second) for b in loader_of(part, 1) for r in b]
    assert sorted(labels) == list(range(N))


def test_the_pickled_data_set_is_a_path_and_a_view(data, folder):
    views = [data, data.project(["label"]), data.select(range(0, N, 2)), data[5:].select(range(10))]
    for view in views:
        text = pickle.dumps(view)
        assert len(text) <= 4 << 10
        there = pickle.loads(text)
        assert there.identity == view.identity
        assert there.column_names == view.column_names
        assert there.take([0, 3]).equals(view.take([0, 3]))
        there.close()
    data[5]  # files are open, indexes are read: nothing of it travels
    assert len(pickle.dumps(data)) <= 4 << 10
    chosen = data.select(np.arange(N)[::-1])
    assert len(pickle.dumps(chosen)) <= (4 << 10) + 8 * N
    with ss.open(folder, engine="pread", verify=False) as other, pickle.loads(pickle.dumps(other)) as there:
        assert there.reading.verify is False
        assert there.reading.store.engine == "pread"


def initialise(worker: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert info.id == worker
    check_record(info.dataset[worker], worker)
    torch.manual_seed(worker)


def test_a_worker_may_use_the_data_set_when_it_begins(data):
    check_all(loader_of(data, 2, worker_init_fn=initialise), range(N))


@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_that_are_broken_off_leave_the_next_one_whole(data, persistent):
    loader = loader_of(data, 2, persistent_workers=persistent)
    for _ in range(2):
        for step, batch in enumerate(loader):
            check_record(batch[0], 16 * step)
            if step == 3:
                break
        check_all(loader, range(N))


def test_parent_and_workers_read_at_the_same_time(data):
    for step, batch in enumerate(loader_of(data, 2)):
        check_record(batch[0], 16 * step)
        check_record(data[N - 1 - step], N - 1 - step)


def test_it_serves_our_own_loader_and_torchs_side_by_side(data):
    ours = ss.DataLoader(data, 16, return_ids=True)
    for mine, theirs in zip(ours, loader_of(data, 1), strict=True):
        assert mine["label"].tolist() == [int(record["label"]) for record in theirs]


def test_a_worker_does_not_load_numba_or_compile(folder):
    program = """
        import sys, torch, torch.utils.data
        import shufflestore as ss
        from shufflestore.orders import kernels

        class Told(torch.utils.data.Dataset):
            def __init__(self, data): self.data = data
            def __len__(self): return len(self.data)
            def __getitems__(self, ids):
                self.data.__getitems__(ids)
                return [("numba" in sys.modules, kernels.is_warm())]

        loader = torch.utils.data.DataLoader(Told(ss.open(sys.argv[1])), 16, num_workers=1, collate_fn=list, timeout=60)
        print({told for batch in loader for told in batch})
    """
    assert good(run(program, folder)) == "{(False, False)}\n"
