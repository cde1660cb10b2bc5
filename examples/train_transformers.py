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
        store, size = f"{self.args.output_dir}/store", self.args.train_batch_size
        self.loader = ss.DataLoader(store, size, shuffle=True, return_ids=True)
        return self.loader

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        line = [self.loader.state_dict()["epoch"], self.state.global_step + 1, *inputs["record_id"].tolist()]
        with Path(f"{self.args.output_dir}/seen-{self.args.world_size}-{self.args.process_index}.txt").open("a") as log:
            print(*line, file=log)
        return torch.nn.functional.mse_loss(model(inputs["x"].float()[:, None])[:, 0], inputs["y"].float())


class Place(TrainerCallback):
    """Keeps the loader's state beside each checkpoint, and goes on from it."""

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.is_world_process_zero:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", "loader.json")
            file.write_text(json.dumps(others["train_dataloader"].state_dict()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        file = Path(args.output_dir, f"checkpoint-{state.global_step}", "loader.json")
        if file.exists():
            others["train_dataloader"].load_state_dict(json.loads(file.read_text()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("run-transformers"), help="of data, checkpoints and log")
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    options = TrainingArguments(str(given.folder), use_cpu=True, num_train_epochs=2, save_steps=3, report_to="none")
    options.per_device_train_batch_size, options.ignore_data_skip = given.batch_size, True
    with options.main_process_first():
        if not (given.folder / "store").exists():
            ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], given.folder / "store")
    last = max(given.folder.glob("checkpoint-*/loader.json"), key=lambda file: int(file.parent.name[11:]), default=None)
    LineTrainer(torch.nn.Linear(1, 1), options, callbacks=[Place()]).train(last and str(last.parent))
