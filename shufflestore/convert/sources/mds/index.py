"""index.json of MDS folders: which shards there are, and what is in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from shufflestore.convert.base import flat_paths
from shufflestore.convert.sources import split_of
from shufflestore.convert.sources.mds.columns import Column
from shufflestore.errors import SourceError

__all__ = ["Shard", "find_shards"]

_NAME: Final = "index.json"
_COMPRESSIONS: Final = {"zstd": "zstd", "gz": "gzip", "bz2": "bz2", "br": "brotli"}
"""Streaming's names and pyarrow's."""


@dataclass(frozen=True)
class Shard:
    """One shard as its index tells of it."""

    index: str
    split: str
    name: str
    """Relative to the folder that was given."""
    path: str
    """The file to read: the plain one if it is there."""
    compression: str | None
    raw_bytes: int
    samples: int
    columns: tuple[Column, ...]


def find_shards(location: Any) -> list[Shard]:
    """Return the shards of a location, those of an index in its order, indexes sorted by name.

    A folder's own index.json tells of all that is in the folder; without one, each index.json below it is
    a split by the name of its folder, see `split_of`.

    Raises:
        SourceError: There is no index, it is none, or a file that it names is absent or of another size.
    """
    found: list[Shard] = []
    for split, part in location.items() if isinstance(location, dict) else ((None, location),):
        for path in flat_paths(part):
            here = Path(path)
            if here.name == _NAME and here.is_file():
                here = here.parent
            indexes = [here / _NAME] if (here / _NAME).is_file() else sorted(here.rglob(_NAME))
            if not indexes:
                raise SourceError(
                    f"{path} holds no {_NAME}, which says what MDS shards hold; give the folder that MDSWriter wrote"
                )
            for index in indexes:
                folder = "" if index.parent == here else f"{index.parent.relative_to(here).as_posix()}/"
                found += _read(index, folder, split or split_of(folder or _NAME))
    return found


def _read(index: Path, folder: str, split: str) -> list[Shard]:
    try:
        told = json.loads(index.read_bytes())
        if told["version"] != 2:
            raise SourceError(f"{index} has version {told['version']!r}; version 2 is read")
        return [_shard(index, folder, split, one) for one in told["shards"]]
    except OSError as e:
        raise SourceError(f"{index} cannot be read ({e})") from e
    except SourceError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise SourceError(f"{index} is no index of MDS shards ({e!r}); it is damaged, or of another library") from e


def _shard(index: Path, folder: str, split: str, told: dict[str, Any]) -> Shard:
    raw, packed = told["raw_data"], told["zip_data"]
    name = str(raw["basename"])
    if told["format"] != "mds":
        raise SourceError(f"{index}: shard {name} has the format {told['format']!r}; convert such files as they are")
    columns = tuple(
        Column(str(column), str(encoding), int(size) if size else None)
        for column, encoding, size in zip(
            told["column_names"], told["column_encodings"], told["column_sizes"], strict=True
        )
    )
    compression, path, size = None, _inside(index, name), int(raw["bytes"])
    if packed and not path.is_file():
        compression = _COMPRESSIONS.get(str(told["compression"]).split(":")[0])
        if compression is None:
            raise SourceError(
                f"{index}: shard {packed['basename']} is compressed with {told['compression']!r}; "
                f"{', '.join(_COMPRESSIONS)} are read"
            )
        path, size = _inside(index, str(packed["basename"])), int(packed["bytes"])
    if not path.is_file():
        raise SourceError(f"{path} is absent, but {index} names it; the folder was copied in part: copy it again")
    if path.stat().st_size != size:
        raise SourceError(
            f"{path} has {path.stat().st_size:,} bytes, {size:,} by its index.json; it was cut short or changed: copy it again"
        )
    return Shard(
        str(index), split, folder + name, str(path), compression, int(raw["bytes"]), int(told["samples"]), columns
    )


def _inside(index: Path, name: str) -> Path:
    """Return the path of a file that an index names, which lies in its folder or below."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{index} names the file {name!r}, which lies outside of its folder")
    return index.parent / name
