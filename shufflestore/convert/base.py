"""The Source contract: what conversion reads from, and how a source is found for a value.

A source is cut into *pieces* that are read on their own, in any order, by any process; what
they hold and how they are named is a function of the input alone. Kinds are named by strings
here and loaded when used, so that one kind's needs are nobody else's.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

import pyarrow as pa

from shufflestore.errors import OptionError, SourceError

__all__ = ["KINDS", "Piece", "Source", "SourceOptions", "SourceSpec", "detect", "from_spec"]

KINDS: Final[Mapping[str, str]] = {
    "arrow": "shufflestore.convert.sources.arrow:ArrowSource",
    "csv": "shufflestore.convert.sources.csv:CsvSource",
    "huggingface": "shufflestore.convert.sources.huggingface:HuggingFaceSource",
    "imagefolder": "shufflestore.convert.sources.imagefolder:ImageFolderSource",
    "iterable": "shufflestore.convert.sources.iterable.source:IterableSource",
    "jsonl": "shufflestore.convert.sources.jsonl:JsonlSource",
    "mds": "shufflestore.convert.sources.mds.source:MdsSource",
    "parquet": "shufflestore.convert.sources.parquet:ParquetSource",
    "tokens": "shufflestore.convert.sources.tokens:TokensSource",
    "webdataset": "shufflestore.convert.sources.webdataset.source:WebDatasetSource",
}
"""Where each kind lives, "module:Class". Each class takes (location, options, resolved schema or None)."""

SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "arrow": (".arrow", ".arrows", ".feather", ".ipc"),
    "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    "imagefolder": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "jsonl": tuple(stem + end for stem in (".jsonl", ".ndjson") for end in ("", ".gz", ".zst")),
    "mds": tuple(f".mds{end}" for end in ("", ".zstd", ".gz", ".bz2", ".br")),
    "parquet": (".parquet", ".pq"),
    "tokens": (".bin", ".npy"),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
}
"""By what names the kinds that are files are known. Plain `.json` counts only where nothing else is found, images
only where they are at least half of the files: figures lie beside data of every kind."""

JSON_SUFFIXES: Final = (".json", ".json.gz", ".json.zst")
BOUNDS_SUFFIX: Final = ".bounds.npy"
"""Stands beside a flat token file and is never one itself."""
_SAVED: Final = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves at the top of a folder."""
_NOT_DATA: Final = frozenset((*_SAVED, "dataset_info.json", "dataset_infos.json"))


@dataclass(frozen=True)
class Piece:
    """One part of a source that is read on its own: a file, some row groups, a range of bytes."""

    name: str
    """For errors and provenance, e.g. "train-00003.parquet[row groups 4:8]"; unique within a source."""
    split: str
    byte_count: int
    """About what the records take in memory or in the file: for bundling and progress, not exact."""
    record_count: int | None
    """None where counting would mean reading."""
    key: tuple[Any, ...]
    """JSON values by which the source finds it."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; `from_json` undoes it."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"key": list(self.key)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Piece:
        """Return the piece that `to_json` was called on."""
        return Piece(**{**value, "key": tuple(value["key"])})


@dataclass(frozen=True)
class SourceOptions:
    """How to read. Each kind heeds what concerns it."""

    columns: tuple[str, ...] | None = None
    """Which columns, in this order; None for all."""
    schema: pa.Schema | Mapping[str, pa.DataType | str] | None = None
    """A pa.Schema fixes all columns, absent ones being null; a mapping changes the types of those it names."""
    piece_bytes: int | None = None
    """None for the kind's own: 64 MiB of JSON text, else 128 MiB, so that a thousand cores find work in 128 GB."""
    batch_bytes: int = 8 << 20
    """Large enough to amortize a call, small enough that hundreds fit in memory; bounds memory, not results."""
    use_threads: bool = False
    """Decode one piece with many threads. Off, since pieces are already read side by side."""
    delimiter: str | None = None
    """Between the values of a line of CSV; None for tabs in `.tsv` and commas in all else."""
    token_dtype: str | None = None
    """Of a raw token file, e.g. "uint32"; None for uint16, what vocabularies under 65,536 are stored as."""
    token_header_bytes: int = 0
    """Bytes before the first token of a raw token file, e.g. 1,024 in llm.c's."""
    record_tokens: int | None = None
    """Cut flat tokens into records of this many."""
    drop_tail: bool = False
    """Leave out tokens that fill no record at the end of a file; otherwise they are an error."""
    end_token: int | None = None
    """A document ends with this token, which stays with it."""
    bounds: str | None = None
    """An .npy file of int64 document offsets, [0, ..., tokens]; None for `<file>.bounds.npy` where there is one."""

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise OptionError(f"columns is the string {self.columns!r}; give a list: columns=[{self.columns!r}]")
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(self.columns))
            if not self.columns or len(set(self.columns)) != len(self.columns):
                raise OptionError(f"columns is {list(self.columns)}; give at least one name, and none twice")
        if isinstance(self.schema, Mapping):
            object.__setattr__(self, "schema", {name: _type(name, t) for name, t in self.schema.items()})
        elif self.schema is not None and not isinstance(self.schema, pa.Schema):
            raise OptionError(f"schema is a {type(self.schema).__name__}; give a pyarrow.Schema or {{column: type}}")
        for name in ("piece_bytes", "batch_bytes", "record_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; give at least 1")
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or self.delimiter in '"\r\n' or self.delimiter > "~"
        ):
            raise OptionError(
                f"delimiter is {self.delimiter!r}; give one ASCII character that is no quote or end of line"
            )
        if self.token_header_bytes < 0:
            raise OptionError(f"token_header_bytes is {self.token_header_bytes}; give 0 or more")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value of what is not default; `from_json` undoes it."""
        value = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.columns is not None:
            value["columns"] = list(self.columns)
        if isinstance(self.schema, pa.Schema):
            value["schema"] = schema_to_text(self.schema)
        elif self.schema is not None:
            value["schema"] = {name: schema_to_text(pa.schema([(name, t)])) for name, t in self.schema.items()}
        return value

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SourceOptions:
        """Return the options that `to_json` was called on."""
        schema = value.get("schema")
        if isinstance(schema, str):
            schema = schema_from_text(schema)
        elif schema is not None:
            schema = {name: schema_from_text(text).field(0).type for name, text in schema.items()}
        return SourceOptions(**{**value, "schema": schema})


@dataclass(frozen=True)
class SourceSpec:
    """All that another process needs to read the same pieces; made of JSON values."""

    kind: str
    location: Any
    """A path, a list of paths or a mapping of splits to them, absolute."""
    options: Mapping[str, Any]
    schema: str
    """The source's schema, so that files need not be looked through again."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; `from_json` undoes it."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SourceSpec:
        """Return the spec that `to_json` was called on."""
        return SourceSpec(**value)


@runtime_checkable
class Source(Protocol):
    """What conversion reads from. Making one is cheap; files are looked through by `schema` and `pieces`.

    `read` may be called for several pieces at once from several threads.
    """

    kind: str

    @property
    def is_replayable(self) -> bool:
        """Whether reading again gives the same records: False for a plain iterator."""
        ...

    def schema(self) -> pa.Schema:
        """Return the one schema of all pieces.

        Raises:
            SchemaError: Files disagree; both are named, with the column and both types.
            SourceError: There is nothing to read, or a file is damaged.
        """
        ...

    def pieces(self) -> Sequence[Piece]:
        """Return the pieces in the order of sorted names; a function of the input alone.

        One of `record_count` 0 is never read; it tells of a split without records.
        """
        ...

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records in `schema()`, in memory that does not grow with the piece.

        Raises:
            SourceError: A file is damaged or a line malformed; file and row or line are named.
            SchemaError: A value does not fit the schema.
        """
        ...

    def spec(self) -> SourceSpec | None:
        """Return what `from_spec` takes; None if the source can be read in this process only."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of names, sizes, times and options; a resumed conversion refuses another."""
        ...


def detect(source: Any, kind: str | None = None, options: SourceOptions | None = None) -> Source:
    """Return the source for a value.

    Args:
        source: A path or glob (also a list of them, or a mapping of splits to them), a folder, a
            `datasets.Dataset` or `DatasetDict`, a folder written by `save_to_disk`, or anything that
            gives dicts: a list, a map-style data set, an iterator, a function that returns one.
        kind: One of `KINDS` where the name of a file does not say it; None to find out.
        options: How to read.

    Raises:
        SourceError: Nothing is there, or of no known kind, or of several.
        OptionError: `kind` is unknown.
    """
    if kind is not None and kind not in KINDS:
        raise OptionError(f"kind is {kind!r}; give one of {', '.join(KINDS)}, or None to find out")
    options = options or SourceOptions()
    location = as_location(source)
    if kind is None:
        kind = _kind_of_value(source) if location is None else kind_of_location(location)
    elif location is None and kind not in ("huggingface", "iterable"):
        raise SourceError(f"kind {kind!r} reads files, but the source is a {_name(source)}; give a path")
    return _load(kind, source if location is None else location, options, None)


def from_spec(spec: SourceSpec | Mapping[str, Any]) -> Source:
    """Return the source that `spec` was taken from, without looking through its files.

    Args:
        spec: From `Source.spec`, or its `to_json`.
    """
    spec = spec if isinstance(spec, SourceSpec) else SourceSpec.from_json(spec)
    return _load(spec.kind, spec.location, SourceOptions.from_json(spec.options), schema_from_text(spec.schema))


def _load(kind: str, location: Any, options: SourceOptions, resolved: pa.Schema | None) -> Source:
    module, _, name = KINDS[kind].partition(":")
    return cast(Source, getattr(importlib.import_module(module), name)(location, options, resolved))


def schema_to_text(schema: pa.Schema) -> str:
    """Return a schema, metadata included, as text."""
    return base64.b64encode(schema.serialize()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """Return what `schema_to_text` was given."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _type(name: str, value: pa.DataType | str) -> pa.DataType:
    if isinstance(value, pa.DataType):
        return value
    try:
        return pa.type_for_alias(value)
    except ValueError:
        raise OptionError(
            f"schema names the type {value!r} for column {name!r}, which Arrow does not know; give a name such as "
            "'int64' or 'string', or a pyarrow.DataType such as pyarrow.list_(pyarrow.int32())"
        ) from None


def _name(source: Any) -> str:
    return f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")


# Paths


def as_location(source: Any) -> Any:
    """Return a path, a list of paths or a mapping of splits to them with absolute paths; None for another value.

    Raises:
        SourceError: It is a URL.
    """
    if isinstance(source, (str, Path)):
        text = str(source)
        if "://" in text:
            raise SourceError(
                f"{text} is a URL; sources are read from local paths: download it, or open it with "
                "datasets.load_dataset and give the Dataset"
            )
        return str(Path(text).expanduser().absolute())
    if isinstance(source, Mapping):
        found = {str(split): as_location(where) for split, where in source.items()}
        is_paths = bool(found) and not any(where is None or isinstance(where, dict) for where in found.values())
        return found if is_paths else None
    if isinstance(source, (list, tuple)) and source and all(isinstance(s, (str, Path)) for s in source):
        return [as_location(s) for s in source]
    return None


def flat_paths(location: Any) -> list[str]:
    """Return the paths of a location in the order given."""
    if isinstance(location, str):
        return [location]
    parts = location.values() if isinstance(location, dict) else location
    return [path for part in parts for path in flat_paths(part)]


def is_data_file(name: str) -> bool:
    """Whether a file in a folder may hold records: not hidden, not a marker such as `_SUCCESS`."""
    return not (name[:1] in "._" or name in _NOT_DATA or name.endswith(BOUNDS_SUFFIX))


def kind_of_location(location: Any) -> str:
    """Return the kind of the files at a location. Raises SourceError if there is none, or several."""
    found: dict[str, str] = {}
    for path in flat_paths(location):
        found.setdefault(_kind_of_path(path), path)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise SourceError(f"{a} is {first} but {b} is {second}; convert them one by one, or force one with kind=")
    return next(iter(found))


def _kind_of_path(path: str) -> str:
    here = Path(path)
    if here.is_file():
        return _kind_of_name(here.name) or _sniff(here)
    if here.is_dir():
        if any((here / name).is_file() for name in _SAVED):
            return "huggingface"
        names = [p.name for p in here.rglob("*") if p.is_file() and is_data_file(p.name)]
    else:
        names = [Path(name).name for name in expand_glob(path)]
    counts: dict[str, int] = {}
    for name in names:
        kind = _kind_of_name(name)
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + 1
    if counts.get("imagefolder", 0) < sum(counts.values()) / 2:
        counts.pop("imagefolder", None)
    if not counts and any(name.endswith(JSON_SUFFIXES) for name in names):
        return "jsonl"
    if len(counts) == 1:
        return next(iter(counts))
    if counts:
        what = " and ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
        raise SourceError(f"{path} holds {what} files; choose with kind={min(counts)!r}, or give a narrower glob")
    raise SourceError(f"{path} holds {_unknown(names)}; {_known()}")


def _unknown(names: Sequence[str]) -> str:
    return f"{len(names):,} files of no known kind, such as {min(names)}" if names else "no data files"


def _known() -> str:
    listed = "; ".join(f"{kind}: {' '.join(ends)}" for kind, ends in SUFFIXES.items())
    return f"known are ({listed}); force one with kind=, e.g. kind='jsonl'"


def _kind_of_name(name: str) -> str | None:
    return next((kind for kind, ends in SUFFIXES.items() if name.lower().endswith(ends)), None)


def _sniff(path: Path) -> str:
    """Return the kind of one file by its first bytes, its name saying nothing."""
    with path.open("rb") as file:
        head = file.read(8)
    for kind, starts in {"parquet": (b"PAR1",), "arrow": (b"ARROW1", b"\xff\xff\xff\xff"), "jsonl": (b"{",)}.items():
        if head.startswith(starts):
            return kind
    raise SourceError(f"{path} is of no known kind by its name or its first bytes {head!r}; {_known()}")


def expand_glob(path: str) -> list[str]:
    """Return the files that a pattern matches, sorted. Raises SourceError if nothing is there."""
    if not any(sign in path for sign in "*?["):
        parent = next(p for p in Path(path).parents if p.exists())
        raise SourceError(f"{path} does not exist; the nearest folder that does is {parent}")
    anchor = Path(path).anchor
    found = sorted(str(p) for p in Path(anchor).glob(path.removeprefix(anchor)) if p.is_file())
    if not found:
        raise SourceError(f"no file matches {path}; check the pattern, ** matches folders at any depth")
    return found


# Values


def _kind_of_value(source: Any) -> str:
    name = _name(source)
    if name.startswith("datasets."):
        if hasattr(source, "save_to_disk"):
            return "huggingface"
        if isinstance(source, Mapping):
            raise SourceError(f"a {name} streams several splits; convert them one by one: source['train']")
        return "iterable"
    is_map_style = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    is_records = hasattr(source, "__iter__") or callable(source) or is_map_style
    if is_records and not isinstance(source, (Mapping, bytes)):
        return "iterable"
    raise SourceError(
        f"a {name} is no source; give a path, a folder, a glob, a datasets.Dataset or DatasetDict, or an iterable of "
        f"dicts (kinds: {', '.join(KINDS)}; force one with kind=)"
    )
