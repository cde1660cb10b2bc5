"""`shufflestore verify`."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import asdict

from shufflestore.cli.sizes import readable
from shufflestore.dataset.verify import verify

__all__ = ["register", "run"]


def register(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `shufflestore verify`."""
    p = commands.add_parser("verify", help="hold every byte of a data set against its checksums")
    p.add_argument("path", help="a store, or data with a row index")
    p.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Verify, print each problem, return 1 if there is one."""

    def progress(done: int, total: int) -> None:
        if not args.json and sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} records", end="", file=sys.stderr, flush=True)

    report = verify(args.path, progress)
    if args.json:
        print(json.dumps(asdict(report) | {"is_sound": report.is_sound}))
        return int(not report.is_sound)
    if sys.stderr.isatty():
        print(f"\r{'':<79}\r", end="", file=sys.stderr, flush=True)
    for problem in report.problems:
        print(problem)
    if report.problem_count > len(report.problems):
        print(f"... and {report.problem_count - len(report.problems):,} more")
    if report.unchecked_shard_count:
        print(f"{report.unchecked_shard_count} shards were indexed without checksums: only their row index was checked")
    verdict = "sound" if report.is_sound else f"{report.problem_count:,} problems"
    print(f"{args.path}: {report.record_count:,} records, {readable(report.byte_count)} checked: {verdict}")
    return int(not report.is_sound)
