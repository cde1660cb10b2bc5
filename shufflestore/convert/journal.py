"""What a conversion has done so far, on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from shufflestore.dataset.opening import UNFINISHED
from shufflestore.errors import AlreadyExists, CorruptData, SourceError, StorageError
from shufflestore.storage.commit import make_folder, publish, remove

__all__ = ["Journal"]

FOLDER: Final = UNFINISHED.partition("/")[0]
PLAN: Final = UNFINISHED.partition("/")[2]


class Journal:
    """A plan and one note for each finished bundle, each published durably.

    Correct without any lock: a note only ever says what is on disk already, and to which plan it
    belongs: notes that outlive theirs, since the end of a conversion was interrupted, count for no other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._mark = ""

    def plan(self) -> dict[str, Any] | None:
        """Return the plan of the unfinished conversion that is here; None if there is none.

        Raises:
            CorruptData: It cannot be read.
        """
        if not (self.folder / PLAN).is_file():
            return None
        try:
            found = self._load(PLAN)
        except CorruptData:
            if (self.folder / PLAN).is_file():
                raise
            return None  # ended just now
        if not isinstance(found, dict):
            raise CorruptData(f"{self.folder / PLAN}: no plan; delete {self.folder} and start over")
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
            for note in self.folder.glob("bundle-*.json"):
                if not note.name.endswith(f"-{self._mark}.json"):
                    remove(note)
            return
        if not resume:
            raise AlreadyExists(
                f"{self.folder.parent}: an unfinished conversion is here; go on with it (if_exists='resume', "
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
                    f"{self.folder.parent}: the unfinished conversion has {key}={found.get(key)!r}, this one {plan.get(key)!r}; "
                    "resume with the same source and options, or start over with if_exists='overwrite'"
                )

    def _publish_plan(self, text: bytes) -> bool:
        while True:
            make_folder(self.folder)
            try:
                return publish(self.folder / PLAN, text)
            except StorageError:
                if self.folder.is_dir():
                    raise
                # Another conversion ended just now, and took the folder with it.

    def note(self, bundle: int, entries: list[dict[str, Any]]) -> None:
        """Say that a bundle's shards are published."""
        told = [{**e, "header_sha256": e["header_sha256"].hex()} for e in entries]
        try:
            publish(self.folder / self._name(bundle), json.dumps(told, sort_keys=True).encode())
        except StorageError:
            if (self.folder / PLAN).is_file():
                raise
            # Another process resumed this conversion too, and has finished it: its snapshot says it all.

    def _name(self, bundle: int) -> str:
        return f"bundle-{bundle:06d}-{self._mark}.json"

    def done(self, bundle: int) -> list[dict[str, Any]] | None:
        """Return a finished bundle's shards, None if it is not finished.

        A note whose files are not there as long as it says does not count: the disk lied, or someone cleaned up.
        """
        name = self._name(bundle)
        if not (self.folder / name).is_file():
            return None
        try:
            entries = [{**e, "header_sha256": bytes.fromhex(e["header_sha256"])} for e in self._load(name)]
            sizes = [(e["data"], e["data_bytes"]) for e in entries] + [(e["index"], e["index_bytes"]) for e in entries]
        except (KeyError, TypeError, ValueError) as cause:
            raise CorruptData(f"{self.folder / name}: damaged ({cause}); delete it and resume") from cause
        root = self.folder.parent
        whole = all((root / file).is_file() and (root / file).stat().st_size == size for file, size in sizes)
        if not whole:
            remove(self.folder / name)
            return None
        return entries

    def end(self) -> None:
        """Forget everything: the snapshot that was committed says it now. Idempotent. Raises StorageError."""
        # The plan goes first: without it nothing else here counts.
        remove(self.folder / PLAN)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a conversion left that was interrupted while it ended. Idempotent. Raises StorageError."""
        if (self.folder / PLAN).is_file():
            return
        for file in self.folder.glob("*"):
            remove(file)
        try:
            self.folder.rmdir()
        except OSError:
            pass  # not there, or another process that resumed the same conversion is at its end too

    def _load(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError) as cause:
            raise CorruptData(
                f"{self.folder / name}: cannot be read ({cause}); delete {self.folder} and start over"
            ) from cause
