"""Two processes of torch.distributed share an epoch: each finds its own part by itself.

python examples/distributed.py
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import shufflestore as ss

WORLD_SIZE = 2


def train(rank: int, folder: str, record_count: int) -> None:
    """One process. The loader asks torch.distributed who it is; nothing about ranks is said to it."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=60)
    )
    loader = ss.DataLoader(f"{folder}/store", batch_size=32, shuffle=True, seed=5, return_ids=True)
    for epoch in range(2):
        seen = torch.zeros(record_count, dtype=torch.int64)
        steps = 0
        for batch in loader:  # equally many steps on all ranks, so collectives in the loop are safe
            seen[batch["record_id"]] += 1
            steps += 1
            total = batch["value"].sum()
            dist.all_reduce(total)
        assert steps == len(loader), (steps, len(loader))
        dist.all_reduce(seen)
        assert bool((seen == 1).all()), "every record exactly once over both ranks"
        if rank == 0:
            print(f"epoch {epoch}: {steps} steps on each of {WORLD_SIZE} ranks, {record_count:,} records exactly once")
    loader.close()
    dist.destroy_process_group()


def main() -> None:
    """Convert, then start the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1001)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ss.convert([{"value": i} for i in range(args.records)], Path(folder) / "store")
        spawn(train, (folder, args.records), nprocs=WORLD_SIZE)  # type: ignore[no-untyped-call]  # torch's own


if __name__ == "__main__":
    main()
