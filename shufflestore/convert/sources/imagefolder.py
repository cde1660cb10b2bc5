"""Folders of images, one a class as torchvision and Hugging Face have them, or flat; a piece is a run of one folder's files."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from shufflestore.convert.base import SUFFIXES, Piece, is_data_file
from shufflestore.convert.sources import SPLIT_WORDS, FileSource, conform, resolve_schema
from shufflestore.errors import SourceError
from shufflestore.lazy import lazy

__all__ = ["ImageFolderSource"]

_PIECE_BYTES: Final = 128 << 20
_MAX_IMAGE_BYTES: Final = 1 << 30
"""With a batch of as many bytes before it, what Arrow's binary, the type of Hugging Face's Image, can hold."""
_IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_BATCH_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class _Root:
    """A folder of classes, or of images."""

    split: str
    path: str
    prefix: str
    """What stands before a file's name in the column `path`: its split's folder."""
    classes: tuple[str, ...] | None
    """Names of its folders; None where images lie in it."""


class ImageFolderSource(FileSource):
    """Images as they are on disk: `image` {bytes, path}, and `label`, the number of its class among the sorted names.

    The schema's metadata says so to `datasets`, which opens the result with Image and ClassLabel.
    """

    kind = "imagefolder"

    def __init__(self, *args: Any) -> None:
        """See `FileSource`."""
        super().__init__(*args)
        self._digest = ""
        self._listed_folder: tuple[str, list[str]] = ("", [])
        """The folder read last and its images: a flat one of millions is listed once, not once a piece."""

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records; holds one batch of images. Without the column `image`, no image is opened."""
        folder, prefix, label, first, last = piece.key
        schema = self.schema()
        listed = self._names(folder)
        names = listed[bisect_left(listed, first) : bisect_right(listed, last)]
        if len(names) != piece.record_count:
            raise SourceError(
                f"{piece.name} holds {len(names):,} images now, not {piece.record_count:,}; it was changed"
            )
        limit = min(self._options.batch_bytes, _BATCH_BYTES)
        images: list[dict[str, Any]] = []
        held = 0
        for number, name in enumerate(names, start=1):
            data = _load(f"{folder}/{name}") if "image" in schema.names else b""
            images.append({"bytes": data, "path": f"{prefix}{name}"})
            held += len(data) + 64
            if held >= limit or number == len(names):
                arrays = [pa.array(images, _IMAGE), pa.array([label] * len(images), pa.int64())]
                batch = pa.RecordBatch.from_arrays(arrays, names=["image", "label"])
                yield conform(batch, schema, f"{folder} up to {name}")
                images, held = [], 0

    def fingerprint(self) -> str:
        """Return a digest of names, sizes, times and options; see `Source.fingerprint`."""
        self.pieces()
        text = json.dumps([self.kind, self._options.to_json(), self._digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _names(self, folder: str) -> list[str]:
        listed = self._listed_folder
        if listed[0] != folder:
            with _named(folder):
                listed = (folder, [image.name for image in _images(folder)])
            self._listed_folder = listed
        return listed[1]

    @lazy
    def _roots(self) -> list[_Root]:
        location = self._location
        splits = location if isinstance(location, dict) else {None: location}
        return [root for split, path in splits.items() for root in _find_roots(split, path)]

    def _classes(self) -> list[str]:
        """Return the names of all classes of all splits, sorted; one that a split lacks counts all the same."""
        return sorted({name for root in self._roots for name in root.classes or ()})

    def _find_schema(self) -> pa.Schema:
        classes = self._classes()
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        fields = [pa.field("image", _IMAGE)]
        if classes:
            features["label"] = {"names": classes, "_type": "ClassLabel"}
            fields.append(pa.field("label", pa.int64()))
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        return resolve_schema(pa.schema(fields, metadata), self._options, self.where)

    def _find_pieces(self) -> list[Piece]:
        limit = self._options.piece_bytes or _PIECE_BYTES
        numbers = {name: number for number, name in enumerate(self._classes())}
        digest = hashlib.sha256()
        pieces: list[Piece] = []
        for root in self._roots:
            for name in root.classes or (None,):
                label = None if name is None else numbers[name]
                top = root.path if name is None else f"{root.path}/{name}"
                before = len(pieces)
                for folder in _folders(top) if name is not None else [top]:
                    prefix = root.prefix + ("" if folder == root.path else f"{os.path.relpath(folder, root.path)}/")
                    pieces += _cut(root.split, folder, prefix, label, limit, digest)
                if len(pieces) == before:
                    raise SourceError(
                        f"{top} holds no images ({' '.join(SUFFIXES[self.kind])}), and each folder is a class; remove it, "
                        "or give the folder in which the classes lie"
                    )
        self._digest = digest.hexdigest()
        return pieces


def _find_roots(split: str | None, path: Any) -> list[_Root]:
    """Return the roots in a folder: its split folders if all its folders are named so, else itself."""
    if not isinstance(path, str) or not Path(path).is_dir():
        raise SourceError(
            f"{path} is no folder; images are read from a folder of classes or of images, or from "
            "{split: folder}: labels are the names of folders"
        )
    with _named(path):
        names = _subfolders(path)
        images = _images(path)
    if names and not images and split is None and all(name.lower() in SPLIT_WORDS for name in names):
        return [_root(SPLIT_WORDS[name.lower()], f"{path}/{name}", f"{name}/") for name in names]
    return [_root(split or "train", path, "")]


def _root(split: str, path: str, prefix: str) -> _Root:
    with _named(path):
        names = _subfolders(path)
        images = _images(path)
    if names and images:
        raise SourceError(
            f"{path} holds folders, such as {names[0]}, and images beside them, such as {images[0].name}; either all images "
            "lie in folders, which are their classes, or none"
        )
    if not names and not images:
        raise SourceError(f"{path} holds no images ({' '.join(SUFFIXES['imagefolder'])}); check the path")
    return _Root(split, path, prefix, tuple(names) if names else None)


def _subfolders(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and is_data_file(entry.name))


def _folders(top: str) -> Iterator[str]:
    """Yield a folder and those in it at any depth, in the order of their names; links in it are not followed."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    with _named(top):
        for folder, below, _ in os.walk(top, onerror=fail):  # which passes over what it cannot read unless told
            below[:] = [name for name in below if is_data_file(name)]
            found.append(folder)
    yield from sorted(found)


def _images(folder: str) -> list[os.DirEntry[str]]:
    """Return the images that lie in a folder itself, sorted by name."""
    ends = SUFFIXES["imagefolder"]
    entries = [e for e in os.scandir(folder) if e.name.lower().endswith(ends) and is_data_file(e.name) and e.is_file()]
    return sorted(entries, key=lambda entry: entry.name)


def _cut(split: str, folder: str, prefix: str, label: int | None, limit: int, digest: Any) -> list[Piece]:
    """Return the pieces of one folder, and add its files to the digest."""
    runs: list[list[Any]] = []  # [first name, last name, count, bytes]
    with _named(folder):
        for image in _images(folder):
            name, stat = image.name, image.stat()
            digest.update(f"{split}\0{prefix}{name}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
            if not runs or runs[-1][3] + stat.st_size > limit:
                runs.append([name, name, 0, 0])
            runs[-1][1:] = [name, runs[-1][2] + 1, runs[-1][3] + stat.st_size]
    return [
        Piece(f"{split}: {prefix}[{first} to {last}]", split, size, count, (folder, prefix, label, first, last))
        for first, last, count, size in runs
    ]


def _load(path: str) -> bytes:
    with _named(path):
        data = Path(path).read_bytes()
    if not 0 < len(data) <= _MAX_IMAGE_BYTES:
        raise SourceError(
            f"{path} has {len(data):,} bytes, an image 1 to {_MAX_IMAGE_BYTES:,}; remove it or copy it again"
        )
    return data


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Give the system's errors the name of the file."""
    try:
        yield
    except OSError as e:
        raise SourceError(f"{path} cannot be read ({e}); it was removed, changed, or may not be read") from e
    except UnicodeEncodeError as e:
        raise SourceError(f"{path} holds a name that is not UTF-8 ({e}); rename it") from e
