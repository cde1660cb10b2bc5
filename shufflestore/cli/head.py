"""`shufflestore head`."""

from __future__ import annotations

import base64
import json
from argparse import ArgumentParser, Namespace, _SubParsersAction
from typing import Any

from shufflestore.cli.sizes import count
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.opening import splits_of

__all__ = ["register", "run"]


def register(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `shufflestore head`."""
    p = commands.add_parser("head", help="print some records")
    p.add_argument("path", help="a store, or Arrow data where it lies")
    p.add_argument("-n", "--records", type=count, default=5, metavar="N", help="how many; default 5")
    p.add_argument("--split", help="the first one if not given")
    p.add_argument("--columns", help="names, separated by commas; all if not given")
    order = p.add_mutually_exclusive_group()
    order.add_argument(
        "--shuffle", action="store_true", help="the first of epoch 0 in global shuffle, not of the data set"
    )
    order.add_argument("--blocks", action="store_true", help='likewise with shuffle="blocks" and its defaults')
    p.add_argument("--seed", type=int, default=0, help="of the shuffle; default 0")
    p.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Print records, one a line."""
    data = open_dataset(args.path, args.split or splits_of(args.path)[0])
    wanted = min(args.records, len(data))
    columns = args.columns.split(",") if args.columns else None
    rows: list[dict[str, Any]] = []
    if wanted:
        rows = next(
            data.batches(
                wanted,
                shuffle="blocks" if args.blocks else args.shuffle,
                seed=args.seed,
                columns=columns,
                format="arrow",
            )
        ).to_pylist()
    if args.json:
        print(json.dumps({"path": args.path, "records": rows}, default=_jsonable))
        return 0
    for row in rows:
        print("{" + ", ".join(f"{name}: {_short(value)}" for name, value in row.items()) + "}")
    return 0


def _jsonable(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(_short(v) for v in value[:8])}, ... {len(value):,} in all]"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
