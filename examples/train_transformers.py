"""Hugging Face Trainer: may be killed at any time and started again with another number of processes.

Run: python examples/train_transformers.py, or torchrun --nproc-per-node 2 examples/train_transformers.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import shufflestore as ss


class LineTrainer(Trainer):
    """Trains a line through points."""

    def get_train_dataloader(self) -> ss.DataLoader[Any]:
        """Return a loader of ours; `Trainer` moves its batches."""
        size = self.args.train_batch_size
        self.loader = ss.DataLoader(self.train_dataset, size, shuffle=True, seed=1, return_ids=True)
        return self.loader

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return the loss, and note which records it is of."""
        with Path(self.args.output_dir, f"seen-{self.args.world_size}-{self.args.process_index}.txt").open("a") as seen:
            print(self.loader.sampler.epoch, self.state.global_step + 1, *inputs["record_id"].tolist(), file=seen)
        return torch.nn.functional.mse_loss(model(inputs["x"].float()[:, None])[:, 0], inputs["y"].float())


class Place(TrainerCallback):
    """Keeps the loader's state beside each checkpoint, and goes on from it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if state.is_world_process_zero:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", "loader.json")
            file.write_text(json.dumps(kwargs["train_dataloader"].state_dict()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if state.global_step:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", "loader.json")
            kwargs["train_dataloader"].load_state_dict(json.loads(file.read_text()))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, default=Path("run-transformers"), help="of data, checkpoints and log")
parser.add_argument("--batch-size", type=int, default=8)
if __name__ == "__main__":
    given = parser.parse_args()
    options = TrainingArguments(
        str(given.folder), per_device_train_batch_size=given.batch_size, num_train_epochs=2, save_steps=3, use_cpu=True,
        ignore_data_skip=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    if options.process_index == 0 and not (given.folder / "store").exists():
        ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], given.folder / "store")
    with options.main_process_first():  # the others wait for the data
        data: Any = ss.open(given.folder / "store")
    saved = [file.parent for file in given.folder.glob("checkpoint-*/loader.json")]
    last = max(saved, key=lambda folder: int(folder.name.split("-")[1]), default=None)
    LineTrainer(torch.nn.Linear(1, 1), options, train_dataset=data, callbacks=[Place()]).train(last and str(last))
