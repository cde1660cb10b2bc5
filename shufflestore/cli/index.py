"""`shufflestore index`."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace, _SubParsersAction

from shufflestore.cli.sizes import readable
from shufflestore.dataset.inplace import index

__all__ = ["register", "run"]


def register(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `shufflestore index`."""
    p = commands.add_parser("index", help="make Arrow data readable in any order where it lies, without rewriting it")
    p.add_argument("path", help="a Hugging Face save_to_disk folder, a folder of Arrow files, or one")
    p.add_argument("--no-checksums", action="store_true", help="read offsets only; later damage then goes unnoticed")
    p.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Index and print where the index is."""
    started = time.monotonic()
    size = 0

    def progress(name: str, done: int, total: int) -> None:
        nonlocal size
        size = total
        if not args.json and sys.stderr.isatty():
            print(f"\r{readable(done)} of {readable(total)}: {name:<40.40}", end="", file=sys.stderr, flush=True)

    folder = index(args.path, checksums=not args.no_checksums, progress=progress)
    seconds = time.monotonic() - started
    if args.json:
        print(json.dumps({"path": args.path, "index": str(folder), "data_bytes": size, "duration_seconds": seconds}))
    else:
        if sys.stderr.isatty():
            print(f"\r{'':<79}\r", end="", file=sys.stderr, flush=True)
        print(f"{readable(size)} indexed in {seconds:.1f} s -> {folder}")
    return 0
