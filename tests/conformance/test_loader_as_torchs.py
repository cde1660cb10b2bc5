"""The loader is torch's: the same arguments, errors, batches, workers and seeds over anybody's data set."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

import shufflestore as ss
from tests.torch_sets import Batched, Shared, Sized, Squares, Stream, batches, keep, plain, total

Torch = torch.utils.data.DataLoader
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)


# -- the class ---------------------------------------------------------------------------------------


def test_it_is_a_torch_loader_generic_like_it():
    loader = ss.DataLoader(Squares(), 4)
    assert isinstance(loader, Torch)
    assert ss.DataLoader[int].__origin__ is ss.DataLoader


def test_torchs_parameters_stand_first_with_torchs_defaults():
    theirs = list(inspect.signature(Torch.__init__).parameters.values())
    ours = list(inspect.signature(ss.DataLoader.__init__).parameters.values())[: len(theirs)]
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def test_every_argument_is_kept_as_an_attribute(tmp_path):
    ss.convert([{"x": i} for i in range(9)], tmp_path / "s")
    for data in (Squares(), str(tmp_path / "s")):
        loader = ss.DataLoader(data, 4, prefetch_factor=3, num_workers=1, seed=4, rank=0, world_size=2)
        for name in inspect.signature(ss.DataLoader.__init__).parameters:
            if name != "self":
                assert hasattr(loader, name), name
        assert (loader.batch_size, loader.prefetch_factor, loader.num_workers, loader.seed) == (4, 3, 1, 4)


@pytest.mark.parametrize(
    "name", ["batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"]
)
def test_what_torch_forbids_to_set_later_is_forbidden(name):
    with pytest.raises(ValueError, match=f"{name} attribute should not be set"):
        setattr(ss.DataLoader(Squares(), 4), name, None)


WRONG = [
    {"num_workers": -1},
    {"timeout": -1},
    {"prefetch_factor": 2},
    {"num_workers": 1, "prefetch_factor": -1},
    {"persistent_workers": True},
    {"sampler": [1, 2], "shuffle": True},
    {"batch_sampler": [[1]], "batch_size": 3},
    {"batch_sampler": [[1]], "shuffle": True},
    {"batch_sampler": [[1]], "drop_last": True},
    {"batch_sampler": [[1]], "sampler": [1]},
    {"batch_size": None, "drop_last": True},
    {"batch_size": 0},
    {"batch_size": -3},
    {"batch_size": True},
    {"batch_size": 1.5},
    {"multiprocessing_context": "fork"},
    {"num_workers": 1, "multiprocessing_context": "bad"},
    {"num_workers": 1, "multiprocessing_context": 3},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_arguments_raise_what_torch_raises(wrong):
    with pytest.raises((ValueError, TypeError)) as theirs:
        Torch(Squares(), **wrong)
    with pytest.raises(theirs.type):
        ss.DataLoader(Squares(), **wrong)


@pytest.mark.parametrize("wrong", [{"shuffle": True}, {"sampler": [1]}, {"batch_sampler": [[1]]}], ids=str)
def test_iterable_data_sets_refuse_what_torch_refuses(wrong):
    with pytest.raises(ValueError, match="IterableDataset: expected unspecified") as theirs:
        Torch(Stream(), **wrong)
    with pytest.raises(ValueError, match=re.escape(str(theirs.value))):
        ss.DataLoader(Stream(), **wrong)


# -- batches -------------------------------------------------------------------------------------------

SETS = {
    "squares": Squares(),
    "batched": Batched(),
    "safe": Shared(),
    "tensors": TensorDataset(torch.arange(37), torch.arange(74).reshape(37, 2)),
    "subset": Subset(Squares(), range(30, 2, -1)),
    "concat": ConcatDataset([Shared(5), Shared(0 + 7), Shared(1)]),
    "list": [float(i) for i in range(11)],
    "range": range(13),
    "stream": Stream(),
    "sized": Sized(),
}


def shown(options):
    return ",".join(f"{key}={getattr(value, '__name__', value)}" for key, value in options.items()) or "defaults"


OPTIONS = [
    {},
    {"batch_size": 5},
    {"batch_size": 5, "drop_last": True},
    {"batch_size": None},
    {"batch_size": 4, "num_workers": 1},
    {"batch_size": 4, "num_workers": 2, "prefetch_factor": 1},
    {"batch_size": 4, "num_workers": 3, "collate_fn": keep},
    {"batch_size": 4, "num_workers": 2, "persistent_workers": True},
    {"batch_size": None, "num_workers": 2},
]


IN_WORKERS = ("squares", "batched", "tensors", "stream", "sized")
CASES = [(n, o) for n in SETS for o in OPTIONS if n in IN_WORKERS or not o.get("num_workers")]


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{shown(o)}" for n, o in CASES])
def test_batches_are_torchs_over_two_epochs(name, options, threads):
    theirs, ours = Torch(SETS[name], **options), ss.DataLoader(SETS[name], **options, fetch_threads=threads)
    assert batches(ours) == batches(theirs)
    assert batches(ours) == batches(theirs)
    if name != "stream":
        assert len(ours) == len(theirs)


SAMPLERS = {
    "list": lambda: {"sampler": [3, 1, 1, 30]},
    "random": lambda: {"sampler": RandomSampler(Squares(), generator=torch.Generator().manual_seed(1))},
    "weighted": lambda: {"sampler": WeightedRandomSampler([1.0] * 37, 20, generator=torch.Generator().manual_seed(2))},
    "batches": lambda: {"batch_sampler": [[1, 2], [3], [4, 5, 6]]},
    "batch sampler": lambda: {"batch_sampler": BatchSampler(SequentialSampler(Squares()), 5, drop_last=True)},
    "sampler alone": lambda: {"sampler": [3, 1, 1, 30], "batch_size": None},
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_users_own_samplers_supply_the_indices(make, workers, threads):
    ours = ss.DataLoader(Squares(), **make(), num_workers=workers, fetch_threads=threads)
    theirs = Torch(Squares(), **make(), num_workers=workers)
    assert batches(ours) == batches(theirs)
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffle_delivers_each_record_once_and_every_epoch_anew(workers):
    loader = ss.DataLoader(Squares(), 5, shuffle=True, num_workers=workers, fetch_threads=4, collate_fn=total)
    assert sum(loader) == sum(loader) == 36 * 37 // 2
    loader = ss.DataLoader(range(100), 10, shuffle=True, num_workers=workers)
    first, second = ([n for batch in loader for n in batch.tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_a_generator_gives_the_seed_once():
    def order(seed):
        return batches(ss.DataLoader(range(50), 50, shuffle=True, generator=torch.Generator().manual_seed(seed)))

    assert order(42) == order(42) != order(43)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_drawn_from_no_more_than_torch_does(workers):
    states = []
    for kind in (Torch, ss.DataLoader):
        torch.manual_seed(7)
        list(kind(range(20), 5, num_workers=workers))
        states.append(float(torch.rand(())))
    assert states[0] == states[1]


def test_an_abandoned_iterator_does_not_disturb_the_next():
    loader = ss.DataLoader(Squares(), 5, num_workers=2, fetch_threads=3)
    for _ in range(3):
        next(iter(loader))
    first, second = iter(loader), iter(loader)
    assert plain(next(first)) == plain(next(second)) == plain(next(iter(Torch(Squares(), 5))))
    assert len(list(second)) == 7
