"""Which store a path or URI means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from shufflestore.errors import OptionError

__all__ = ["Place", "is_remote", "local_path", "place_of"]

KINDS: Final = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "adl": "az", "abfs": "az", "abfss": "az",
    "http": "http", "https": "http", "hf": "hf",
}  # fmt: skip
"""Scheme of a URI -> kind of store."""


@dataclass(frozen=True)
class Place:
    """A prefix in an object store, taken apart."""

    uri: str
    """As a person wrote it, without a slash at the end."""
    kind: str
    """"s3", "gs", "az", "http" or "hf"."""
    root: str
    """The URI of the bucket, container or server."""
    prefix: str
    """What every name begins with, "a/b"; empty for the root itself."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is the URI of an object store or an HTTP server.

    >>> is_remote("s3://bucket/data"), is_remote("/data"), is_remote("file:///data"), is_remote("C:/data")
    (True, False, False, False)
    """
    return isinstance(path, str) and _scheme(path) in KINDS


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a local path, from a `file://` URI too.

    Raises:
        OptionError: The URI has a scheme that no store here answers to, or names another machine.

    >>> local_path("file:///data/a%20b")
    PosixPath('/data/a b')
    """
    if not isinstance(path, str) or not (scheme := _scheme(path)):
        return Path(path)
    if scheme != "file":
        raise OptionError(
            f"{path}: no store answers to {scheme}://; known are file, {', '.join(sorted(KINDS))}, and plain paths"
        )
    parts = urlsplit(path)
    if parts.netloc not in ("", "localhost"):
        raise OptionError(f"{path}: a file:// URI has three slashes, as in file:///{parts.netloc}{parts.path}")
    return Path(unquote(parts.path))


def place_of(uri: str) -> Place:
    """Take the URI of an object store apart.

    Raises:
        OptionError: It names no bucket, container or server, or has a query, which could not be part of a prefix.

    >>> place_of("s3://bucket/a/b/").prefix
    'a/b'
    >>> place_of("https://example.com/sets/c4").root
    'https://example.com'
    """
    scheme = _scheme(uri)
    if scheme not in KINDS:
        raise OptionError(f"{uri}: not the URI of an object store; known are {', '.join(sorted(KINDS))}")
    kind, clean = KINDS[scheme], uri.rstrip("/")
    if kind == "hf":
        return Place(clean, kind, *_hub_parts(clean))
    parts = urlsplit(clean)
    if not parts.netloc:
        raise OptionError(f"{uri}: no bucket or server; write it as in {scheme}://name/folder")
    if parts.query or (kind == "http" and parts.fragment):
        raise OptionError(
            f"{uri}: a data set is many files under one prefix, and a query or fragment would be part of none of their "
            "names; pass tokens in storage_options={'default_headers': {...}}"
        )
    prefix = parts.path.strip("/")
    if kind == "http":
        prefix = unquote(prefix)  # the client quotes it again
    elif parts.fragment:  # a key may have a "#"
        prefix = f"{prefix}#{parts.fragment}"
    return Place(clean, kind, f"{scheme}://{parts.netloc}", prefix)


def _hub_parts(uri: str) -> tuple[str, str]:
    """Return server and prefix of `hf://[datasets/|spaces/]owner/name[@revision][/folder]`, as the Hub serves files."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    rest = uri.partition("://")[2].split("/")
    kind = [rest.pop(0)] if rest[0] in ("datasets", "spaces") else []
    if len(rest) < 2 or not all(rest):
        raise OptionError(f"{uri}: a place on the Hub is hf://datasets/owner/name[@revision][/folder]")
    owner, (name, _, revision) = rest[0], rest[1].partition("@")
    folder = rest[2:]
    # A revision with slashes is one part of the address; elsewhere the client quotes.
    where = [*kind, owner, name, "resolve", quote(unquote(revision) or "main", safe="")]
    return f"{endpoint}/{'/'.join(where)}", "/".join(folder)


def _scheme(path: str) -> str:
    """Return the scheme in lower case, empty where a path has none."""
    scheme, mark, _ = path.partition("://")
    return scheme.lower() if mark and scheme.replace("+", "").replace("-", "").isalnum() else ""
