"""Sizes on the command line: in, with units; out, readable."""

from __future__ import annotations

import argparse
import re
from typing import Final

__all__ = ["byte_size", "count", "readable"]

_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def byte_size(text: str) -> int:
    """Return a number of bytes, e.g. of "256MiB", "1.5gb" or "4096". Raises argparse.ArgumentTypeError.

    >>> byte_size("1.5KiB")
    1536
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not match or int(float(match[1]) * _UNITS[match[2]]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write e.g. 256MiB, 1GB or 4096")
    return int(float(match[1]) * _UNITS[match[2]])


def count(text: str) -> int:
    """Return an integer of at least 1. Raises argparse.ArgumentTypeError."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; an integer of at least 1 is needed")
    return int(text)


def readable(size: float) -> str:
    """Return a number of bytes for people.

    >>> readable(1536), readable(12)
    ('1.5 KiB', '12 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
