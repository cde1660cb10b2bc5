"""Arrow data that others wrote: which files, in which order, and what beside them matters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shufflestore.errors import FormatError, NotFound, SourceError

__all__ = ["Foreign", "ForeignSplit", "discover"]

_JSON_LIMIT: Final = 16 << 20
"""A state.json lists files, so it grows with them; beyond this it is none."""


@dataclass(frozen=True)
class ForeignSplit:
    """One split's files, relative to the folder."""

    name: str
    files: tuple[str, ...]
    indices: tuple[str, ...] = ()
    """Arrow files of an indices mapping, as older `datasets` saved; empty for none."""
    columns: tuple[str, ...] | None = None
    """Columns that a saved format restricts delivery to; None for all."""


@dataclass(frozen=True)
class Foreign:
    """A folder of Arrow files, or one file."""

    folder: Path
    splits: tuple[ForeignSplit, ...]
    single: str | None = None
    """The file's name where one file was named."""


def discover(path: Path) -> Foreign:
    """Return what lies at a path.

    A Hugging Face `save_to_disk` folder (Dataset or DatasetDict), a folder of Arrow files or one
    Arrow file.

    Raises:
        NotFound: Nothing is there.
        SourceError: A folder without Arrow files.
        FormatError: Its `state.json` or `dataset_dict.json` is damaged.
    """
    if path.is_file():
        return Foreign(path.parent, (ForeignSplit("train", (path.name,)),), path.name)
    if not path.is_dir():
        raise NotFound(f"{path}: nothing is there; give a store, a Hugging Face folder or an Arrow file")
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(_is_name(n) and "/" not in n for n in names) or not names:
            raise FormatError(f'{path / "dataset_dict.json"}: "splits" must list names, not {names!r}')
        return Foreign(path, tuple(_split(path, name, name) for name in names))
    if (path / "state.json").is_file():
        return Foreign(path, (_split(path, "", _name_of(path)),))
    files = tuple(sorted(p.name for p in path.iterdir() if p.suffix in (".arrow", ".feather") and p.is_file()))
    if not files:
        raise SourceError(
            f"{path}: neither a store (no snapshots/) nor Arrow data (no *.arrow, no state.json); "
            "convert it first: `shufflestore convert SOURCE TARGET`"
        )
    return Foreign(path, (ForeignSplit("train", files),))


def _name_of(folder: Path) -> str:
    split = _json(folder / "state.json").get("_split")
    return split if isinstance(split, str) and split.isidentifier() else "train"


def _split(folder: Path, inner: str, name: str) -> ForeignSplit:
    prefix = f"{inner}/" if inner else ""
    place = folder / inner / "state.json"
    if not place.is_file():
        raise FormatError(f"{place}: missing, although dataset_dict.json names the split {name!r}")
    state = _json(place)
    columns = state.get("_format_columns")
    if columns is not None and not isinstance(columns, list):
        raise FormatError(f'{place}: "_format_columns" must list columns, not {columns!r}')
    if state.get("_output_all_columns"):
        columns = None
    chosen = None if columns is None else tuple(str(c) for c in columns)
    files = _names(state, "_data_files", place)
    if not files:
        raise FormatError(f"{place}: names no data files")
    indices = _names(state, "_indices_data_files", place)
    return ForeignSplit(name, tuple(prefix + f for f in files), tuple(prefix + f for f in indices), chosen)


def _names(state: Mapping[str, Any], key: str, place: Path) -> list[str]:
    listed = state.get(key) or []
    names = [e.get("filename") if isinstance(e, dict) else None for e in listed] if isinstance(listed, list) else [None]
    good = [str(n) for n in names if _is_name(n)]
    if len(good) != len(names):
        raise FormatError(f"{place}: {key!r} must list file names within the folder, not {listed!r:.200}")
    return good


def _is_name(value: object) -> bool:
    """Whether a value names a file or folder within the one at hand, whoever wrote it."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()  # half of a surrogate pair is no name
    except UnicodeEncodeError:
        return False
    return all(part not in ("", ".", "..") for part in value.split("/"))


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError(f"{path.stat().st_size:,} bytes, at most {_JSON_LIMIT:,} are read")
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as cause:
        raise FormatError(f"{path}: cannot be read as JSON ({cause})") from cause
    if not isinstance(value, dict):
        raise FormatError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value
