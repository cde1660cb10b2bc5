"""The loader delivers every record once, in the order's order, and goes on exactly where a state was taken."""

from __future__ import annotations

import copy
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

import shufflestore as ss
from shufflestore.errors import OptionError, SchemaError, StateError
from shufflestore.orders.epoch import make_order

N = 103


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.arrow"
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "tokens": pa.array(
                [list(range(i, i + int(k))) for i, k in enumerate(rng.integers(0, 9, N))], pa.list_(pa.int32())
            ),
            "label": pa.array(range(N), pa.int64()),
            "half": pa.array([[i, i + 1] for i in range(N)], pa.list_(pa.uint16(), 2)),
            "text": [f"record {i}" for i in range(N)],
            "maybe": pa.array([None if i % 10 == 0 else i for i in range(N)], pa.int16()),
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    ss.index(path)
    return path


def ids_of(loader):
    return [batch["record_id"].tolist() for batch in loader]


def test_each_epoch_delivers_every_record_once_in_an_order_of_its_own(folder):
    loader = ss.DataLoader(folder, 8, shuffle=True, seed=5, return_ids=True, columns=["label"])
    first, second = (sum(ids_of(loader), []) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second
    assert first == make_order("global", N, 5, 0).ids(np.arange(N)).tolist()
    assert second == make_order("global", N, 5, 1).ids(np.arange(N)).tolist()


def test_the_payload_belongs_to_its_record(folder):
    for batch in ss.DataLoader(folder, 8, shuffle=True, return_ids=True, fill_nulls=-1):
        ids = batch["record_id"].tolist()
        assert batch["label"].tolist() == ids
        assert batch["text"] == [f"record {i}" for i in ids]
        assert batch["half"].tolist() == [[i, i + 1] for i in ids]
        assert batch["maybe"].tolist() == [-1 if i % 10 == 0 else i for i in ids]
        for i, record in zip(ids, batch["tokens"], strict=True):
            assert record.tolist() == list(range(i, i + len(record)))


def test_types_are_torchs_and_small_integers_come_widened(folder):
    batch = next(iter(ss.DataLoader(folder, 4, fill_nulls=0)))
    assert batch["half"].dtype == torch.int64
    assert batch["half"].shape == (4, 2)
    assert batch["tokens"].values.dtype == torch.int32
    assert batch["tokens"].offsets.dtype == torch.int64
    assert batch["maybe"].dtype == torch.int16


@pytest.mark.parametrize("layout", ["jagged", "padded", "list"])
def test_layouts_hold_the_same_records(folder, layout):
    batch = next(iter(ss.DataLoader(folder, 16, columns=["tokens"], layout=layout)))["tokens"]
    expected = [r["tokens"] for r in ss.open(folder).take(range(16)).to_pylist()]
    if layout == "padded":
        found = [row[:n].tolist() for row, n in zip(batch.values, batch.lengths.tolist(), strict=True)]
        assert batch.values.sum() == sum(map(sum, expected))
        assert batch.mask.sum(1).tolist() == [len(e) for e in expected]
    else:
        found = [record.tolist() for record in batch]
    assert found == expected


def test_null_numbers_are_refused_by_name_unless_something_stands_for_them(folder):
    with pytest.raises(SchemaError, match="'maybe' has 11 nulls.*fill_nulls"):
        next(iter(ss.DataLoader(folder, N)))


@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 7, 64, 200])
def test_ranks_share_an_epoch_exactly_and_take_equally_many_steps(folder, world, batch, remainder):
    loaders = [
        ss.DataLoader(
            folder,
            batch,
            shuffle=True,
            columns=["label"],
            return_ids=True,
            rank=r,
            world_size=world,
            remainder=remainder,
        )
        for r in range(world)
    ]
    shares = [ids_of(loader) for loader in loaders]
    assert len({len(share) for share in shares} | {len(loader) for loader in loaders}) == 1
    every = sorted(i for share in shares for ids in share for i in ids)
    order = make_order("global", N, 0, 0).ids(np.arange(N)).tolist()
    full = N // (world * batch) * world * batch
    if remainder == "drop":
        assert every == sorted(order[:full])
    elif remainder == "uneven":
        assert every == list(range(N))
    else:
        assert len(every) == -(-N // (world * batch)) * world * batch
        assert set(every) == set(range(N))


@pytest.mark.parametrize("taken", [0, 1, 4, 12, 13])
@pytest.mark.parametrize("world", [1, 3])
def test_a_state_taken_anywhere_resumes_exactly_at_another_world_and_batch_size(folder, taken, world):
    loader = ss.DataLoader(folder, 8, shuffle=True, seed=9, columns=["label"], return_ids=True)
    iterator = iter(loader)
    seen = [i for _ in range(taken) for i in next(iterator)["record_id"].tolist()]
    state = json.loads(json.dumps(loader.state_dict()))
    assert len(json.dumps(state)) < 1024
    rest: list[int] = []
    for rank in range(world):
        other = ss.DataLoader(folder, 5, shuffle=True, columns=["label"], return_ids=True, rank=rank, world_size=world)
        other.load_state_dict(copy.deepcopy(state))
        assert other.remaining == len(got := ids_of(other))
        rest += sum(got, [])
    assert sorted(seen + rest) == list(range(N))


def test_resuming_twice_within_an_epoch_loses_and_repeats_nothing(folder):
    seen, state = [], None
    for steps in (3, 2, 100):
        loader = ss.DataLoader(folder, 8, shuffle=True, seed=2, columns=["label"], return_ids=True)
        if state is not None:
            loader.load_state_dict(state)
        for step, batch in enumerate(loader):
            seen += batch["record_id"].tolist()
            if step + 1 == steps:
                break
        state = loader.state_dict()
    assert sorted(seen) == list(range(N))


def test_a_state_taken_at_the_end_of_an_epoch_leads_to_the_next(folder):
    loader = ss.DataLoader(folder, 8, shuffle=True, columns=["label"], return_ids=True)
    assert len(ids_of(loader)) == 13
    fresh = ss.DataLoader(folder, 8, shuffle=True, columns=["label"], return_ids=True)
    fresh.load_state_dict(loader.state_dict())
    assert ids_of(fresh) == []
    assert ids_of(fresh) == ids_of(loader)
    assert fresh.state_dict()["epoch"] == 1


def test_set_epoch_keeps_a_loaded_position_of_that_epoch_and_drops_another(folder, caplog):
    loader = ss.DataLoader(folder, 8, shuffle=True, columns=["label"], return_ids=True)
    loader.set_epoch(4)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    fresh = ss.DataLoader(folder, 8, shuffle=True, columns=["label"], return_ids=True)
    fresh.load_state_dict(state)
    fresh.set_epoch(4)
    assert fresh.remaining == 12
    fresh.load_state_dict(state)
    fresh.set_epoch(5)
    assert "drops the loaded position 8 of epoch 4" in caplog.text
    assert len(ids_of(fresh)) == 13
    assert fresh.state_dict()["epoch"] == 5


def test_the_epoch_is_bound_at_the_first_next_not_when_the_iterator_is_made(folder):
    loader = ss.DataLoader(folder, N, shuffle=True, columns=["label"], return_ids=True)
    iterator = iter(loader)
    loader.set_epoch(7)
    assert next(iterator)["record_id"].tolist() == make_order("global", N, 0, 7).ids(np.arange(N)).tolist()


def test_an_iterator_that_delivered_nothing_uses_up_no_epoch(folder):
    loader = ss.DataLoader(folder, N, shuffle=True, columns=["label"], return_ids=True)
    iter(loader)
    iter(loader)
    assert next(iter(loader))["record_id"].tolist() == make_order("global", N, 0, 0).ids(np.arange(N)).tolist()


def test_a_state_of_other_data_seed_or_order_is_refused_by_name(folder, tmp_path):
    loader = ss.DataLoader(folder, 8, shuffle=True, seed=1, columns=["label"])
    state = loader.state_dict()
    with pytest.raises(StateError, match="seed"):
        ss.DataLoader(folder, 8, shuffle=True, seed=2).load_state_dict(state)
    with pytest.raises(StateError, match="order"):
        ss.DataLoader(folder, 8).load_state_dict(state)
    with pytest.raises(StateError, match="data set"):
        ss.DataLoader(ss.open(folder).select(range(50)), 8, shuffle=True).load_state_dict(state)
    with pytest.raises(StateError):
        loader.load_state_dict({**state, "position": 5})


def test_once_keeps_one_order_and_says_so_in_the_state(folder):
    loader = ss.DataLoader(folder, 8, shuffle=True, reshuffle="once", columns=["label"], return_ids=True)
    assert ids_of(loader) == ids_of(loader)
    assert loader.state_dict()["order"] == "once"


def test_a_transform_runs_in_threads_in_order_and_its_error_comes_in_its_place(folder):
    def double(batch):
        if 50 in batch["label"].tolist():
            raise ValueError("fifty")
        return batch["label"] * 2

    loader = ss.DataLoader(folder, 10, columns=["label"], transform=double, transform_threads=3)
    got = []
    with pytest.raises(ValueError, match="fifty"):
        for batch in loader:
            got.append(batch.tolist())
    assert got == [[2 * i for i in range(10 * k, 10 * k + 10)] for k in range(5)]


def test_a_collate_fn_gets_records(folder):
    loader = ss.DataLoader(folder, 4, columns=["text", "label"], collate_fn=lambda rows: [r["text"] for r in rows])
    assert next(iter(loader)) == [f"record {i}" for i in range(4)]


@pytest.mark.parametrize("format", ["numpy", "arrow"])
def test_other_formats_hold_the_same(folder, format):
    batch = next(iter(ss.DataLoader(folder, 4, shuffle=True, columns=["label", "text"], format=format)))
    expected = make_order("global", N, 0, 0).ids(np.arange(4)).tolist()
    assert (batch["label"].to_pylist() if format == "arrow" else batch["label"].tolist()) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"format": "tf"}, "format='tf'.*torch"),
        ({"layout": "ragged"}, "layout='ragged'.*jagged"),
        ({"remainder": "keep"}, "remainder='keep'.*uneven"),
        ({"reshuffle": "never"}, "reshuffle='never'"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"rank": 0}, "world"),
        ({"prefetch_bytes": -1}, "prefetch_bytes=-1"),
        ({"columns": "label"}, "a list of names"),
        ({"columns": ["nope"]}, "no column 'nope'"),
        ({"split": "test"}, "no split 'test'.*train"),
        ({"transform": 3}, "cannot be called"),
    ],
)
def test_a_wrong_argument_is_refused_by_name_value_and_range(folder, arguments, words):
    with pytest.raises((OptionError, SchemaError), match=words):
        ss.DataLoader(folder, **{"batch_size": 4, **arguments})


def test_return_ids_refuses_a_column_of_that_name(tmp_path):
    path = tmp_path / "x.arrow"
    table = pa.table({"record_id": [1, 2]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(OptionError, match="'record_id'"):
        ss.DataLoader(path, return_ids=True)


def test_batches_may_be_kept_for_ever(folder):
    loader = ss.DataLoader(folder, 4, shuffle=True, columns=["label", "tokens"], prefetch_bytes=1000)
    kept = list(loader)
    again = ss.DataLoader(folder, 4, shuffle=True, columns=["label", "tokens"])
    for mine, theirs in zip(kept, again, strict=True):
        assert torch.equal(mine["tokens"].values, theirs["tokens"].values)
        assert torch.equal(mine["label"], theirs["label"])


def test_a_closed_loader_stops_and_can_start_again(folder):
    with ss.DataLoader(folder, 4, columns=["label"], return_ids=True) as loader:
        iterator = iter(loader)
        next(iterator)
        loader.close()
        assert list(iterator) == []
        assert len(ids_of(loader)) == 26


def test_a_state_goes_back_to_its_own_snapshot_after_an_append(tmp_path):
    store = tmp_path / "store"
    ss.convert([{"x": i} for i in range(20)], store)
    loader = ss.DataLoader(store, 4, shuffle=True, return_ids=True)
    seen = next(iter(loader))["x"].tolist()
    state = loader.state_dict()
    ss.convert([{"x": i} for i in range(20, 30)], store, if_exists="append")
    fresh = ss.DataLoader(store, 4, shuffle=True, return_ids=True)
    assert len(fresh.dataset) == 30
    fresh.load_state_dict(state)
    assert sorted(seen + [x for batch in fresh for x in batch["x"].tolist()]) == list(range(20))
    ss.gc(store, grace_seconds=0)
    with pytest.raises(StateError, match="data set"):
        ss.DataLoader(store, 4, shuffle=True).load_state_dict(state)
