"""Hugging Face Accelerate: may be killed at any time and started again with any number of processes.

Run: python examples/train_accelerate.py, or accelerate launch --cpu --num_processes 2 examples/train_accelerate.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator

import shufflestore as ss


def main() -> None:
    """Train a line through 103 points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("run-accelerate"), help="of data, checkpoints and log")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    store, last = args.folder / "store", args.folder / "last.json"
    with accelerator.main_process_first():
        if not store.exists():
            ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], store)

    loader = ss.DataLoader(store, batch_size=args.batch_size, shuffle=True, seed=1, return_ids=True)
    model = torch.nn.Linear(1, 1)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    first = step = 0
    if last.exists():
        first, step = json.loads(last.read_text())
        accelerator.load_state(str(args.folder / f"checkpoint-{step}"))

    with (args.folder / f"seen-{accelerator.num_processes}-{accelerator.process_index}.txt").open("a") as seen:
        for epoch in range(first, args.epochs):
            for batch in loader:
                step += 1
                print(epoch, step, *batch["record_id"].tolist(), file=seen, flush=True)
                with accelerator.accumulate(model):
                    loss = torch.nn.functional.mse_loss(model(batch["x"].float()[:, None])[:, 0], batch["y"].float())
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:  # between steps of the optimizer, so that no gradient is lost
                    accelerator.save_state(str(args.folder / f"checkpoint-{step}"))
                    accelerator.wait_for_everyone()
                    if accelerator.is_main_process:
                        (args.folder / "new.json").write_text(json.dumps([epoch, step]))
                        (args.folder / "new.json").replace(last)  # a kill leaves the old one or the new one
    accelerator.print(f"{step} steps")


if __name__ == "__main__":
    main()
