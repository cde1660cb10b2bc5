"""Train a tiny language model on Python's own sources, shuffled exactly, padded per batch.

python examples/train_tokens.py --steps 50
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import shufflestore as ss

RECORD_BYTES = 128


def records(file_count: int) -> Iterator[dict[str, Any]]:
    """Yield the standard library's sources as bytes, cut into records of different lengths."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:file_count]
    for number, path in enumerate(files):
        tokens = np.frombuffer(path.read_bytes(), np.uint8).astype(np.uint16)
        for start in range(0, len(tokens), RECORD_BYTES):
            yield {"tokens": tokens[start : start + RECORD_BYTES], "file": number}


class Model(nn.Module):
    """Predicts each next byte from those before it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (records, length, 256) logits for (records, length) tokens."""
        mixed, _ = self.mix(self.embed(tokens))
        logits: Tensor = self.out(mixed)
        return logits


def loss_of(model: Model, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean loss over what is no padding."""
    logits = model(tokens[:, :-1])
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    mask = torch.arange(1, tokens.shape[1]) < lengths[:, None]
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def main() -> None:
    """Make the store if there is none, then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="a folder for the store, kept; a temporary one if not given")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--files", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        store = args.store or Path(scratch) / "store"
        if not (store / "snapshots").is_dir():
            # A function, not an iterator: a killed conversion could then be resumed.
            ss.convert(lambda: records(args.files), store)
        # uint16 on disk becomes int64 while it is read, which is what an embedding takes.
        loader = ss.DataLoader(store, batch_size=args.batch_size, shuffle=True, seed=1, layout="padded")
        model = Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        step, losses = 0, []
        while step < args.steps:
            for batch in loader:  # each further iterator is the next epoch, in another order
                loss = loss_of(model, batch["tokens"].values, batch["tokens"].lengths)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
                losses.append(loss.item())
                step += 1
                if step % 10 == 0 or step == args.steps:
                    print(f"step {step}: loss {np.mean(losses[-10:]):.3f}")
                if step == args.steps:
                    break
        loader.close()
        assert losses[-1] < losses[0], "training should lower the loss"


if __name__ == "__main__":
    main()
