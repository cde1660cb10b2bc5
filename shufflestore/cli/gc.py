"""`shufflestore gc`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import asdict

from shufflestore.cli.sizes import count, readable
from shufflestore.dataset.gc import GRACE_SECONDS, gc

__all__ = ["register", "run"]


def register(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `shufflestore gc`."""
    p = commands.add_parser("gc", help="remove old snapshots and files that no snapshot names")
    p.add_argument("path", help="a store, in a folder or an object store")
    p.add_argument("--keep", type=count, default=1, metavar="N", help="newest snapshots to keep; default 1")
    p.add_argument(
        "--grace", type=float, default=GRACE_SECONDS, metavar="SECONDS",
        help="leave files younger than this that no snapshot names; default one day",
    )  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="only say what would go")
    p.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Remove and print what was removed."""
    done = gc(args.path, keep=args.keep, grace_seconds=args.grace, dry_run=args.dry_run)
    if args.json:
        print(json.dumps(asdict(done)))
        return 0
    verb = "would remove" if args.dry_run else "removed"
    for name in done.removed:
        print(f"{verb} {name}")
    print(f"{args.path}: {verb} {len(done.removed):,} files, {readable(done.freed_bytes)}")
    return 0
