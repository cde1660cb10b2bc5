"""What a conversion has done so far, on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from shufflestore.dataset.opening import UNFINISHED
from shufflestore.errors import AlreadyExists, CorruptData, NotFound, SourceError, StorageError
from shufflestore.storage.target import Target
from shufflestore.storage.targets import target_at

__all__ = ["Journal"]

FOLDER: Final = UNFINISHED.partition("/")[0]
PLAN: Final = UNFINISHED.partition("/")[2]


class Journal:
    """A plan and one note for each finished bundle, each published durably.

    Correct without any lock: a note only ever says what is on disk already, and to which plan it
    belongs: notes that outlive theirs, since the end of a conversion was interrupted, count for no other.
    """

    def __init__(self, place: Path | Target) -> None:
        self._target = target_at(place)
        self.folder = Path(self._target.uri, FOLDER)
        """Of a target that is a folder."""
        self._mark = ""

    def plan(self) -> dict[str, Any] | None:
        """Return the plan of the unfinished conversion that is here; None if there is none.

        Raises:
            CorruptData: It cannot be read.
        """
        if not self._has(PLAN):
            return None
        try:
            found = self._load(PLAN)
        except CorruptData:
            if self._has(PLAN):
                raise
            return None  # ended just now
        if not isinstance(found, dict):
            raise CorruptData(f"{self._place(PLAN)}: no plan; delete {self._place()} and start over")
        return found

    def begin(self, plan: dict[str, Any], resume: bool) -> None:
        """Write the plan, or hold it against the one that is there.

        Raises:
            AlreadyExists: An unfinished conversion is here and nobody said to resume it.
            SourceError: It is of another source or other options.
        """
        text = json.dumps(plan, sort_keys=True, indent=1).encode()
        self._mark = hashlib.sha256(text).hexdigest()[:16]
        if self._publish_plan(text):
            for note in self._target.files(FOLDER):
                if "/bundle-" in note.name and not note.name.endswith(f"-{self._mark}.json"):
                    self._target.remove(note.name)
            return
        if not resume:
            raise AlreadyExists(
                f"{self._target}: an unfinished conversion is here; go on with it (if_exists='resume', "
                "`--if-exists resume`) or throw it away (if_exists='overwrite')"
            )
        found = self.plan()
        if found is None:
            self.begin(plan, resume)  # ended just now
            return
        # What a person changed comes before what follows from it.
        for key in dict.fromkeys(("kind", "shards", "schema", "fingerprint", *sorted({*found, *plan}))):
            if found.get(key) != plan.get(key):
                raise SourceError(
                    f"{self._target}: the unfinished conversion has {key}={found.get(key)!r}, this one {plan.get(key)!r}; "
                    "resume with the same source and options, or start over with if_exists='overwrite'"
                )

    def _publish_plan(self, text: bytes) -> bool:
        while True:
            self._target.make(FOLDER)
            try:
                return self._target.publish(f"{FOLDER}/{PLAN}", text)
            except StorageError:
                if self._target.has(FOLDER):
                    raise
                # Another conversion ended just now, and took the folder with it.

    def note(self, bundle: int, entries: list[dict[str, Any]]) -> None:
        """Say that a bundle's shards are published."""
        told = [{**e, "header_sha256": e["header_sha256"].hex()} for e in entries]
        name = f"{FOLDER}/{self._name(bundle)}"
        try:
            self._target.publish(name, json.dumps(told, sort_keys=True).encode())
        except StorageError:
            if self._has(PLAN):
                raise
            return  # another process resumed this conversion too, and has finished it: its snapshot says it all
        if not self._has(PLAN):
            self._target.remove(name)  # likewise, where no folder goes with the plan

    def _name(self, bundle: int) -> str:
        return f"bundle-{bundle:06d}-{self._mark}.json"

    def done(self, bundle: int) -> list[dict[str, Any]] | None:
        """Return a finished bundle's shards, None if it is not finished.

        A note whose files are not there as long as it says does not count: the disk lied, or someone cleaned up.
        """
        name = self._name(bundle)
        if not self._has(name):
            return None
        try:
            entries = [{**e, "header_sha256": bytes.fromhex(e["header_sha256"])} for e in self._load(name)]
            sizes = [(e["data"], e["data_bytes"]) for e in entries] + [(e["index"], e["index_bytes"]) for e in entries]
        except (KeyError, TypeError, ValueError) as cause:
            raise CorruptData(f"{self._place(name)}: damaged ({cause}); delete it and resume") from cause
        there = self._target.find([file for file, _ in sizes])
        if any(found is None or found.size != size for found, (_, size) in zip(there, sizes, strict=True)):
            self._target.remove(f"{FOLDER}/{name}")
            return None
        return entries

    def end(self) -> None:
        """Forget everything: the snapshot that was committed says it now. Idempotent. Raises StorageError."""
        # The plan goes first: without it nothing else here counts.
        self._target.remove(f"{FOLDER}/{PLAN}")
        self.tidy()

    def tidy(self) -> None:
        """Remove what a conversion left that was interrupted while it ended. Idempotent. Raises StorageError."""
        if self._has(PLAN):
            return
        for file in self._target.files(FOLDER):
            self._target.remove(file.name)
        self._target.remove_folder(FOLDER)  # if no other process that resumed the same conversion is at its end too

    def _load(self, name: str) -> Any:
        try:
            return json.loads(self._target.read(f"{FOLDER}/{name}"))
        except (OSError, ValueError) as cause:
            if isinstance(cause, StorageError) and not isinstance(cause, NotFound):
                raise  # the store failed, not the file
            raise CorruptData(
                f"{self._place(name)}: cannot be read ({cause}); delete {self._place()} and start over"
            ) from cause

    def _has(self, name: str) -> bool:
        return self._target.find([f"{FOLDER}/{name}"])[0] is not None

    def _place(self, name: str = "") -> str:
        return f"{self._target}/{FOLDER}{'/' if name else ''}{name}"
