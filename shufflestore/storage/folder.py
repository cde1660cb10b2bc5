"""What every store on a file system shares: names under a root, small files, listings.

Large reads are the engines' work; see `storage.posix` for the plain one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from shufflestore.errors import NotFound, OptionError, ShardTruncated, StorageError
from shufflestore.storage import commit

__all__ = ["Folder", "pread_fully"]

_FOREIGN_MARK: Final = "@"


class Folder:
    """Names, small files and listings under one root: what every store on a file system shares.

    A name is relative and uses "/". A name that begins with "@key/" lies under roots[key]: data
    indexed in place stays where it is while its index is in a cache folder.
    """

    def __init__(self, root: str | os.PathLike[str], roots: Mapping[str, str] | None = None) -> None:
        """Remember where it is; nothing is opened, and the folder need not exist yet.

        Args:
            root: A folder.
            roots: Other folders that names may refer to, by key.
        """
        self.root = os.fspath(root)
        self.roots = dict(roots or {})
        self.uri = self.root

    def path(self, name: str) -> str:
        """Return where a name lies. Raises OptionError for a name that could leave its root."""
        root, relative = self.root, name
        if name.startswith(_FOREIGN_MARK):
            key, _, relative = name[1:].partition("/")
            if key not in self.roots:
                raise OptionError(
                    f"{self.uri}: {name!r} refers to the root {key!r}, but there are {sorted(self.roots)}; pass roots="
                )
            root = self.roots[key]
        parts = relative.split("/")
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise OptionError(
                f"{self.uri}: {name!r} is not a name of a file here; a name is relative, with no empty part, "
                "no '.' and no '..'"
            )
        return f"{root}/{relative}"

    def size(self, name: str) -> int:
        """Return the length of a file in bytes. Raises NotFound."""
        path = self.path(name)
        try:
            return Path(path).stat().st_size
        except OSError as cause:
            raise self._explained(name, cause) from cause

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return one range, whole file by default. Raises NotFound, ShardTruncated."""
        path = self.path(name)
        if offset < 0 or (size is not None and size < 0):
            raise OptionError(f"{self.uri}: {name}: offset {offset} and size {size} must not be negative")
        try:
            with Path(path).open("rb", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size
                stop = length if size is None else offset + size
                if offset > length or stop > length:
                    raise ShardTruncated(
                        f"{self.uri}: {name}: bytes [{offset:,}, {stop:,}) are wanted but the file ends at "
                        f"{length:,}; the copy was probably cut short: run `shufflestore verify`"
                    )
                data = pread_fully(file.fileno(), stop - offset, offset)
        except StorageError:
            raise
        except OSError as cause:
            raise self._explained(name, cause) from cause
        if len(data) < stop - offset:
            raise ShardTruncated(f"{self.uri}: {name}: cut to {offset + len(data):,} bytes while being read")
        return data

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a small file durably; False, and nothing changed, if the name is taken."""
        path = Path(self.path(name))
        _make_folder(path.parent)
        return commit.publish(path, data)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin with `prefix`, sorted, temporary files left out."""
        above = prefix.rpartition("/")[0]
        start = self.path(above) if above and above not in self._marks() else self._mark_root(above)
        lead = f"{above}/" if above else ""
        found = []
        for folder, inner, files in os.walk(start):
            inner[:] = [name for name in inner if not name.startswith(commit.TEMPORARY)]
            relative = os.path.relpath(folder, start)
            here = lead if relative == "." else f"{lead}{relative}/"
            found += [here + name for name in files if not name.startswith(commit.TEMPORARY)]
        yield from sorted(name for name in found if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is no error."""
        commit.remove(Path(self.path(name)))

    def _marks(self) -> set[str]:
        return {_FOREIGN_MARK + key for key in self.roots}

    def _mark_root(self, mark: str) -> str:
        return self.roots[mark[1:]] if mark else self.root

    def _explained(self, name: str, cause: OSError) -> StorageError:
        what = f"{self.uri}: {name}: {cause.strerror} (errno {cause.errno})"
        if isinstance(cause, (FileNotFoundError, NotADirectoryError)):
            return NotFound(f"{what}; is {self.path(name)} the right place?")
        return StorageError(what)


def pread_fully(fd: int, size: int, offset: int) -> bytes:
    """Return `size` bytes, fewer only where the file ends."""
    first = os.pread(fd, size, offset)
    if len(first) == size or not first:
        return first
    parts = [first]
    missing = size - len(first)
    while missing and (part := os.pread(fd, missing, offset + size - missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as cause:
        raise StorageError(f"{folder}: cannot make the folder: {cause.strerror} (errno {cause.errno})") from cause
    commit.sync_folder(folder.parent)
