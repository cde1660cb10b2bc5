"""What accelerate is owed by a loader that it leaves alone. With the real accelerate, in one process."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import ParallelismConfig
from torch.utils.data import BatchSampler, RandomSampler, TensorDataset

import shufflestore as ss
from shufflestore.errors import OptionError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainers") / "store"
    ss.convert([{"x": float(i), "words": list(range(i % 3))} for i in range(20)], folder)
    return folder


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True, gradient_accumulation_steps=3)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def steps_of_the_optimizer(accelerator, loader, epochs=1):
    """Return, for each batch, whether the optimizer took a step after it."""
    model = torch.nn.Linear(1, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    taken = []
    for _ in range(epochs):
        for batch in loader:
            x = batch["x"] if isinstance(batch, dict) else batch[0]
            with accelerator.accumulate(model):
                before = model.weight.item()
                accelerator.backward(model(x.float()[:, None]).sum())
                optimizer.step()
                optimizer.zero_grad()
                taken.append(model.weight.item() != before)
    return taken


def test_accumulated_gradients_are_applied_at_the_end_of_each_epoch_as_with_torchs_loader(store, accelerator):
    loader = ss.DataLoader(store, batch_size=2, shuffle=True)
    torchs = torch.utils.data.DataLoader(TensorDataset(torch.arange(20)), batch_size=2, shuffle=True)
    assert accelerator.prepare(loader) is loader
    ours = steps_of_the_optimizer(accelerator, loader, epochs=2)
    assert ours == 2 * [False, False, True, False, False, True, False, False, True, True]
    assert ours == steps_of_the_optimizer(accelerator, accelerator.prepare(torchs), epochs=2)


def test_the_last_batch_of_a_resumed_epoch_is_known_too(store, accelerator):
    loader = accelerator.prepare(ss.DataLoader(store, batch_size=2, shuffle=True))
    for _, _ in zip(range(6), loader, strict=False):
        pass
    again = accelerator.prepare(ss.DataLoader(store, batch_size=2, shuffle=True))
    again.load_state_dict(loader.state_dict())
    assert steps_of_the_optimizer(accelerator, again) == [False, False, True, True]


@pytest.mark.parametrize("kind", ["native", "native listed", "sampler", "rank", "workers", "single", "drop"])
def test_the_end_of_the_data_is_marked_on_the_last_batch_alone(store, accelerator, kind):
    data = TensorDataset(torch.arange(21))
    loader = {
        "native": lambda: ss.DataLoader(store, batch_size=3),
        "native listed": lambda: ss.DataLoader(
            store, batch_sampler=type("Own", (BatchSampler,), {})(ss.ShuffleSampler(20, 1, 0), 3, drop_last=True)
        ),
        "sampler": lambda: ss.DataLoader(data, batch_size=4, sampler=ss.ShuffleSampler(data)),
        "rank": lambda: ss.DataLoader(data, batch_size=4, shuffle=True, rank=1, world_size=2),
        "workers": lambda: ss.DataLoader(data, 4, True, rank=0, world_size=1, num_workers=2),
        "single": lambda: ss.DataLoader(data, batch_size=None, shuffle=True, rank=0, world_size=1),
        "drop": lambda: ss.DataLoader(data, batch_size=4, drop_last=True, rank=0, world_size=1),
    }[kind]()
    assert accelerator.prepare(loader) is loader
    for _ in range(2):
        marks = [accelerator.gradient_state.end_of_dataloader for _ in loader]
        assert marks == [False] * (len(loader) - 1) + [True]
        assert not accelerator.gradient_state.in_dataloader
    if kind == "native listed":
        return  # a state over a batch sampler of one's own counts its batches
    items = iter(loader)
    next(items)
    next(items)
    state = loader.state_dict()
    del items
    loader.load_state_dict(state)
    marks = [accelerator.gradient_state.end_of_dataloader for _ in loader]
    assert marks == [False] * (len(loader) - 3) + [True]


def test_batches_are_put_on_accelerates_device_whatever_their_layout(store, accelerator):
    PartialState().device = torch.device("meta")  # the one other device that every machine has
    batch = next(iter(accelerator.prepare(ss.DataLoader(store, batch_size=4))))
    assert batch["x"].device.type == "meta"
    assert batch["words"].values.device.type == batch["words"].offsets.device.type == "meta"
    data = TensorDataset(torch.arange(4))
    single = accelerator.prepare(ss.DataLoader(data, rank=0, world_size=1))
    assert next(iter(single))[0].device.type == "meta"


def test_a_loader_that_was_not_prepared_is_left_to_the_program(store, accelerator):
    PartialState().device = torch.device("meta")
    loader = ss.DataLoader(store, batch_size=4)
    for batch in loader:
        assert batch["x"].device.type == "cpu"
        assert not accelerator.gradient_state.in_dataloader


def test_a_prepared_loader_works_on_where_accelerates_state_is_gone(store):
    loader = Accelerator(cpu=True).prepare(ss.DataLoader(store, batch_size=4))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert sum(len(batch["x"]) for batch in loader) == 20


def test_a_batch_that_cannot_be_put_on_the_device_is_not_counted_as_delivered(store, accelerator):
    class Stubborn(dict):
        refusals = 1

        def to(self, device, non_blocking=False):
            Stubborn.refusals -= 1
            if Stubborn.refusals == 0:
                raise MemoryError("no room on the device")
            return self

    loader = accelerator.prepare(ss.DataLoader(store, batch_size=4, transform=Stubborn, return_ids=True))
    items = iter(loader)
    with pytest.raises(MemoryError):
        next(items)
    assert loader.state_dict()["position"] == 0
    assert next(items)["record_id"].tolist() == [0, 1, 2, 3]
    assert loader.state_dict()["position"] == 4


def test_an_inner_loop_that_breaks_off_leaves_the_outer_loops_end_in_sight(store, accelerator):
    outer = accelerator.prepare(ss.DataLoader(store, batch_size=5))
    inner = accelerator.prepare(ss.DataLoader(store, batch_size=2))
    marks = []
    for _ in outer:
        for _ in inner:
            assert not accelerator.gradient_state.end_of_dataloader
            break
        marks.append(accelerator.gradient_state.end_of_dataloader)
    assert marks == [False, False, False, True]
    assert not accelerator.gradient_state.in_dataloader


def test_an_iterator_that_is_kept_after_its_end_is_not_the_active_one(store, accelerator):
    items = iter(accelerator.prepare(ss.DataLoader(store, batch_size=5)))
    assert accelerator.gradient_state.in_dataloader is False
    assert len(list(items)) == 4
    assert accelerator.gradient_state.in_dataloader is False


def test_save_state_and_load_state_keep_the_loaders_place(store, accelerator, tmp_path):
    loader = accelerator.prepare(ss.DataLoader(store, batch_size=4, shuffle=True, return_ids=True))
    before = [batch["record_id"].tolist() for _, batch in zip(range(2), loader, strict=False)]
    accelerator.save_state(str(tmp_path))
    accelerator.free_memory()
    again = accelerator.prepare(ss.DataLoader(store, batch_size=3, shuffle=True, return_ids=True))
    accelerator.load_state(str(tmp_path))
    after = [batch["record_id"].tolist() for batch in again]
    assert sorted(sum(before + after, [])) == list(range(20))
    assert len(sum(before, [])) == 8


def test_no_sample_is_cut_off_from_gathered_metrics(store, accelerator):
    for remainder in ("uneven", "drop", "pad"):
        loader = accelerator.prepare(ss.DataLoader(store, batch_size=3, remainder=remainder, return_ids=True))
        gathered = [i for batch in loader for i in accelerator.gather_for_metrics(batch["record_id"]).tolist()]
        assert len(gathered) == {"uneven": 20, "drop": 18, "pad": 21}[remainder]


def test_data_sets_of_other_kinds_are_divided_by_accelerate(accelerator):
    loader = ss.DataLoader(TensorDataset(torch.arange(8)), batch_size=2, shuffle=True)
    prepared = accelerator.prepare(loader)
    assert prepared is not loader
    assert type(prepared).__module__.startswith("accelerate")
    assert sorted(torch.cat([batch[0] for batch in prepared]).tolist()) == list(range(8))


def test_records_picked_by_a_sampler_of_ones_own_are_refused_with_the_way_out(store, accelerator):
    prepared = accelerator.prepare(ss.DataLoader(store, batch_size=4, sampler=RandomSampler(range(20))))
    with pytest.raises(OptionError, match="Pass a collate_fn of your own"):
        next(iter(prepared))
    own = ss.DataLoader(store, batch_size=4, sampler=RandomSampler(range(20)), collate_fn=lambda rows: rows)
    assert sorted(row["x"] for rows in accelerator.prepare(own) for row in rows) == [float(i) for i in range(20)]


def test_processes_that_share_a_batch_have_to_be_told_to_the_loader(store, accelerator):
    AcceleratorState().parallelism_config = ParallelismConfig(tp_size=2)
    loader = accelerator.prepare(ss.DataLoader(store, batch_size=4))
    with pytest.raises(OptionError, match=r"2 processes work on the same batch.*rank= and world_size="):
        next(iter(loader))
    told = accelerator.prepare(ss.DataLoader(store, batch_size=4, rank=1, world_size=2))
    assert next(iter(told))["x"].tolist() == [1, 3, 5, 7]
