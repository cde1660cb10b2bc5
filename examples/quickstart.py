"""Convert a real data set and iterate it in exact global shuffle, beside the Hugging Face loader.

The data is text that every machine with Python has: the sources of the interpreter and of the
installed packages, or any tar archive of sources (--archive). It is tokenized by a byte-level BPE
that is trained on a part of it, and cut into records of at most 1,024 tokens.

Run: bash examples/quickstart.sh
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import shufflestore as ss

RECORD_TOKENS = 1024
VOCABULARY = 8192
BATCH = 256
SCHEMA = pa.schema([("tokens", pa.list_(pa.int32())), ("path", pa.string()), ("part", pa.int32())])
console = Console()


# -- the data: files -> tokens -> Parquet ----------------------------------------------------------


def python_sources() -> Iterator[tuple[str, str]]:
    """Yield (path, text) of the Python files on this machine, sorted by folder."""
    purelib, stdlib = (Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))
    base = Path(sys.base_prefix) / stdlib.relative_to(stdlib.anchor).name / "site-packages"
    seen: set[Path] = set()
    for root in (purelib, stdlib, base, Path("/usr/lib/python3/dist-packages"), Path("/usr/share")):
        for path in sorted(root.rglob("*.py")) if root.is_dir() else ():
            real = path.resolve()
            if real not in seen and real.is_file():
                seen.add(real)
                yield str(path), real.read_text("utf-8", errors="replace")


def archived_sources(archive: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of the sources in a tar archive, in its order."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith((".c", ".h", ".S", ".py", ".rs", ".rst", ".txt")):
                file = tar.extractfile(member)
                assert file is not None, "a regular file has contents"
                yield member.name, file.read().decode("utf-8", errors="replace")


def some(sources: Iterable[tuple[str, str]], megabytes: float) -> Iterator[tuple[str, str]]:
    """Yield sources that are not empty until they are so many megabytes."""
    left = megabytes * 1e6
    for path, text in sources:
        if text.strip():
            yield path, text[:1_000_000]
            left -= min(len(text), 1_000_000)
        if left < 0:
            return


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer trained on some texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def records_of(tokenizer: Any, files: list[tuple[str, str]]) -> pa.Table:
    """Return the records of some files: each file's tokens, cut to at most RECORD_TOKENS."""
    tokens: list[Any] = []
    paths: list[str] = []
    parts: list[int] = []
    for (path, _), encoded in zip(files, tokenizer.encode_batch_fast([text for _, text in files]), strict=True):
        ids = np.array(encoded.ids, np.int32)
        for part, start in enumerate(range(0, len(ids), RECORD_TOKENS)):
            tokens.append(ids[start : start + RECORD_TOKENS])
            paths.append(path)
            parts.append(part)
    return pa.table([tokens, paths, parts], schema=SCHEMA)


def groups(sources: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    """Yield lists of sources of about so many characters together."""
    group: list[tuple[str, str]] = []
    held = 0
    for source in sources:
        group.append(source)
        held += len(source[1])
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def tokenize(folder: Path, sources: Callable[[], Iterator[tuple[str, str]]], megabytes: float) -> None:
    """Write Parquet files of tokens into a folder; each group of about 4 MB of text becomes a row group."""
    with console.status("training a byte-level BPE"):
        sample = itertools.islice(some(sources(), megabytes), 0, None, 13)
        tokenizer = train_tokenizer((text for _, text in some(sample, 6)), VOCABULARY)
    files = size = records = 0
    writer: pq.ParquetWriter | None = None
    with console.status("tokenizing") as status:
        for number, group in enumerate(groups(some(sources(), megabytes), 4_000_000)):
            if number % 4 == 0:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(folder / f"tokens-{number // 4:04d}.parquet", SCHEMA)
            assert writer is not None, "made for the first group"
            table = records_of(tokenizer, group)
            writer.write_table(table)
            files, size, records = files + len(group), size + sum(len(t) for _, t in group), records + len(table)
            status.update(f"tokenizing: {files:,} files, {size / 1e6:,.0f} of {megabytes:,.0f} MB, {records:,} records")
    if writer is None:
        raise SystemExit("no sources found; give an archive with --archive")
    writer.close()
    console.print(
        f"  {files:,} files, {size / 1e6:,.0f} MB of text -> {records:,} records of up to {RECORD_TOKENS:,} tokens"
    )


def prepare(folder: Path, archive: Path | None, megabytes: float) -> Path:
    """Return a folder of Parquet files, made unless a run before this one made it."""
    target, wanted = folder / "parquet", {"archive": str(archive), "megabytes": megabytes, "vocabulary": VOCABULARY}
    note = target / "_made.json"
    if note.is_file() and json.loads(note.read_text()) == wanted:
        console.print(f"  using the tokens of an earlier run in {target}")
        return target
    for old in ("parquet", "huggingface"):
        shutil.rmtree(folder / old, ignore_errors=True)
    target.mkdir(parents=True)
    tokenize(target, (lambda: archived_sources(archive)) if archive else python_sources, megabytes)
    note.write_text(json.dumps(wanted))
    return target


# -- conversion ------------------------------------------------------------------------------------


def convert(source: Path, store: Path) -> ss.ConvertReport:
    """Convert the Parquet files, with live progress."""
    columns = (
        TextColumn("  converting"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def progress(records: int, written: int, done: int, total: int | None) -> None:
            seconds = max(time.monotonic() - started, 1e-9)
            rate = f"{records:,} records, {written / 1e6:,.0f} MB, {written / 1e6 / seconds:,.0f} MB/s"
            bar.update(task, completed=max(done, min(written, total or 0)), total=total, rate=rate)

        report = ss.convert(source, store, if_exists="overwrite", options=ss.ConvertOptions(progress=progress))
    ss.gc(store)
    return report


# -- the race --------------------------------------------------------------------------------------


@dataclass
class Lane:
    """One loader and how far it has come."""

    name: str
    batches: Callable[[], Iterable[Any]]
    """Begins another epoch."""
    records: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds if self.seconds else 0.0

    def row(self) -> tuple[str, ...]:
        """What a line of the table shows."""
        if not self.seconds:
            return self.name, "-", "-", "-"
        return self.name, f"{self.rate:,.0f}", f"{self.tokens / self.seconds / 1e6:,.1f} M", f"{self.records:,}"


def shown(lanes: list[Lane]) -> Table:
    """Return all lanes as a table."""
    table = Table("loader", "records/s", "tokens/s", "records")
    for lane in lanes:
        table.add_row(*lane.row())
    return table


def run(lane: Lane, seconds: float, show: Callable[[], None]) -> None:
    """Take batches for so many seconds, epoch after epoch, showing how it goes."""
    started = last = time.monotonic()
    while True:
        for batch in lane.batches():
            values, offsets = (batch["tokens"].values, batch["tokens"].offsets) if isinstance(batch, dict) else batch
            lane.records += len(offsets) - 1
            lane.tokens += len(values)
            lane.seconds = time.monotonic() - started
            if time.monotonic() - last > 0.25:
                last = time.monotonic()
                show()
            if lane.seconds > seconds:
                return


def jagged(records: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Collate as a training loop over the Hugging Face set would: values and offsets."""
    import torch

    lengths = torch.tensor([0, *(len(r["tokens"]) for r in records)])
    return torch.cat([r["tokens"] for r in records]), lengths.cumsum(0)


def lanes_for(parquet: Path, store: Path, cache: Path, workers: int) -> list[Lane]:
    """Return the loaders to compare: the same columns, batch size and result."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_parquet([str(p) for p in sorted(parquet.glob("*.parquet"))], cache_dir=str(cache))
    saved = saved.select_columns(["tokens"]).with_format("torch")

    def theirs(count: int) -> Callable[[], Iterable[Any]]:
        return lambda: DataLoader(saved, BATCH, shuffle=True, num_workers=count, collate_fn=jagged)

    ours = ss.DataLoader(store, batch_size=BATCH, shuffle=True, seed=0, columns=["tokens"])
    return [
        Lane("shufflestore, exact global shuffle", lambda: ours),
        Lane("Hugging Face datasets + torch DataLoader", theirs(0)),
        Lane(f"the same with {workers} worker processes", theirs(workers)),
    ]


def race(lanes: list[Lane], seconds: float) -> None:
    """Run one loader after another, so that none takes the other's processor, with one live table."""
    with Live(shown(lanes), console=console, auto_refresh=False) as live:
        printed = time.monotonic()

        def show() -> None:
            nonlocal printed
            live.update(shown(lanes), refresh=True)
            if not console.is_terminal and time.monotonic() - printed > 2:
                printed = time.monotonic()
                print("  " + "; ".join(f"{lane.name}: {lane.rate:,.0f} records/s" for lane in lanes), flush=True)

        for lane in lanes:
            run(lane, seconds, show)
        live.update(shown(lanes), refresh=True)
    console.print()


def check_exactly_once(store: Path) -> None:
    """Go through one epoch and hold the ids that came against those that should."""
    data = ss.open(store)
    counts = np.zeros(len(data), np.int64)
    first: list[int] = []
    for batch in ss.DataLoader(data, batch_size=BATCH, shuffle=True, seed=0, columns=["tokens"], return_ids=True):
        ids = batch["record_id"].numpy()
        first = first or ids[:8].tolist()
        np.add.at(counts, ids, 1)
    if not (counts == 1).all():
        raise SystemExit(f"record {int(np.argmax(counts != 1))} came {int(counts[counts != 1][0])} times")
    console.print(f"  epoch 0 begins with the records {first}; all {len(data):,} came exactly once")


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description="Convert a real data set and iterate it in exact global shuffle.")
    home = Path(__file__).parents[1] / "data" / "quickstart"
    parser.add_argument("--data", type=Path, default=home, help="working folder")
    parser.add_argument("--archive", type=Path, help="a tar archive of sources instead of Python's")
    parser.add_argument("--megabytes", type=float, default=120.0, help="of text at most")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each loader")
    parser.add_argument("--workers", type=int, default=2, help="of the Hugging Face loader's second lane")
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    folder = args.data / ("python" if args.archive is None else args.archive.name.split(".tar")[0])

    console.rule("1. text to tokens", align="left")
    parquet = prepare(folder, args.archive, args.megabytes)
    console.rule("2. convert", align="left")
    report = convert(parquet, folder / "store")
    console.print(
        f"  {report.record_count:,} records, {report.byte_count / 1e6:,.0f} MB in {report.shard_count} shards, "
        f"{report.duration_seconds:.1f} s -> {folder / 'store'}"
    )
    console.rule("3. every record exactly once", align="left")
    check_exactly_once(folder / "store")
    console.rule("4. throughput, one loader after another", align="left")
    lanes = lanes_for(parquet, folder / "store", folder / "huggingface", args.workers)
    race(lanes, args.seconds)
    best = max(lanes[1:], key=lambda lane: lane.rate)
    console.print(
        f"  shufflestore: {lanes[0].rate / lanes[1].rate:,.0f} x the Hugging Face loader, "
        f"{lanes[0].rate / best.rate:,.0f} x its faster lane"
    )


if __name__ == "__main__":
    main()
