"""Write a data set record by record, for people with a loop of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import pyarrow as pa

from shufflestore.convert.records import RecordBuilder
from shufflestore.convert.run import IfExists, prepare
from shufflestore.convert.shards import ShardOptions, ShardWriter
from shufflestore.convert.snapshot import commit
from shufflestore.dataset.inplace import difference
from shufflestore.errors import OptionError, SchemaError, StorageError
from shufflestore.format.manifest import Manifest
from shufflestore.storage.targets import target_at

__all__ = ["Writer"]


class Writer:
    """Writes records given one by one; nothing is visible until `close` has committed all of them.

    Leaving the `with` block by an exception commits nothing.

    >>> import shufflestore as ss, tempfile
    >>> folder = tempfile.mkdtemp() + "/store"
    >>> with ss.Writer(folder) as w:
    ...     for i in range(3):
    ...         w.write({"text": "a" * i, "label": i})
    >>> ss.open(folder).take([2]).to_pylist()
    [{'text': 'aa', 'label': 2}]
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        schema: pa.Schema | None = None,
        if_exists: IfExists = "error",
        split: str = "train",
        options: ShardOptions | None = None,
        storage_options: Mapping[str, Any] | None = None,
        staging_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Begin.

        Args:
            target: A folder, or a prefix in an object store such as "s3://bucket/data", new or empty unless `if_exists`
                says otherwise.
            schema: Of the records; None to infer it from the first thousand.
            if_exists: "error", "append" or "overwrite". A loop of your own cannot be resumed.
            split: The records' split.
            options: Sizes.
            storage_options: Of the object store: region, endpoint, credentials, as for `open`.
            staging_folder: Where shards for an object store are written first; None for the system's temporary folder.

        Raises:
            AlreadyExists: Something is at the target. StorageError: It cannot be reached or written to.
        """
        if if_exists == "resume":
            raise OptionError(
                "a Writer cannot resume: it does not see your loop; use if_exists='append' or 'overwrite'"
            )
        self._target = target_at(target, storage_options, staging_folder)
        self._target.reach()
        self._parent = prepare(self._target, if_exists)
        self._appends = if_exists == "append"
        if self._appends and self._parent is not None:
            base = self._parent.schema
            if schema is not None and not schema.equals(base):
                raise SchemaError(f"{self._target}: cannot append other columns: {difference(base, schema)}")
            schema = base
        self._split = split
        self._options = options or ShardOptions()
        self._builder = RecordBuilder(schema)
        self._shards: ShardWriter | None = None
        self._closed = False
        self._broken: BaseException | None = None
        self.manifest: Manifest | None = None
        """The snapshot, once committed."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Args:
            record: Values by column: numbers, strings, bytes, lists, dicts, numpy arrays, None.

        Raises:
            SchemaError: A value does not fit its column; the writer stays usable.
            OutOfSpace, StorageError: The disk. Records given before are lost with it: the writer takes no
                more, and closing it commits nothing.
        """
        self._refuse_broken()
        if self._closed:
            raise OptionError("the Writer is closed; open another with if_exists='append'")
        batch = self._builder.add(record)
        if batch is not None:
            self._put(batch)

    def _put(self, batch: pa.RecordBatch) -> None:
        try:
            if self._shards is None:
                number = 0 if self._parent is None else self._parent.snapshot
                prefix = f"{self._split}-w{number:05d}"
                self._shards = ShardWriter(
                    self._target, prefix, batch.schema, self._options, lambda records, size: None
                )
            self._shards.add(batch)
        except BaseException as error:
            self._broken = error
            if self._shards is not None:
                self._shards.abandon()
            raise

    def _refuse_broken(self) -> None:
        if self._broken is not None:
            raise StorageError(
                f"{self._target}: this Writer failed before ({self._broken}), and the records since are lost; nothing was "
                "committed: mend the cause and write them again with a new Writer"
            ) from self._broken

    def close(self) -> None:
        """Write what is left and commit. Idempotent. Raises as `write`, or AlreadyExists if another writer was faster."""
        self._refuse_broken()
        if self._closed:
            return
        self._closed = True
        try:
            batch = self._builder.flush()
            if batch is not None:
                self._put(batch)
            entries = self._shards.finish() if self._shards else []
        except BaseException as error:
            self._broken = error
            self._abandon()
            raise
        schema = self._builder.schema
        if schema is None:
            raise SchemaError(
                f"{self._target}: no record was written and no schema given: nothing was committed; give schema="
            )
        self.manifest = commit(
            self._target, schema, [(self._split, entries)], self._parent, {"kind": "writer"},
            appends=self._appends, is_once=False,
        )  # fmt: skip

    def _abandon(self) -> None:
        self._closed = True
        if self._shards is not None:
            self._shards.abandon()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()
