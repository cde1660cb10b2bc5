"""Kill two training processes in the middle of an epoch and go on with three: nothing is lost or repeated.

A state is where the epoch stands over all ranks, so any rank's state serves any number of ranks.

Run: python examples/resume.py
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import shufflestore as ss

SAVE_EVERY = 4
"""Steps between checkpoints."""


def train(folder: Path, rank: int, world_size: int, batch_size: int, slow: float) -> None:
    """One rank: deliver batches, note which records they held, save the state every few steps."""
    state = folder / "state.json"
    with ss.DataLoader(
        folder / "store", batch_size=batch_size, shuffle=True, rank=rank, world_size=world_size, return_ids=True
    ) as loader:
        if state.exists():
            loader.load_state_dict(json.loads(state.read_text()))
        with (folder / f"seen-{world_size}-{rank}.txt").open("w") as seen:
            for step, batch in enumerate(loader, 1):
                print(*batch["record_id"].tolist(), file=seen, flush=True)
                if rank == 0 and step % SAVE_EVERY == 0:
                    wait_for_all(folder, world_size, step)
                    fresh = state.with_suffix(".new")
                    fresh.write_text(json.dumps(loader.state_dict()))
                    fresh.replace(state)  # at once: a kill leaves the old state or the new one
                time.sleep(slow)


def wait_for_all(folder: Path, world_size: int, step: int) -> None:
    """Return once every rank has had so many batches, as the gradients' all-reduce would see to in training."""
    deadline = time.monotonic() + 60
    for rank in range(world_size):
        seen = folder / f"seen-{world_size}-{rank}.txt"
        while not seen.exists() or len(steps_seen(seen)) < step:
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {rank} did not come to step {step} within 60 s")
            time.sleep(0.005)


def start(folder: Path, world_size: int, batch_size: int, slow: float) -> list[subprocess.Popen[bytes]]:
    """Start all ranks of a run."""
    common = [sys.executable, __file__, "--folder", str(folder), "--world-size", str(world_size)]
    return [
        subprocess.Popen([*common, "--rank", str(rank), "--batch-size", str(batch_size), "--slow", str(slow)])
        for rank in range(world_size)
    ]


def steps_seen(file: Path) -> list[list[int]]:
    """Return the records of each batch that a rank noted; a line that a kill cut short does not count."""
    lines = file.read_text().splitlines(keepends=True)
    return [[int(word) for word in line.split()] for line in lines if line.endswith("\n")]


def main() -> None:
    """Run, kill, go on, and hold what came against what should have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--rank", type=int, help="internal: this process is a rank")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--slow", type=float, default=0.02, help="seconds that a step takes")
    args = parser.parse_args()
    if args.rank is not None:
        train(args.folder, args.rank, args.world_size, args.batch_size, args.slow)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ss.convert([{"value": i * i} for i in range(args.records)], folder / "store")

        ranks = start(folder, 2, batch_size=8, slow=0.02)
        deadline = time.monotonic() + 60
        while not (folder / "state.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        for process in ranks:
            process.send_signal(signal.SIGKILL)
        codes = [process.wait(timeout=60) for process in ranks]
        saved = json.loads((folder / "state.json").read_text())["position"]
        print(f"killed two ranks (exit codes {codes}); the saved state: {saved} of {args.records} records delivered")

        for process in start(folder, 3, batch_size=5, slow=0.0):
            assert process.wait(timeout=120) == 0, "a rank failed"

        # What came up to the saved state, and all that came after it.
        before = [i for r in range(2) for batch in steps_seen(folder / f"seen-2-{r}.txt")[: saved // 16] for i in batch]
        after = [i for r in range(3) for batch in steps_seen(folder / f"seen-3-{r}.txt") for i in batch]
        assert sorted(before + after) == list(range(args.records)), "a record was lost or came twice"
        print(f"{len(before)} records before, {len(after)} after on three ranks: every record exactly once")


if __name__ == "__main__":
    main()
