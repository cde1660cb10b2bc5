"""A training loop on a device, end to end: is the data right there, and what does the loop wait for?

python -m benchmarks.harness.training OUT_FOLDER    # on a machine with a GPU; leaves training.json and training.md
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import shufflestore as ss

__all__ = ["Sizes", "checks", "run", "steps"]

VOCABULARY = 4096


class Sizes:
    """How much of everything; small where nothing is timed."""

    def __init__(self, is_small: bool) -> None:
        self.records = 2_000 if is_small else 200_000
        self.batch = 4 if is_small else 256
        self.tokens = 33 if is_small else 257
        self.steps = 4 if is_small else 200
        self.width, self.layers = (16, 1) if is_small else (512, 6)


def tokens_of(number: int) -> np.ndarray[Any, Any]:
    """A record: its tokens follow from its number, so that a batch proves itself."""
    length = 64 + (number * 7919) % 449
    return ((np.arange(length) * 31 + number * 17) % VOCABULARY).astype(np.uint16)


def build(folder: Path, count: int) -> Path:
    """Convert `count` records."""
    ss.convert(({"tokens": tokens_of(i), "n": i} for i in range(count)), folder / "store")
    return folder / "store"


def checks(store: Path, device: torch.device, is_small: bool) -> dict[str, Any]:
    """Look at pinned memory, non-blocking copies and buffers that are kept. Returns what was seen."""
    seen: dict[str, Any] = {}
    expects_pinned = device.type == "cuda"
    for workers, transform in ((0, None), (0, dict), (2, dict)):
        loader = ss.DataLoader(
            store, 64, shuffle=True, pin_memory=expects_pinned, num_workers=workers, transform=transform
        )
        pinned = records = 0
        kept: list[tuple[Any, Any, Any]] = []
        for step, batch in enumerate(loader):
            parts = (batch["tokens"].values, batch["tokens"].offsets, batch["n"])
            pinned += sum(part.is_pinned() for part in parts)
            moved = tuple(part.to(device, non_blocking=True) for part in parts)
            kept.append(moved)
            records += len(batch["n"])
            if step == (4 if is_small else 60):
                break
        loader.close()
        if device.type == "cuda":
            torch.cuda.synchronize()
        for values, offsets, numbers in kept:  # after all copies: none was overwritten by a later batch
            at = offsets.tolist()
            flat = values.cpu().numpy()
            for i, number in enumerate(numbers.tolist()):
                assert np.array_equal(flat[at[i] : at[i + 1]], tokens_of(number)), (
                    f"record {number} is wrong on {device}"
                )
        assert pinned == (3 * len(kept) if expects_pinned else 0), f"{pinned} of {3 * len(kept)} tensors are pinned"
        seen[f"{workers} workers, {'a' if transform else 'no'} transform"] = (
            f"{records} records right, {pinned} tensors pinned"
        )
    data = torch.utils.data.TensorDataset(torch.arange(1000), torch.arange(2000).reshape(1000, 2))
    for workers in (0, 2):
        count = 0
        for numbers, pairs in ss.DataLoader(data, 50, shuffle=True, pin_memory=expects_pinned, num_workers=workers):
            assert numbers.is_pinned() == pairs.is_pinned() == expects_pinned
            there = pairs.to(device, non_blocking=True)
            assert torch.equal(there[:, 0].cpu(), 2 * numbers)
            count += len(numbers)
        assert count == 1000
        seen[f"TensorDataset, {workers} workers"] = "1000 records right"
    return seen


class Model(nn.Module):
    """A small transformer over padded tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, sizes.width)
        layer = nn.TransformerEncoderLayer(sizes.width, 8, 4 * sizes.width, batch_first=True, dropout=0.0)
        self.body = nn.TransformerEncoder(layer, sizes.layers, enable_nested_tensor=False)
        self.head = nn.Linear(sizes.width, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the loss of predicting the next token."""
        hidden = self.body(self.embed(tokens[:, :-1]), is_causal=True, mask=_causal(tokens))
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), tokens[:, 1:].flatten())


def _causal(tokens: torch.Tensor) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(tokens.shape[1] - 1, device=tokens.device)


def steps(batches: Iterable[Any], sizes: Sizes, device: torch.device, model: nn.Module, optimizer: Any) -> float:
    """Train for so many steps. Returns the seconds a step, first five left out."""
    begin, items = 0.0, iter(batches)
    for step in range(sizes.steps + 5):
        if step == 5:
            _settle(device)
            begin = time.perf_counter()
        batch = next(items)
        tokens = batch["tokens"].values[:, : sizes.tokens].to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(tokens)
        loss.backward()
        optimizer.step()
    _settle(device)
    return (time.perf_counter() - begin) / sizes.steps


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def repeated(batch: Any) -> Iterator[Any]:
    """One batch for ever: a loader that costs nothing."""
    while True:
        yield batch


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def run(is_small: bool, rounds: int = 3) -> dict[str, Any]:
    """Check and measure. Returns what was found, by name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = Sizes(is_small)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        store = build(Path(folder), sizes.records)
        found: dict[str, Any] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
        found["checks"] = checks(store, device, is_small)
        model = Model(sizes).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        pin = device.type == "cuda"

        def ours() -> Any:
            return ss.DataLoader(store, sizes.batch, shuffle=True, layout="padded", pin_memory=pin, columns=["tokens"])

        def kept() -> Iterator[Any]:
            batch = next(iter(ours()))
            batch["tokens"] = batch["tokens"].to(device)
            return repeated(batch)

        contenders: dict[str, Callable[[], Any]] = {"a kept batch": kept, "ours": lambda: endless(ours())}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, make in contenders.items():
                times[name].append(steps(make(), sizes, device, model, optimizer))
        loader = ours()
        steps(endless(loader), sizes, device, model, optimizer)
        stats = loader.stats()
    for name, all_times in times.items():
        found[f"ms a step, {name}"] = round(statistics.median(all_times) * 1e3, 3)
    ratios = [ours_ / kept_ for ours_, kept_ in zip(times["ours"], times["a kept batch"], strict=True)]
    found["step with the loader / step on a kept batch"] = round(statistics.median(ratios), 4)
    found["share of the loop that waited for the loader"] = round(stats.stall_share or 0.0, 5)
    found["stats"] = str(stats)
    return found


if __name__ == "__main__":
    import argparse
    import json

    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness.training", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT_FOLDER", help="is made; gets training.json and training.md")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    results = run(is_small=not torch.cuda.is_available())
    results["torch"] = torch.__version__
    (out / "training.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = ["# Training on a device, end to end", "", "`python -m benchmarks.harness.training OUT_FOLDER`", ""]
    (out / "training.md").write_text(
        "\n".join([*lines, *(f"- {key}: {value}" for key, value in results.items())]) + "\n"
    )
    print(json.dumps(results, indent=1))
