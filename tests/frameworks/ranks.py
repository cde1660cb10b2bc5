"""What each rank does in a test of a framework. Every function prints what it found, as JSON, in its last line.

No process group is destroyed: while a DDP module lives, torch 2.13's gloo group then joins a thread that waits for the
interpreter's lock, which the caller holds.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset

import shufflestore as ss


def tell(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def numbers(count: int) -> TensorDataset:
    """A data set that is not ours: record i is the number i."""
    return TensorDataset(torch.arange(count))


def native(store: str, batch_size: int = 4, **options: Any) -> ss.DataLoader[Any]:
    return ss.DataLoader(store, batch_size, shuffle=True, seed=1, return_ids=True, **options)


def foreign(kind: str, count: int) -> ss.DataLoader[Any]:
    """A loader over another data set: a trainer divides it, or our sampler does, or the rank is given."""
    data, rank, world = numbers(count), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if kind == "sampler":
        return ss.DataLoader(data, 4, sampler=ss.ShuffleSampler(data, remainder="uneven", batch_size=4, seed=1))
    if kind == "rank":
        return ss.DataLoader(data, 4, shuffle=True, seed=1, rank=rank, world_size=world)
    return ss.DataLoader(data, 4, shuffle=True, seed=1)


def ids_of(batch: Any) -> list[int]:
    found: list[int] = (batch["record_id"] if isinstance(batch, dict) else batch[0]).tolist()
    return found


# -- PyTorch ---------------------------------------------------------------------------------------


def gloo(what: str, store: str) -> None:
    """Read two epochs where torch.distributed says who is who."""
    dist.init_process_group("gloo")
    loader = native(store) if what == "native" else foreign(what, 103)
    tell(epochs=[[ids_of(batch) for batch in loader] for _ in range(2)], length=len(loader))


class Keyed(ss.DataLoader[Any]):
    """As torchtitan's loaders keep their state: by the rank among those that share the data."""

    def state_dict(self) -> dict[str, Any]:
        return {f"dp_rank_{dist.get_rank()}": super().state_dict(), "world_size": dist.get_world_size()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state[f"dp_rank_{dist.get_rank()}"])


def keyed(store: str) -> None:
    """Save after two batches, load into a new loader, read on."""
    import torch.distributed.checkpoint as dcp

    dist.init_process_group("gloo")
    loader = Keyed(store, 4, shuffle=True, seed=1, return_ids=True)
    before = [ids_of(batch) for _, batch in zip(range(2), loader, strict=False)]
    dcp.save({"loader": loader}, checkpoint_id="keyed")
    again = Keyed(store, 4, shuffle=True, seed=1, return_ids=True)
    dcp.load({"loader": again}, checkpoint_id="keyed")
    tell(epochs=[before + [ids_of(batch) for batch in again]], uninterrupted=[ids_of(batch) for batch in native(store)])


# -- accelerate ------------------------------------------------------------------------------------


def accelerated(what: str, store: str, dispatch: str) -> None:
    """Read two epochs of a prepared loader, accumulating over three batches."""
    from accelerate import Accelerator, DataLoaderConfiguration

    config = DataLoaderConfiguration(dispatch_batches=True) if dispatch else None
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3, dataloader_config=config)
    loader = native(store) if what == "native" else foreign(what, 103)
    prepared = accelerator.prepare(loader)
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    epochs, steps = [], []
    for _ in range(2):
        seen, taken = [], []
        for batch in prepared:
            seen.append(ids_of(batch))
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.ones(1, 1)).sum())
                taken.append(accelerator.sync_gradients)
        epochs.append(seen)
        steps.append(taken)
    tell(epochs=epochs, steps=steps, is_left_alone=prepared is loader, length=len(prepared))


def gathered(store: str) -> None:
    """Gather the ids of an epoch whose last batches differ in length."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(native(store))
    objects = [accelerator.gather_for_metrics(ids_of(batch), use_gather_object=True) for batch in loader]
    accelerator.free_memory()
    whole = accelerator.prepare(native(store, remainder="drop"))
    tensors = [accelerator.gather_for_metrics(batch["record_id"]).tolist() for batch in whole]
    tell(objects=sum(objects, []), tensors=sum(tensors, []))


# -- Lightning -------------------------------------------------------------------------------------


def fabric(what: str, store: str) -> None:
    """Read two epochs of a loader that Fabric has set up."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]))
    fabric.launch()
    loader = native(store) if what == "native" else foreign(what, 104)
    ready = fabric.setup_dataloaders(loader)
    inner = ready._dataloader
    epochs = [[ids_of(batch) for batch in ready] for _ in range(2)]
    ours = type(inner) is ss.DataLoader
    tell(epochs=epochs, sampler=type(inner.sampler).__name__, is_left_alone=inner is loader, ours=ours)


def fabric_in_a_later_epoch(store: str) -> None:
    """Go on in the second epoch through setup_dataloaders, which says that it is the first."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    loader = native(store)
    for _ in loader:
        pass
    next(iter(loader))
    again = native(store)
    again.load_state_dict(loader.state_dict())
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("shufflestore").addHandler(handler)
    ready = fabric.setup_dataloaders(again)
    through_fabric = [ids_of(batch) for batch in ready]
    again.load_state_dict(loader.state_dict())
    past_fabric = [ids_of(batch) for batch in again]
    tell(through=len(through_fabric), past=len(past_fabric), lines=lines)


def trainer(what: str, store: str, where: str, epochs: str = "2", checkpoint: str = "") -> None:
    """Read epochs in Lightning's Trainer, of a loader that a hook makes or that is given, then predict."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Reads(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.epochs: list[list[list[int]]] = []

        def on_train_epoch_start(self) -> None:
            self.epochs.append([])

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            self.epochs[-1].append(ids_of(batch))
            return self.layer(torch.ones(1, 1)).sum()

        def predict_step(self, batch: Any, _: int) -> list[int]:
            return ids_of(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Hooked(Reads):
        def train_dataloader(self) -> Any:
            return native(store) if what == "native" else foreign(what, 104)

    module = Hooked() if where == "hook" else Reads()
    given = None if where == "hook" else Hooked.train_dataloader(module)  # type: ignore[arg-type]
    run = lightning.Trainer(
        accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), max_epochs=int(epochs), logger=False,
        enable_checkpointing=bool(checkpoint), callbacks=[ModelCheckpoint(".", "last")] if checkpoint else None,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    run.fit(module, given, ckpt_path=checkpoint if os.path.exists(checkpoint) else None)
    used = run.train_dataloader
    in_order = ss.DataLoader(store, 4, return_ids=True) if what == "native" else ss.DataLoader(numbers(104), 4)
    tell(
        epochs=module.epochs, sampler=type(used.sampler).__name__, ours=type(used) is ss.DataLoader,
        is_left_alone=given is None or used is given, predicted=run.predict(module, in_order),
    )  # fmt: skip


# -- transformers ----------------------------------------------------------------------------------


def transformed(what: str, store: str) -> None:
    """Read two epochs in transformers' Trainer, which makes its own loader over a data set of ours."""
    from transformers import Trainer, TrainingArguments

    epochs: list[list[list[int]]] = [[], []]

    class Reads(Trainer):
        def get_train_dataloader(self) -> Any:
            return super().get_train_dataloader() if what == "data set" else native(store)

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            ids = inputs["record_id" if "record_id" in inputs else "number"].tolist()
            epochs[int(self.state.epoch or 0)].append(ids)
            return model(torch.ones(1, 1)).sum()

    options = TrainingArguments(
        "out", per_device_train_batch_size=4, num_train_epochs=2, save_strategy="no", use_cpu=True, report_to="none",
        disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    data: Any = ss.open(store)
    Reads(torch.nn.Linear(1, 1), options, train_dataset=data).train()
    tell(epochs=epochs)
