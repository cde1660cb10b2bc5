"""A loop in torchtitan's manner, saved by torch.distributed.checkpoint: the loader is saved like the model.

Run: torchrun --nproc-per-node 2 examples/train_titan.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard

import shufflestore as ss


def main() -> None:
    """Train a line through 103 points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("run-titan"), help="of data, checkpoints and log")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, store = dist.get_rank(), args.folder / "store"
    if rank == 0 and not store.exists():
        ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], store)
    dist.barrier()

    loader = ss.DataLoader(store, batch_size=args.batch_size, shuffle=True, seed=1, return_ids=True)
    model = torch.nn.Linear(1, 1)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state: dict[str, Any] = {"model": model, "loader": loader, "step": 0}
    whole = [int(file.parent.name) for file in args.folder.glob("checkpoints/*/.metadata")]  # written last
    if whole:
        load(state, checkpoint_id=args.folder / "checkpoints" / str(max(whole)))

    with (args.folder / f"seen-{dist.get_world_size()}-{rank}.txt").open("a") as seen:
        for epoch in range(loader.state_dict()["epoch"], args.epochs):
            for batch in loader:
                state["step"] += 1
                print(epoch, state["step"], *batch["record_id"].tolist(), file=seen, flush=True)
                loss = torch.nn.functional.mse_loss(model(batch["x"].float()[:, None])[:, 0], batch["y"].float())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
                if state["step"] % 3 == 0:
                    save(state, checkpoint_id=args.folder / "checkpoints" / str(state["step"]))
    print(f"rank {rank}: {state['step']} steps")


if __name__ == "__main__":
    main()
