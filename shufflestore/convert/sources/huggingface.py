"""Hugging Face data sets, opened or saved with `save_to_disk`; the `datasets` library is not needed to read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from shufflestore.convert.base import Piece, Source, SourceOptions, SourceSpec, detect, schema_to_text
from shufflestore.convert.sources import conform, join_schemas, resolve_schema
from shufflestore.errors import SourceError
from shufflestore.lazy import lazy

__all__ = ["HuggingFaceSource"]

_Files: TypeAlias = tuple[dict[str, list[str]], "tuple[str, ...] | None"]
"""The files of each split, and the columns that are left of theirs; None for all."""

_PIECE_BYTES: Final = 128 << 20
_HARMLESS: Final = frozenset(("replace_schema_metadata", "drop", "remove_column", "select"))
"""What `datasets` may have done to a mapped table so that its records are still those of the file."""


@dataclass(frozen=True)
class _Split:
    """The records of one split: those of a table, or some of them in another order."""

    name: str
    table: pa.Table
    indices: np.ndarray[Any, Any] | None
    mark: str
    """Tells it from others; for fingerprints."""

    @property
    def count(self) -> int:
        """Records."""
        return int(self.table.num_rows if self.indices is None else self.indices.size)

    @lazy
    def mean_bytes(self) -> float:
        """Bytes a record, at least 1."""
        return float(max(1.0, self.table.nbytes / max(1, self.table.num_rows)))

    @lazy
    def batches(self) -> list[pa.RecordBatch]:
        """The table's batches, in a form that pyarrow's take reads right."""
        batches = [batch for batch in self.table.to_batches() if batch.num_rows]
        return [pa.concat_batches([b]) if any(map(_misread, b.columns)) else b for b in batches]

    @lazy
    def starts(self) -> np.ndarray[Any, Any]:
        """The first row of each batch."""
        return np.cumsum([0, *(batch.num_rows for batch in self.batches[:-1])])


class HuggingFaceSource:
    """A Dataset, a DatasetDict, or a folder that one was saved to.

    Where records are files' as they stand, these are read as Arrow files, by any process. Else - in
    memory, selected, shuffled, with other columns - they are read from the table in this process.
    A format or transform set on the data set has no say: records come as they are stored.
    """

    kind = "huggingface"
    is_replayable = True

    def __init__(self, source: Any, options: SourceOptions, resolved: pa.Schema | None = None) -> None:
        """Take note of the data set.

        Args:
            source: An opened data set, or the path of a saved one.
            options: How to read.
            resolved: The schema, where it is known from a spec.

        Raises:
            SourceError: The folder is not what `save_to_disk` writes.
        """
        self._source = source
        self._options = options
        self._schema = resolved
        self._files: Source | None = None
        self._splits: list[_Split] = []
        # `datasets` saves a split without records as no file at all.
        self._fileless = _saved_without_files(source) if isinstance(source, str) else []
        files = _saved_files(source) if isinstance(source, str) else _mapped_files(source)
        if files is not None and files[1] is not None:
            files, options = _without_dropped(files, files[1], options)
        if files is not None:
            self._files = detect(files[0], kind="arrow", options=options)
        else:
            self._splits = _saved_splits(source) if isinstance(source, str) else _opened_splits(source)

    def schema(self) -> pa.Schema:
        """Return the one schema of all splits, with the features in its metadata; see `Source.schema`."""
        if self._schema is None:
            if self._files is not None:
                return self._files.schema()
            found = join_schemas([(f"split {s.name!r}", s.table.schema) for s in self._splits], self._options)
            self._schema = resolve_schema(found, self._options, "the data set")
        return self._schema

    def pieces(self) -> Sequence[Piece]:
        """Return the pieces, files or runs of rows; see `Source.pieces`."""
        nothing = [Piece(f"{name}[no records]", name, 0, 0, (name, 0, 0)) for name in self._fileless]
        if self._files is not None:
            return [*self._files.pieces(), *nothing]
        limit = self._options.piece_bytes or _PIECE_BYTES
        pieces = []
        for split in self._splits:
            step = max(1, int(limit / split.mean_bytes))
            if not split.count:
                nothing.append(Piece(f"{split.name}[no records]", split.name, 0, 0, (split.name, 0, 0)))
            for start in range(0, split.count, step):
                stop = min(split.count, start + step)
                size = int((stop - start) * split.mean_bytes)
                key = (split.name, start, stop)
                pieces.append(Piece(f"{split.name}[rows {start}:{stop}]", split.name, size, stop - start, key))
        if not pieces:
            raise SourceError("the data set has no records")
        return pieces + nothing

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records, in the order of the data set; see `Source.read`."""
        if piece.record_count == 0:
            return
        if self._files is not None:
            yield from self._files.read(piece)
            return
        name, start, stop = piece.key
        schema = self.schema()
        split = next(s for s in self._splits if s.name == name)
        step = max(1, int(self._options.batch_bytes / split.mean_bytes))
        for a in range(start, stop, step):
            b = min(stop, a + step)
            rows = None if split.indices is None else split.indices[a:b]
            batches = split.table.slice(a, b - a).to_batches() if rows is None else _gather(split, rows)
            for batch in batches:
                yield conform(batch, schema, f"split {name!r} rows [{a:,}, {b:,})")

    def spec(self) -> SourceSpec | None:
        """Return what another process needs; None if the records are in this one's memory only."""
        if self._files is not None:
            return self._files.spec()
        if not isinstance(self._source, str):
            return None
        return SourceSpec(self.kind, self._source, self._options.to_json(), schema_to_text(self.schema()))

    def fingerprint(self) -> str:
        """Return a digest of files, or of the data set's own fingerprints, and options."""
        if self._files is not None:
            return self._files.fingerprint()
        marks = [(split.name, split.count, split.mark) for split in self._splits]
        text = json.dumps([self.kind, self._options.to_json(), marks], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _misread(array: pa.Array) -> bool:
    """Whether take returns wrong values: fixed lists of fixed lists that begin within their buffers (pyarrow 26)."""
    if pa.types.is_struct(array.type):
        return any(_misread(array.field(i)) for i in range(array.type.num_fields))
    offsets = []
    while pa.types.is_fixed_size_list(array.type):
        offsets.append(array.offset)
        array = array.values
    return len(offsets) > 1 and any(offsets)


def _gather(split: _Split, rows: np.ndarray[Any, Any]) -> list[pa.RecordBatch]:
    """Return rows in the order asked for, taking from each batch once."""
    homes = np.searchsorted(split.starts, rows, side="right") - 1
    order = np.argsort(homes, kind="stable")
    ends = np.flatnonzero(np.diff(homes[order])) + 1
    taken = []
    for group in np.split(order, ends):
        home = int(homes[group[0]])
        taken.append(split.batches[home].take(pa.array(rows[group] - split.starts[home])))
    back = np.empty(len(rows), np.int64)
    back[order] = np.arange(len(rows))
    # A few MB: so small that no offset overflows when the pieces are made one.
    table = pa.Table.from_batches(taken).unify_dictionaries().combine_chunks()
    return list(table.take(pa.array(back)).to_batches())


# Opened data sets


def _named_splits(source: Any) -> dict[str, Any]:
    return {str(k): v for k, v in source.items()} if isinstance(source, Mapping) else {"train": source}


def _opened_splits(source: Any) -> list[_Split]:
    splits = []
    for name, one in _named_splits(source).items():
        indices = None if one._indices is None else one._indices.column(0).to_numpy().astype(np.int64)
        splits.append(_Split(name, one.data.table, indices, str(one._fingerprint)))
    return splits


def _mapped_files(source: Any) -> _Files | None:
    """Return the files of each split, and the columns left of them; None unless the records are just theirs."""
    files: dict[str, list[str]] = {}
    columns = None
    for name, one in _named_splits(source).items():
        rows = getattr(one.data, "blocks", None) or [[one.data]]
        blocks = [row[0] for row in rows if len(row) == 1]
        if one._indices is not None or len(blocks) < len(rows):
            return None
        for block in blocks:
            if not hasattr(block, "path") or any(replay[0] not in _HARMLESS for replay in block.replays):
                return None
            if block.replays and any(replay[0] != "replace_schema_metadata" for replay in block.replays):
                columns = tuple(one.column_names)
        files[name] = [str(Path(block.path).absolute()) for block in blocks]
    every = [path for paths in files.values() for path in paths]
    if len(set(every)) < len(every) or not all(Path(path).is_file() for path in every):
        return None
    return files, columns


def _without_dropped(
    files: _Files, columns: tuple[str, ...], options: SourceOptions
) -> tuple[_Files | None, SourceOptions]:
    """Return options that leave out what the data set has dropped; no files where options cannot say it."""
    if isinstance(options.schema, pa.Schema) or not set(options.columns or ()) <= set(columns):
        return None, options
    return files, replace(options, columns=options.columns or columns)


# Saved folders


def _saved_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / "state.json").read_text())
        names = [entry["filename"] for entry in state["_data_files"]]
    except FileNotFoundError:
        raise SourceError(
            f"{folder} has no state.json, so it is no folder that Dataset.save_to_disk finished; give its Arrow files "
            f"with a glob, e.g. {folder}/*.arrow"
        ) from None
    except (ValueError, KeyError, TypeError) as e:
        raise SourceError(f"{folder}/state.json is not what datasets writes ({e!r}); save the data set again") from e
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise SourceError(
            f"{folder} lacks {absent[0]}, which its state.json names; it was copied in part: copy it again"
        )
    return {**state, "files": [str(folder / name) for name in names]}


def _saved_states(path: str) -> dict[str, dict[str, Any]]:
    here = Path(path)
    if not here.is_dir():
        raise SourceError(f"{path} is no folder; kind='huggingface' reads what save_to_disk wrote")
    listing = here / "dataset_dict.json"
    if not listing.is_file():
        alone = _saved_state(here)
        if not alone["files"]:
            raise SourceError(f"{path}/state.json names no data files; save the data set again")
        return {"train": alone}
    try:
        names = [str(name) for name in json.loads(listing.read_text())["splits"]]
    except (ValueError, KeyError, TypeError) as e:
        raise SourceError(f"{listing} is not what datasets writes ({e!r}); save the data set again") from e
    return {name: _saved_state(here / name) for name in names}


def _saved_without_files(path: str) -> list[str]:
    return [name for name, state in _saved_states(path).items() if not state["files"]]


def _saved_files(path: str) -> _Files | None:
    """Return the files of each split; None where old versions of datasets saved an order beside them."""
    states = _saved_states(path)
    if any(state.get("_indices_data_files") for state in states.values()):
        return None
    if not any(state["files"] for state in states.values()):
        raise SourceError(f"{path} has no records in any of its splits {sorted(states)}; save the data set again")
    return {name: state["files"] for name, state in states.items() if state["files"]}, None


def _saved_splits(path: str) -> list[_Split]:
    splits = []
    for name, state in _saved_states(path).items():
        if not state["files"]:
            continue
        folder = Path(state["files"][0]).parent
        indices = [str(folder / entry["filename"]) for entry in state.get("_indices_data_files") or ()]
        rows = _open_streams(indices).column(0).to_numpy().astype(np.int64) if indices else None
        splits.append(_Split(name, _open_streams(state["files"]), rows, str(state.get("_fingerprint"))))
    return splits


def _open_streams(paths: Sequence[str]) -> pa.Table:
    tables = []
    for path in paths:
        try:
            tables.append(ipc.open_stream(pa.memory_map(path)).read_all())
        except (pa.ArrowException, OSError) as e:
            raise SourceError(f"{path} cannot be read as an Arrow stream ({e}); it is damaged or was cut short") from e
    return pa.concat_tables(tables)
