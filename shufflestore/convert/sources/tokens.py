"""Flat files of token ids: raw `.bin` or `.npy`, cut into records of one length or into documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from shufflestore.convert.base import BOUNDS_SUFFIX, Piece, SourceOptions
from shufflestore.convert.sources import FileSource, InputFile, conform, join_schemas, resolve_schema
from shufflestore.errors import OptionError, SourceError

__all__ = ["TokensSource"]

Tokens: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_PIECE_BYTES: Final = 128 << 20
_COLUMN: Final = "tokens"
_DTYPES: Final = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
_LLM_C: Final = (20240520, 20240801)
"""First words of llm.c's data files; 256 words of header follow."""
_INT32_MAX: Final = 2**31 - 1


class TokensSource(FileSource):
    """Token ids without anything between them; the one column is "tokens".

    Records are windows of `record_tokens` (a fixed size list), the rows of a 2-D `.npy` (likewise), or
    documents (a list) that end at `bounds` or with `end_token`. Values stay in the mapped file.
    """

    kind = "tokens"

    def __init__(self, location: Any, options: SourceOptions, resolved: pa.Schema | None = None) -> None:
        """See `FileSource`. Raises OptionError if options exclude each other."""
        super().__init__(location, options, resolved)
        given = [name for name in ("record_tokens", "end_token", "bounds") if getattr(options, name) is not None]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} are given; records are cut by one of them, leave out the others")
        if options.token_dtype is not None and options.token_dtype not in _DTYPES:
            raise OptionError(f"token_dtype is {options.token_dtype!r}; give one of {', '.join(_DTYPES)}")

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yield a piece's records as views of the mapped file."""
        path, how, start, stop = piece.key
        schema = self.schema()
        with _named(path):
            tokens = self._open(path)
            if how == "end":
                arrays = self._read_documents(tokens, start, stop)
            elif how == "bounds":
                arrays = self._read_bounded(tokens, self._open_bounds(path, tokens.size), start, stop)
            else:
                arrays = self._read_windows(tokens, how, start, stop)
            row = start
            for array in arrays:
                batch = pa.RecordBatch.from_arrays([array], names=[_COLUMN])
                yield conform(batch, schema, f"{path} records behind {row:,}")

    def _find_schema(self) -> pa.Schema:
        found = []
        for file in self.files():
            with _named(file.path):
                tokens = self._open(file.path)
                how = self._how(file, tokens)
            value = pa.from_numpy_dtype(tokens.dtype)
            type_ = pa.list_(value, how) if isinstance(how, int) else pa.list_(value)
            found.append((file.path, pa.schema([(_COLUMN, type_)])))
        return resolve_schema(join_schemas(found, self._options), self._options, self.where)

    def _find_pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        for file in self.files():
            with _named(file.path):
                tokens = self._open(file.path)
                pieces += self._cut(file, tokens, self._how(file, tokens))
        if not pieces:
            raise SourceError(f"{self.where} holds no records; its files have no tokens")
        return pieces

    def _cut(self, file: InputFile, tokens: Tokens, how: int | str) -> list[Piece]:
        size = tokens.dtype.itemsize
        limit = max(1, (self._options.piece_bytes or _PIECE_BYTES) // size)
        if how == "end":
            cuts = [(a, min(tokens.size, a + limit)) for a in range(0, tokens.size, limit)]
            return [_piece(file, "tokens", how, cut, (cut[1] - cut[0]) * size, None) for cut in cuts]
        if how == "bounds":
            bounds = self._open_bounds(file.path, tokens.size)
            return [
                _piece(file, "documents", how, (a, b), int(bounds[b] - bounds[a]) * size, b - a)
                for a, b in _cut_bounds(bounds, limit)
            ]
        assert isinstance(how, int)
        count, step = tokens.size // how, max(1, limit // how)
        rest = tokens.size - count * how
        if rest and not self._options.drop_tail:
            raise SourceError(
                f"{file.path}: its {tokens.size:,} tokens make {count:,} records of {how:,} and leave {rest:,}; "
                "leave these out with drop_tail=True, or choose another record_tokens"
            )
        cuts = [(a, min(count, a + step)) for a in range(0, count, step)]
        return [_piece(file, "records", how, (a, b), (b - a) * how * size, b - a) for a, b in cuts]

    def _how(self, file: InputFile, tokens: Tokens) -> int | str:
        """Return what cuts a file's records: a length, "end" or "bounds"."""
        if self._options.record_tokens is not None:
            return self._options.record_tokens
        if self._options.end_token is not None:
            limits = np.iinfo(tokens.dtype)
            if not limits.min <= self._options.end_token <= limits.max:
                raise OptionError(
                    f"end_token is {self._options.end_token}, but {file.path} holds {tokens.dtype}, "
                    f"[{limits.min}, {int(limits.max) + 1})"
                )
            return "end"
        if tokens.ndim == 2 and self._options.bounds is None:
            return int(tokens.shape[1])
        if self._bounds_path(file.path).is_file():
            return "bounds"
        if self._options.bounds is not None:
            raise SourceError(f"{self._options.bounds} does not exist; bounds= names an .npy file of document offsets")
        raise OptionError(
            f"{file.path}: nothing says where its records end; give record_tokens= (windows of one length), end_token= "
            f"(documents that end with a token), or bounds= (int64 offsets; {self._bounds_path(file.path).name} is "
            "found by itself)"
        )

    def _open(self, path: str) -> Tokens:
        """Map a file's tokens. Raises SourceError."""
        if path.lower().endswith(".npy"):
            tokens: Tokens = np.load(path, mmap_mode="r")
            wanted = self._options.token_dtype
            if tokens.dtype.name not in _DTYPES or (wanted is not None and tokens.dtype != np.dtype(wanted)):
                told = f"token_dtype says {wanted}" if wanted else f"tokens are one of {', '.join(_DTYPES)}"
                raise SourceError(f"{path} holds {tokens.dtype}, {told}; convert it, or leave token_dtype out")
            if tokens.ndim not in (1, 2) or not tokens.flags.c_contiguous:
                raise SourceError(
                    f"{path} has the shape {tokens.shape} or Fortran order; tokens have one or two dimensions"
                )
            return tokens
        dtype, header = np.dtype(self._options.token_dtype or "uint16"), self._options.token_header_bytes
        size = Path(path).stat().st_size - header
        if size <= 0 or size % dtype.itemsize:
            raise SourceError(
                f"{path}: {size:,} bytes behind a header of {header:,} are no whole number of {dtype} tokens of "
                f"{dtype.itemsize} bytes, at least one; check token_dtype= and token_header_bytes="
            )
        self._refuse_header(path, header)
        return np.memmap(path, dtype.newbyteorder("<"), "r", header, (size // dtype.itemsize,))

    def _refuse_header(self, path: str, header: int) -> None:
        with Path(path).open("rb") as file:
            first = int.from_bytes(file.read(4), "little")
        if header == 0 and first in _LLM_C:
            raise SourceError(f"{path} begins with llm.c's header ({first}); give token_header_bytes=1024")

    def _bounds_path(self, path: str) -> Path:
        return Path(self._options.bounds) if self._options.bounds is not None else Path(path + BOUNDS_SUFFIX)

    def _open_bounds(self, path: str, count: int) -> Tokens:
        """Map a file's document offsets and check them."""
        where = self._bounds_path(path)
        if self._options.bounds is not None and len(self.files()) > 1:
            raise OptionError(f"bounds is {where}, but there are {len(self.files()):,} files; give them one by one")
        with _named(str(where)):
            bounds: Tokens = np.load(where, mmap_mode="r")
        if bounds.ndim != 1 or bounds.dtype.kind not in "iu" or bounds.size < 1:
            raise SourceError(f"{where} holds {bounds.dtype} of shape {bounds.shape}; offsets are 1-D int64")
        if bounds[0] != 0 or bounds[-1] != count:
            raise SourceError(
                f"{where} goes from {bounds[0]:,} to {bounds[-1]:,}, but {path} has {count:,} tokens; offsets "
                "begin with 0 and end with the number of tokens"
            )
        for start in range(0, bounds.size - 1, 1 << 20):
            part = bounds[start : start + (1 << 20) + 1]
            falls = np.flatnonzero(part[1:] < part[:-1])
            if falls.size:
                at = start + int(falls[0])
                raise SourceError(
                    f"{where}: offset {at + 1:,} is {bounds[at + 1]:,}, less than {bounds[at]:,} before it"
                )
        return bounds

    # Arrays

    def _read_windows(self, tokens: Tokens, length: int, start: int, stop: int) -> Iterator[pa.Array]:
        step = max(1, self._options.batch_bytes // (length * tokens.dtype.itemsize))
        flat = tokens.reshape(-1)
        for a in range(start, stop, step):
            b = min(stop, a + step)
            yield pa.FixedSizeListArray.from_arrays(_view(flat[a * length : b * length]), length)

    def _read_bounded(self, tokens: Tokens, bounds: Tokens, start: int, stop: int) -> Iterator[pa.Array]:
        limit = max(1, self._options.batch_bytes // tokens.dtype.itemsize)
        for a, b in _cut_bounds(bounds[: stop + 1], limit, start):
            yield _documents(tokens, np.asarray(bounds[a : b + 1], np.int64))

    def _read_documents(self, tokens: Tokens, start: int, stop: int) -> Iterator[pa.Array]:
        """Yield the documents that begin in [start, stop)."""
        flat, limit = tokens.reshape(-1), max(1, self._options.batch_bytes // tokens.dtype.itemsize)
        if start and flat[start - 1] != self._options.end_token:
            start = self._after_end(flat, start, limit)
        while start < stop:
            ends = np.flatnonzero(flat[start : min(stop, start + limit)] == self._options.end_token) + start + 1
            if not ends.size:  # one document longer than a batch, or the last of the piece
                ends = np.array([self._after_end(flat, min(stop, start + limit), limit)])
            yield _documents(flat, np.concatenate([[start], ends]))
            start = int(ends[-1])

    def _after_end(self, flat: Tokens, start: int, step: int) -> int:
        """Return where the document that holds token `start` - 1 ends."""
        while start < flat.size:
            ends = np.flatnonzero(flat[start : start + step] == self._options.end_token)
            if ends.size:
                return start + int(ends[0]) + 1
            start += step
        return flat.size


def _piece(
    file: InputFile, unit: str, how: int | str, cut: tuple[int, int], byte_count: int, record_count: int | None
) -> Piece:
    return Piece(f"{file.name}[{unit} {cut[0]}:{cut[1]}]", file.split, byte_count, record_count, (file.path, how, *cut))


def _cut_bounds(bounds: Tokens, limit: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield runs [a, b) of documents of at most `limit` tokens, or of one."""
    last = bounds.size - 1
    while start < last:
        stop = int(np.searchsorted(bounds, int(bounds[start]) + limit, side="right")) - 1
        stop = min(last, max(start + 1, stop))
        yield start, stop
        start = stop


def _documents(tokens: Tokens, bounds: Tokens) -> pa.Array:
    values = _view(tokens.reshape(-1)[int(bounds[0]) : int(bounds[-1])])
    if len(values) > _INT32_MAX:
        raise SourceError(
            f"a document has {len(values):,} tokens, more than {_INT32_MAX:,}; cut it with record_tokens="
        )
    return pa.ListArray.from_arrays(pa.array((bounds - bounds[0]).astype(np.int32)), values)


def _view(tokens: Tokens) -> pa.Array:
    """Return tokens as an array without a copy."""
    type_ = pa.from_numpy_dtype(tokens.dtype.newbyteorder("="))
    return pa.Array.from_buffers(type_, tokens.size, [None, pa.py_buffer(tokens)])


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Give numpy's errors the name of the file."""
    try:
        yield
    except SourceError:
        raise
    except (ValueError, OSError, EOFError) as e:
        if isinstance(e, OptionError):
            raise
        raise SourceError(f"{path} cannot be read as tokens ({e}); it is damaged, cut short or of another kind") from e
