"""`shufflestore cache`."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path

from shufflestore.cli.sizes import byte_size, readable
from shufflestore.dataset.dataset import BatchOptions
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.storage.cache_room import clear, described
from shufflestore.storage.cached import CachedStore

__all__ = ["register", "run"]

_BATCH = 1024
"""Records asked for at a time; their blocks are fetched together."""


def register(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `shufflestore cache`."""
    p = commands.add_parser("cache", help="fill a local cache of a remote data set, or tell or remove what it keeps")
    p.add_argument("uri", nargs="?", help="an object store or HTTP server; without it, tell what the cache keeps")
    p.add_argument("--cache-dir", required=True, metavar="FOLDER", help="empty, new, or a cache")
    p.add_argument("--cache-limit", type=byte_size, metavar="SIZE", help="of all that the folder keeps, e.g. 10GB")
    p.add_argument("--split", help="its name, if there are several")
    p.add_argument("--clear", action="store_true", help="first remove all that no process reads")
    p.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Read every block of a data set once through its cache, in the order of storage; or list what is kept."""
    if args.clear:
        clear(Path(args.cache_dir))
    if args.uri is None:
        return _told(args)
    with open_dataset(args.uri, args.split, cache_dir=args.cache_dir, cache_limit=args.cache_limit) as data:
        store = data.reading.store
        assert isinstance(store, CachedStore), "opened with a folder"
        done = 0
        for batch in data.batches(_BATCH, format="arrow", options=BatchOptions()):
            done += len(batch)
            if not args.json and sys.stderr.isatty():
                print(f"\r{done:,} of {len(data):,} records", end="", file=sys.stderr, flush=True)
        counts = store.counters()
        kept, passed = store.files.kept_bytes, counts["cache_passed"]
    if args.json:
        print(json.dumps({"records": done, "kept_bytes": kept, "reads_not_kept": passed}))
        return 0
    if sys.stderr.isatty():
        print(f"\r{'':<79}\r", end="", file=sys.stderr, flush=True)
    rest = f"; {passed:,} reads found no room: raise --cache-limit" if passed else ""
    print(f"{args.uri}: {done:,} records read, {readable(kept)} kept in {args.cache_dir}{rest}")
    return 0


def _told(args: Namespace) -> int:
    found = described(Path(args.cache_dir))
    if args.json:
        print(json.dumps(found))
        return 0
    for one in found:
        print(f"{readable(one['bytes']):>10}  {'in use' if one['in_use'] else 'idle  '}  {one['place']}")
    print(f"{readable(sum(one['bytes'] for one in found)):>10}  together")
    return 0
