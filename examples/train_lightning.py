"""Lightning Trainer: may be killed at any time and started again with any number of processes.

Run: python examples/train_lightning.py, or torchrun --nproc-per-node 2 examples/train_lightning.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import shufflestore as ss

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, default=Path("run-lightning"), help="of data, checkpoint and log")
parser.add_argument("--batch-size", type=int, default=8)


class Line(LightningModule):
    """A line through 103 points."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        super().__init__()
        self.folder, self.batch_size, self.layer = folder, batch_size, torch.nn.Linear(1, 1)

    def prepare_data(self) -> None:
        if not (self.folder / "store").exists():
            ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], self.folder / "store")

    def train_dataloader(self) -> ss.DataLoader[Any]:
        return ss.DataLoader(self.folder / "store", self.batch_size, shuffle=True, seed=1, return_ids=True)

    def on_train_start(self) -> None:
        """Count the resumed epoch's steps as of today's ranks and batches: Trainer ends an epoch by their number."""
        loader: Any = self.trainer.train_dataloader
        now = self.trainer.fit_loop.epoch_loop.batch_progress.current
        change = len(loader) - loader.remaining - now.ready
        now.ready, now.completed = now.ready + change, now.completed + change

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        """Return the loss, and note which records it is of."""
        with (self.folder / f"seen-{self.trainer.world_size}-{self.global_rank}.txt").open("a") as seen:
            print(self.current_epoch, self.global_step + 1, *batch["record_id"].tolist(), file=seen)
        return torch.nn.functional.mse_loss(self.layer(batch["x"].float()[:, None])[:, 0], batch["y"].float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    args, devices = parser.parse_args(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    last = args.folder / "checkpoints/last.ckpt"
    keep = ModelCheckpoint(last.parent, "last", every_n_train_steps=3, enable_version_counter=False)
    trainer = Trainer(accelerator="cpu", devices=devices, max_epochs=2, callbacks=[keep], logger=False)
    trainer.fit(Line(args.folder, args.batch_size), ckpt_path=str(last) if last.exists() else None)
