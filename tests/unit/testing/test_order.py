"""The promises about the order: each passes a loader that keeps it and fails one that is in use and does not."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler

from shufflestore.errors import OptionError
from shufflestore.testing import assert_epochs_differ, assert_ignores_global_rng, assert_order_golden
from tests.naive import orders as naive
from tests.unit.testing.peers import (
    by_name,
    hf_buffer,
    hf_in_order,
    ours,
    plain,
    torch_distributed,
    torch_generator,
    torch_random,
)

WORLDS = [{"world_size": world} for world in (1, 2, 3)]


@pytest.fixture(scope="module")
def make_for(tmp_path_factory):
    return ours(tmp_path_factory.mktemp("stores"))


# -- another order each epoch ----------------------------------------------------------------------


@pytest.mark.parametrize("calls_set_epoch", [True, False])
def test_our_epochs_differ_whether_or_not_the_loop_sets_them(make_for, calls_set_epoch):
    assert_epochs_differ(make_for(103), by_name, topologies=WORLDS, epochs=4, calls_set_epoch=calls_set_epoch)


def test_a_sampler_that_is_told_its_epoch_passes_and_one_that_is_not_fails():
    assert_epochs_differ(torch_distributed(103), plain, topologies=WORLDS)
    with pytest.raises(AssertionError, match="world_size=2: epochs 0 and 1 have 104 of 104 records in the same place"):
        assert_epochs_differ(torch_distributed(103), plain, topologies=WORLDS[1:], calls_set_epoch=False)


class Batches(BatchSampler):
    """A batch sampler that takes the epoch for its sampler."""

    def set_epoch(self, epoch):
        self.hidden.set_epoch(epoch)

    def __iter__(self):
        return iter(BatchSampler(self.hidden, 8, drop_last=False))


def in_the_batch_sampler(sampler):
    batches = Batches(range(103), 8, drop_last=False)
    batches.hidden = sampler
    return DataLoader(range(103), batch_sampler=batches)


@pytest.mark.parametrize(
    "loader_of",
    [
        lambda sampler: DataLoader(range(0, 103), None, sampler=sampler),
        lambda sampler: DataLoader(range(103), batch_sampler=BatchSampler(sampler, 8, drop_last=False)),
        in_the_batch_sampler,
    ],
    ids=["sampler", "batch_sampler.sampler", "batch_sampler"],
)
def test_set_epoch_is_found_wherever_trainers_look(loader_of):
    def make(rank=0, world_size=1):
        return loader_of(DistributedSampler(range(103), world_size, rank))

    def ids(batch):
        return torch.as_tensor(batch).reshape(-1)

    assert_epochs_differ(make, ids)
    with pytest.raises(AssertionError, match="103 of 103"):
        assert_epochs_differ(make, ids, calls_set_epoch=False)


def test_set_epoch_is_found_on_the_data_set():
    stream = hf_buffer(103)()
    assert_epochs_differ(lambda **_: DataLoader(stream, batch_size=None), by_name)


def test_a_buffer_shuffle_with_one_seed_fails_unless_the_epoch_is_set():
    assert_epochs_differ(hf_buffer(103), by_name)
    with pytest.raises(AssertionError, match=r"103 of 103 .* They begin with \[(\d+), .* and \[\1, "):
        assert_epochs_differ(hf_buffer(103), by_name, calls_set_epoch=False)


def test_epochs_that_agree_only_in_part_fail_too():
    class Head(Sampler):
        """Shuffles half of the records, the others always come last and in order."""

        def __iter__(self):
            yield from [*torch.randperm(50).tolist(), *range(50, 100)]

    with pytest.raises(AssertionError, match="epochs 0 and 1 have 5[0-9] of 100 records in the same place"):
        assert_epochs_differ(lambda **_: DataLoader(range(100), 8, sampler=Head()), plain)


def test_a_fourth_epoch_that_is_the_first_again_is_found():
    class Cycle:
        """Three orders in turn, as with a seed of epoch modulo three."""

        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter(np.random.default_rng(self.epoch % 3).permutation(40).reshape(-1, 8))

    assert_epochs_differ(lambda **_: Cycle(), plain, epochs=3)
    with pytest.raises(AssertionError, match="epochs 0 and 3 have 40 of 40"):
        assert_epochs_differ(lambda **_: Cycle(), plain, epochs=4)


# -- the promised order ----------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_our_order_is_the_specified_one(make_for, epoch, world):
    order = naive.permute(list(range(103)), 103, 1, epoch)
    # Ranks take positions in turn, batch by batch of 8.
    dealt = [
        i for ranks in zip(*naive.partition(103, 8, world, "uneven"), strict=True) for batch in ranks for i in batch
    ]
    golden = [order[position] for position in dealt]
    assert_order_golden(make_for(103), by_name, golden, topology={"world_size": world}, epoch=epoch)
    assert_order_golden(make_for(103), by_name, golden[:5], topology={"world_size": world}, epoch=epoch)
    golden[60], golden[61] = golden[61], golden[60]
    with pytest.raises(
        AssertionError, match=f"epoch {epoch}: place 60 of the order holds {golden[61]}, .* {golden[60]} there"
    ):
        assert_order_golden(make_for(103), by_name, golden, topology={"world_size": world}, epoch=epoch)


def test_torchs_order_is_golden_with_a_generator_and_not_without():
    golden = [i for batch in torch_generator(103)() for i in batch.tolist()]
    assert_order_golden(torch_generator(103), plain, golden)
    with pytest.raises(AssertionError, match="place [01] of the order"):
        assert_order_golden(torch_random(103), plain, golden)


def test_a_loader_without_set_epoch_is_read_up_to_the_epoch():
    loader = torch_generator(40)()
    epochs = [[i for batch in loader for i in batch.tolist()] for _ in range(3)]
    assert_order_golden(torch_generator(40), plain, epochs[2], epoch=2)
    with pytest.raises(AssertionError, match="place"):
        assert_order_golden(torch_generator(40), plain, epochs[1], epoch=2)


def test_an_order_that_ends_early_is_not_golden():
    with pytest.raises(
        AssertionError, match="place 6 of the order holds nothing: the epoch is over, the golden order 6"
    ):
        assert_order_golden(lambda **_: DataLoader(range(6), 4), plain, range(7))


# -- global generators -----------------------------------------------------------------------------


def test_our_loader_neither_depends_on_global_generators_nor_draws_from_them(make_for):
    assert_ignores_global_rng(make_for(103), by_name, topologies=WORLDS, leaves_it_alone=True)


def test_a_sampler_seeded_from_the_global_generator_fails():
    words = (
        r"world_size=1, epoch 0: the order depends on a global generator: place \d+ holds \d+ .* \d+ with another seed"
    )
    with pytest.raises(AssertionError, match=words):
        assert_ignores_global_rng(torch_random(103), plain)
    with pytest.raises(AssertionError, match=words):
        assert_ignores_global_rng(lambda **_: DataLoader(range(103), 8, sampler=RandomSampler(range(103))), plain)


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["random", "numpy"])
def test_the_generators_of_python_and_numpy_are_looked_at(draw):
    make = {"topologies": WORLDS[:1]}
    with pytest.raises(AssertionError, match="depends on a global generator"):
        assert_ignores_global_rng(lambda **_: [sorted(range(30), key=lambda _: draw())], plain, **make)


@pytest.mark.parametrize(
    ("seed", "draw"),
    [
        (torch.manual_seed, lambda: torch.randint(10**6, (4,))),
        (np.random.seed, lambda: np.random.randint(10**6, size=4)),
        (random.seed, lambda: [random.randrange(10**6) for _ in range(4)]),
    ],
    ids=["torch", "numpy", "random"],
)
def test_an_order_that_is_drawn_as_it_goes_fails_though_its_seed_is_set_at_the_start(seed, draw):
    class Reseeds:
        """What the training loop draws comes in between."""

        def __iter__(self):
            seed(3)
            for _ in range(8):
                yield draw()

    with pytest.raises(AssertionError, match="epoch 0: the order depends on a global generator: place [4-7] "):
        assert_ignores_global_rng(lambda **_: Reseeds(), plain)


def test_torch_draws_from_the_global_generator_but_not_if_it_has_its_own():
    assert_ignores_global_rng(torch_distributed(103), plain, topologies=WORLDS)
    with pytest.raises(AssertionError, match="epoch 0: reading drew from the global generator of torch"):
        assert_ignores_global_rng(torch_distributed(103), plain, leaves_it_alone=True)
    assert_ignores_global_rng(torch_generator(103), plain, leaves_it_alone=True)
    assert_ignores_global_rng(hf_in_order(103), by_name, leaves_it_alone=True)


def test_the_generators_are_put_back(make_for):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(1).item(), random.random(), np.random.random()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert_ignores_global_rng(make_for(30), by_name)
    assert (torch.rand(1).item(), random.random(), np.random.random()) == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda make: assert_epochs_differ(make, plain), "an epoch of 12 records is too short"),
        (lambda make: assert_epochs_differ(make, plain, epochs=1), "epochs=1"),
        (lambda make: assert_epochs_differ(make, plain, topologies=[]), "topologies is empty"),
        (lambda make: assert_order_golden(make, plain, []), "0 golden ids"),
        (lambda make: assert_order_golden(make, plain, [1], epoch=-1), "epoch=-1"),
        (lambda make: assert_ignores_global_rng(make, plain, epochs=0), "epochs=0"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(call, words):
    with pytest.raises(OptionError, match=words):
        call(lambda **_: DataLoader(range(12), 4))
