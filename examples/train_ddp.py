"""PyTorch DDP: may be killed at any time and started again with any number of processes.

Run: torchrun --nproc-per-node 2 examples/train_ddp.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import shufflestore as ss


def main() -> None:
    """Train a line through 103 points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("run-ddp"), help="of data, checkpoint and log")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, store, checkpoint = dist.get_rank(), args.folder / "store", args.folder / "checkpoint.pt"
    if rank == 0 and not store.exists():
        ss.convert([{"x": i / 103, "y": 3 * i / 103 + 1} for i in range(103)], store)
    dist.barrier()

    loader = ss.DataLoader(store, batch_size=args.batch_size, shuffle=True, seed=1, return_ids=True)
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
        first, step = saved["epoch"], saved["step"]

    with (args.folder / f"seen-{dist.get_world_size()}-{rank}.txt").open("a") as seen:
        for epoch in range(first, args.epochs):
            for batch in loader:
                step += 1
                print(epoch, step, *batch["record_id"].tolist(), file=seen, flush=True)
                loss = torch.nn.functional.mse_loss(model(batch["x"].float()[:, None])[:, 0], batch["y"].float())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
                if step % 3 == 0 and rank == 0:
                    state = {"model": model.state_dict(), "loader": loader.state_dict(), "epoch": epoch, "step": step}
                    torch.save(state, args.folder / "new.pt")
                    (args.folder / "new.pt").replace(checkpoint)  # a kill leaves the old state or the new one
    print(f"rank {rank}: {step} steps, {model.module.weight.item():.2f} x + {model.module.bias.item():.2f}")


if __name__ == "__main__":
    main()
