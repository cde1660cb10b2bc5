"""What conversion reads from, one file a kind; `convert.base.KINDS` finds them.

Kinds never import each other. What they share is here: which files there are, in which splits
and under which names, one schema out of many files, and batches brought into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.types as pt

from shufflestore.convert.base import (
    JSON_SUFFIXES,
    SUFFIXES,
    Piece,
    SourceOptions,
    SourceSpec,
    expand_glob,
    flat_paths,
    is_data_file,
    schema_to_text,
)
from shufflestore.errors import SchemaError, SourceError

__all__ = [
    "FileSource", "InputFile", "common_type", "conform", "join_schemas", "list_files", "resolve_schema", "split_of",
]  # fmt: skip

SPLIT_WORDS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""How a folder or a file in one begins, and its split: the words of Hugging Face's hub."""
_WORD: Final = re.compile(r"^([a-z]+)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class InputFile:
    """One file of a source."""

    path: str
    name: str
    """Relative to the folder of all of them."""
    split: str
    byte_count: int
    mtime_ns: int


def list_files(location: Any, kind: str) -> list[InputFile]:
    """Return the files of a location.

    A folder's and a pattern's are sorted by name; those of a list stand as given. A folder's names
    say splits (`SPLIT_WORDS`), as do a mapping's keys; all else is "train". In folders, the suffixes
    of `kind` count.

    Raises:
        SourceError: Nothing is there, or one file twice.
    """
    found: list[tuple[str, str]] = []
    if isinstance(location, dict):
        for split, part in location.items():
            found += [(path, split) for one in flat_paths(part) for path, _ in _expand(one, kind)]
    else:
        found = [pair for one in flat_paths(location) for pair in _expand(one, kind)]
    paths = [path for path, _ in found]
    if len(set(paths)) < len(paths):
        doubled = next(path for path in paths if paths.count(path) > 1)
        raise SourceError(f"{doubled} is named twice in the source; name it once")
    is_folder = isinstance(location, str) and Path(location).is_dir()
    root = location if is_folder else os.path.commonpath([str(Path(path).parent) for path in paths])
    return [_stat(path, split, root) for path, split in found]


def _stat(path: str, split: str, root: str) -> InputFile:
    stat = Path(path).stat()
    return InputFile(path, Path(path).relative_to(root).as_posix(), split, stat.st_size, stat.st_mtime_ns)


def _expand(path: str, kind: str) -> list[tuple[str, str]]:
    """Return (file, split) of one path, folder or pattern."""
    here = Path(path)
    if here.is_file():
        return [(path, "train")]
    if not here.is_dir():
        return [(one, "train") for one in expand_glob(path) if is_data_file(Path(one).name)]
    names = sorted(p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file() and is_data_file(p.name))
    ends = SUFFIXES[kind]
    chosen = [name for name in names if name.lower().endswith(ends)]
    if not chosen and kind == "jsonl":
        chosen = [name for name in names if name.lower().endswith(JSON_SUFFIXES)]
    if not chosen:
        has = f"{len(names):,} others, such as {names[0]}" if names else "nothing else"
        raise SourceError(
            f"folder {path} holds no {kind} files ({' '.join(ends)}) but {has}; name them with a glob, e.g. {path}/*"
        )
    return [(str(here / name), split_of(name)) for name in chosen]


def split_of(name: str) -> str:
    """Return the split that a file's folders or, if none does, its own name begin with."""
    for part in name.split("/"):
        match = _WORD.match(part)
        if match and match[1].lower() in SPLIT_WORDS:
            return SPLIT_WORDS[match[1].lower()]
    return "train"


class FileSource:
    """The part of the Source contract that does not depend on what is in the files."""

    kind: ClassVar[str]

    def __init__(self, location: Any, options: SourceOptions, resolved: pa.Schema | None = None) -> None:
        """Take note of where the files are; nothing is opened.

        Args:
            location: See `convert.base.as_location`.
            options: How to read.
            resolved: The schema, where it is known from a spec.
        """
        self._location = location
        self._options = options
        self._schema = resolved
        self._listed: list[InputFile] | None = None
        self._pieces: list[Piece] | None = None

    @property
    def is_replayable(self) -> bool:
        """Whether reading again gives the same records: files do."""
        return True

    def schema(self) -> pa.Schema:
        """Return the one schema of all pieces; see `Source.schema`."""
        if self._schema is None:
            self._schema = self._find_schema()
        return self._schema

    def pieces(self) -> list[Piece]:
        """Return the pieces in order; see `Source.pieces`."""
        if self._pieces is None:
            self._pieces = self._find_pieces()
        return list(self._pieces)

    def spec(self) -> SourceSpec | None:
        """Return what another process needs; see `Source.spec`."""
        return SourceSpec(self.kind, self._location, self._options.to_json(), schema_to_text(self.schema()))

    def fingerprint(self) -> str:
        """Return a digest of names, sizes, times and options; see `Source.fingerprint`."""
        files = [(f.name, f.split, f.byte_count, f.mtime_ns) for f in self.files()]
        text = json.dumps([self.kind, self._options.to_json(), files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def files(self) -> list[InputFile]:
        """Return the files in order. Raises SourceError."""
        if self._listed is None:
            self._listed = list_files(self._location, self.kind)
        return self._listed

    @property
    def where(self) -> str:
        """The location, short enough for an error."""
        paths = flat_paths(self._location)
        return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1:,} more"

    def _find_schema(self) -> pa.Schema:
        raise NotImplementedError

    def _find_pieces(self) -> list[Piece]:
        raise NotImplementedError


# Schemas


def common_type(a: pa.DataType, b: pa.DataType, *, is_loose: bool = False) -> pa.DataType | None:
    """Return the type that holds the values of both without loss; None if there is none.

    Args:
        a: Wins where both are the same but for the names of list items.
        b: Another.
        is_loose: Types were guessed from JSON text or Python values: integers also become floats or,
            next to ones past int64, uint64 (a negative one is an error when read); structs may lack fields.
    """
    if a.equals(b) or pt.is_null(b):
        return a
    if pt.is_null(a):
        return b
    if pt.is_integer(a) and pt.is_integer(b):
        return _common_integer(a, b) or (pa.uint64() if is_loose else None)
    if pt.is_floating(a) and pt.is_floating(b):
        return a if a.bit_width >= b.bit_width else b
    if is_loose and all(pt.is_integer(t) or pt.is_floating(t) for t in (a, b)):
        return pa.float64()
    for narrow, wide in ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())):
        if a in (narrow, wide) and b in (narrow, wide):
            return wide
    if pt.is_struct(a) and pt.is_struct(b):
        return _common_struct(a, b, is_loose=is_loose)
    return _common_list(a, b, is_loose=is_loose)


def _common_integer(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pt.is_signed_integer(a) == pt.is_signed_integer(b):
        return a if a.bit_width >= b.bit_width else b
    signed, unsigned = (a, b) if pt.is_signed_integer(a) else (b, a)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _common_list(a: pa.DataType, b: pa.DataType, *, is_loose: bool) -> pa.DataType | None:
    is_fixed = pt.is_fixed_size_list(a) and pt.is_fixed_size_list(b) and a.list_size == b.list_size
    if not (is_fixed or all(pt.is_list(t) or pt.is_large_list(t) for t in (a, b))):
        return None
    value = common_type(a.value_type, b.value_type, is_loose=is_loose)
    if value is None:
        return None
    item = a.value_field.with_type(value)
    if is_fixed:
        return pa.list_(item, a.list_size)
    return pa.large_list(item) if pt.is_large_list(a) or pt.is_large_list(b) else pa.list_(item)


def _common_struct(a: pa.DataType, b: pa.DataType, *, is_loose: bool) -> pa.DataType | None:
    first, second = ({field.name: field for field in type_} for type_ in (a, b))
    if not is_loose and first.keys() != second.keys():
        return None
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        type_ = common_type(first[name].type, second[name].type, is_loose=is_loose)
        if type_ is None:
            return None
        merged[name] = first[name].with_type(type_)
    return pa.struct(list(merged.values()))


def join_schemas(
    schemas: Iterable[tuple[str, pa.Schema]], options: SourceOptions, *, is_loose: bool = False
) -> pa.Schema:
    """Return one schema for all files, with the metadata of the first.

    Columns that `options` leaves out or gives a type are not compared.

    Args:
        schemas: (name of the file, its schema) in order; at least one.
        options: `columns` and `schema` count.
        is_loose: See `common_type`; also, a column that some files lack is null there.

    Raises:
        SchemaError: Two files disagree, or one has a column twice.
    """
    fields: dict[str, pa.Field] = {}
    origin: dict[str, str] = {}
    metadata, head = None, ""
    for name, schema in schemas:
        doubled = sorted({column for column in schema.names if schema.names.count(column) > 1})
        if doubled:
            raise SchemaError(f"{name} has two columns named {doubled[0]!r}; rename one of them there")
        if not head:
            metadata, head = schema.metadata, name
        elif not is_loose:
            _check_same_columns(fields, schema, (head, name), options)
        for field in schema:
            known = fields.setdefault(field.name, field)
            first = origin.setdefault(field.name, name)
            type_ = common_type(known.type, field.type, is_loose=is_loose)
            if type_ is None:
                if _is_compared(field.name, options):
                    raise _conflict(field.name, (first, known.type), (name, field.type))
            elif not type_.equals(known.type):
                fields[field.name], origin[field.name] = known.with_type(type_), name
    return pa.schema(list(fields.values()), metadata)


def _is_compared(column: str, options: SourceOptions) -> bool:
    if isinstance(options.schema, pa.Schema) or (options.columns is not None and column not in options.columns):
        return False
    return options.schema is None or column not in options.schema


def _check_same_columns(
    fields: Mapping[str, pa.Field], schema: pa.Schema, files: tuple[str, str], options: SourceOptions
) -> None:
    for column in sorted(fields.keys() ^ set(schema.names)):
        if _is_compared(column, options):
            has, lacks = files if column in fields else files[::-1]
            type_ = str((fields[column] if column in fields else schema.field(column)).type)
            raise SchemaError(
                f"column {column!r} ({type_}) is in {has} but not in {lacks}; to have it null there "
                f"give its type, schema={{{column!r}: {type_!r}}}, or leave it out with columns=[...]"
            )


def _conflict(column: str, a: tuple[str, pa.DataType], b: tuple[str, pa.DataType]) -> SchemaError:
    return SchemaError(
        f"column {column!r} is {a[1]} in {a[0]} but {b[1]} in {b[0]}; give the type to use, "
        f"e.g. schema={{{column!r}: {str(a[1])!r}}}, or leave it out with columns=[...]"
    )


def resolve_schema(found: pa.Schema, options: SourceOptions, where: str) -> pa.Schema:
    """Return the schema of what is read: `found` with the types and columns that `options` ask for.

    Args:
        found: As the input has it.
        options: `columns` and `schema` count.
        where: The input, for errors.

    Raises:
        SchemaError: A column is asked for that is not there.
    """
    schema = found
    if isinstance(options.schema, pa.Schema):
        if not set(options.schema.names) & set(found.names):
            raise _absent(options.schema.names[:1], found, where)
        schema = options.schema.with_metadata(options.schema.metadata or found.metadata)
    elif options.schema is not None:
        _check_present(options.schema, found, where)
        schema = pa.schema([f.with_type(options.schema.get(f.name, f.type)) for f in found], found.metadata)
    if options.columns is not None:
        _check_present(options.columns, schema, where)
        schema = pa.schema([schema.field(name) for name in options.columns], schema.metadata)
    return schema.with_metadata(_true_metadata(found, schema))


def _check_present(columns: Iterable[str], found: pa.Schema, where: str) -> None:
    absent = sorted(set(columns) - set(found.names))
    if absent:
        raise _absent(absent, found, where)


def _absent(columns: list[str], found: pa.Schema, where: str) -> SchemaError:
    has = ", ".join(found.names[:20]) + (", ..." if len(found.names) > 20 else "")
    names = ", ".join(map(repr, columns))
    return SchemaError(f"{where} has no column {names}; it has ({has}): mend columns= or schema=")


def _true_metadata(found: pa.Schema, schema: pa.Schema) -> dict[bytes, bytes] | None:
    """Return the metadata, in which Hugging Face's features tell no more than is true of `schema`."""
    metadata = dict(schema.metadata or {})
    if b"huggingface" not in metadata or schema.equals(found):
        return metadata or None
    types = {field.name: field.type for field in found}
    try:
        told = json.loads(metadata.pop(b"huggingface"))
        features = told["info"]["features"]
        told["info"]["features"] = {name: features[name] for name in schema.names}
        if all(types[field.name].equals(field.type) for field in schema):
            metadata[b"huggingface"] = json.dumps(told).encode()
    except (ValueError, KeyError, TypeError):
        pass  # features of other columns or types would keep `datasets` from opening the result
    return metadata or None


def conform(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """Return a batch in `schema`: columns chosen, put in order and cast; nulls for what it lacks.

    Raises:
        SchemaError: A value does not fit its type; `where` says which batch.
    """
    places = {name: i for i, name in enumerate(batch.schema.names)}
    columns = []
    for field in schema:
        if field.name not in places:
            column = pa.nulls(batch.num_rows, field.type)
        else:
            column = _cast(batch.column(places[field.name]), field, where)
        if not field.nullable and column.null_count:
            raise SchemaError(f"{where}: column {field.name!r} has nulls, which its schema rules out; mend schema=")
        columns.append(column)
    if not columns:
        raise SchemaError(f"{where}: there are no columns; a record needs at least one")
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, field: pa.Field, where: str) -> pa.Array:
    if column.type.equals(field.type):
        return column
    try:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if isinstance(field.type, pa.BaseExtensionType):
            return pa.ExtensionArray.from_storage(field.type, column.cast(field.type.storage_type))
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
        raise SchemaError(
            f"{where}: column {field.name!r} of type {column.type} does not fit {field.type} ({e}); "
            "choose another type with schema="
        ) from e
