"""`shufflestore convert`."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import asdict

from shufflestore.cli.sizes import byte_size, count, readable
from shufflestore.convert.base import KINDS, SourceOptions
from shufflestore.convert.run import ConvertOptions, convert
from shufflestore.convert.shards import ShardOptions

__all__ = ["register", "run"]


def register(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `shufflestore convert`."""
    p = commands.add_parser("convert", help="write a data set that can be read in any order")
    p.add_argument("source", help="a file, a folder or a quoted glob; see --from for kinds")
    p.add_argument("target", help="a new or empty folder, or a prefix in an object store, e.g. s3://bucket/data")
    p.add_argument("--from", dest="kind", choices=sorted(KINDS), help="kind of the source; detected if not given")
    p.add_argument("--columns", help="names of the columns to keep, separated by commas")
    p.add_argument("--if-exists", choices=("error", "resume", "append", "overwrite"), default="error")
    p.add_argument("--workers", type=count, help="processes; one a processor if not given")
    p.add_argument(
        "--shard-bytes", type=byte_size, default=ShardOptions().shard_bytes, metavar="SIZE", help="default 256MiB"
    )
    p.add_argument("--chunk-rows", type=count, metavar="N", help="records an Arrow record batch; by size if not given")
    p.add_argument(
        "--no-narrow", dest="narrow", action="store_false",
        help="store the integers of lists as they are declared, not in the smallest width that holds a shard's",
    )  # fmt: skip
    p.add_argument("--delimiter", help="of CSV files; a tab in .tsv and a comma in others if not given")
    p.add_argument("--token-dtype", choices=("uint16", "uint32"), help="of a raw token file (.bin); default uint16")
    p.add_argument("--record-tokens", type=count, metavar="N", help="cut a token file into records of N tokens")
    p.add_argument("--end-token", type=int, metavar="ID", help="token that ends a document of a token file")
    p.add_argument(
        "--staging-folder", metavar="FOLDER", help="where shards for an object store are written first; default TMPDIR"
    )
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Convert and print what was written."""
    given = {key: getattr(args, key) for key in ("delimiter", "token_dtype", "record_tokens", "end_token")}
    source = SourceOptions(**{key: value for key, value in given.items() if value is not None})
    bar = None if args.quiet or args.json or not sys.stderr.isatty() else _Bar()
    options = ConvertOptions(
        kind=args.kind, worker_count=args.workers, source=source, progress=bar, staging_folder=args.staging_folder,
        shards=ShardOptions(shard_bytes=args.shard_bytes, chunk_rows=args.chunk_rows, narrow=args.narrow),
    )  # fmt: skip
    columns = args.columns.split(",") if args.columns else None
    try:
        done = convert(args.source, args.target, columns=columns, if_exists=args.if_exists, options=options)
    finally:
        if bar is not None:
            bar.end()
    if args.json:
        print(json.dumps(asdict(done)))
        return 0
    rate = done.record_count / max(done.duration_seconds, 1e-9)
    again = f" ({done.resumed_shard_count} of them already there)" if done.resumed_shard_count else ""
    print(
        f"{done.record_count:,} records in {done.shard_count:,} shards{again}, {readable(done.byte_count)}, "
        f"{done.duration_seconds:.1f} s, {rate:,.0f} records/s -> {args.target} (snapshot {done.snapshot})"
    )
    return 0


class _Bar:
    """One line on the terminal: records, bytes, rate, time left."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, records: int, written: int, source: int, source_total: int | None) -> None:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        share = max(source, min(written, source_total or 0)) / source_total if source_total else 0.0
        left = f", {elapsed / share * (1 - share):,.0f} s left" if 0 < share < 1 else ""
        line = f"{records:,} records, {readable(written)}, {readable(written / elapsed)}/s{left}"
        print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the line."""
        print(f"\r{'':<79}\r", end="", file=sys.stderr, flush=True)
