"""Lightning Trainer: may be killed at any time and started again with another number of processes.

Run: python examples/train_lightning.py, or torchrun --nproc-per-node 2 examples/train_lightning.py
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import shufflestore as ss

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, default=Path("run-lightning"), help="of data, checkpoint and log")
parser.add_argument("--batch-size", type=int, default=8)


class Line(lightning.LightningModule):
    """A line through 103 points."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        super().__init__()
        self.folder, self.batch_size, self.layer = folder, batch_size, torch.nn.Linear(1, 1)

    def prepare_data(self) -> None:  # noqa: D102
        if not (self.folder / "store").exists():
            ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], self.folder / "store")

    def train_dataloader(self) -> ss.DataLoader[Any]:  # noqa: D102
        return ss.DataLoader(self.folder / "store", self.batch_size, shuffle=True, seed=1, return_ids=True)

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        """Return the loss, and note which records it is of."""
        with (self.folder / f"seen-{self.trainer.world_size}-{self.global_rank}.txt").open("a") as seen:
            print(self.current_epoch, self.global_step + 1, *batch["record_id"].tolist(), file=seen)
        return torch.nn.functional.mse_loss(self.layer(batch["x"].float()[:, None])[:, 0], batch["y"].float())

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers")  # ours reads without them
    last = args.folder / "checkpoints/last.ckpt"
    keep = ModelCheckpoint(last.parent, "last", every_n_train_steps=3, enable_version_counter=False)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")), max_epochs=2, callbacks=[keep],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Line(args.folder, args.batch_size), ckpt_path=str(last) if last.exists() else None)
