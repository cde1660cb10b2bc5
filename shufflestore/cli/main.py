"""Parse the command line, run one command, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence

import shufflestore
from shufflestore.cli import cache, convert, gc, head, index, info, verify
from shufflestore.errors import AlreadyExists, MissingDependency, NotFound, OptionError, ShuffleStoreError

__all__ = ["main"]

DONE, FAULTY, USAGE = 0, 1, 2
"""Exit codes: done, the data is at fault, the command line is."""
_USAGE_ERRORS = (OptionError, NotFound, AlreadyExists, MissingDependency)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: the data is at fault. 2: the command line is.
    """
    parser = argparse.ArgumentParser(
        prog="shufflestore", description="Training data in true random order at full speed.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"shufflestore {shufflestore.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (convert, index, info, head, verify, gc, cache):
        command.register(commands)
    for each in commands.choices.values():
        each.allow_abbrev = False  # which a sub-parser does not inherit
        each.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except ShuffleStoreError as error:
        return _failed(error, args.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that flushing at exit does not complain
        return 128 + signal.SIGPIPE


def _failed(error: ShuffleStoreError, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        print(f"shufflestore: {type(error).__name__}: {error}", file=sys.stderr)
    return USAGE if isinstance(error, _USAGE_ERRORS) else FAULTY
