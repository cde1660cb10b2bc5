"""Lightning Fabric: may be killed at any time and started again with any number of processes.

Run: python examples/train_fabric.py, or torchrun --nproc-per-node 2 examples/train_fabric.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from lightning.fabric import Fabric

import shufflestore as ss


def main() -> None:
    """Train a line through 103 points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("run-fabric"), help="of data, checkpoint and log")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    fabric = Fabric(accelerator="cpu", devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    fabric.launch()
    store, checkpoint = args.folder / "store", args.folder / "checkpoint.pt"
    with fabric.rank_zero_first():
        if not store.exists():
            ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], store)

    # Not through setup_dataloaders: it counts epochs from 0 in each process, and drops the position of a later one.
    loader = ss.DataLoader(store, batch_size=args.batch_size, shuffle=True, seed=1, return_ids=True)
    line = torch.nn.Linear(1, 1)
    model, optimizer = fabric.setup(line, torch.optim.SGD(line.parameters(), lr=0.1))
    state = {"model": model, "optimizer": optimizer, "loader": loader, "epoch": 0, "step": 0}
    if checkpoint.exists():
        fabric.load(checkpoint, state)

    with (args.folder / f"seen-{fabric.world_size}-{fabric.global_rank}.txt").open("a") as seen:
        while state["epoch"] < args.epochs:
            for batch in loader:
                batch = fabric.to_device(batch)
                state["step"] += 1
                print(state["epoch"], state["step"], *batch["record_id"].tolist(), file=seen, flush=True)
                loss = torch.nn.functional.mse_loss(model(batch["x"].float()[:, None])[:, 0], batch["y"].float())
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                if state["step"] % 3 == 0:
                    fabric.save(checkpoint, state)
            state["epoch"] += 1
    fabric.print(f"{state['step']} steps, {line.weight.item():.2f} x + {line.bias.item():.2f}")


if __name__ == "__main__":
    main()
