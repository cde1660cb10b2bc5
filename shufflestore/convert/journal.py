"""What a conversion has done so far, on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from shufflestore.errors import AlreadyExists, CorruptData, SourceError
from shufflestore.storage.commit import publish

__all__ = ["Journal"]

FOLDER: Final = ".convert"


class Journal:
    """A plan and one note for each finished bundle, each published durably.

    Correct without any lock: a note only ever says what is on disk already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def exists(self) -> bool:
        """Whether an unfinished conversion is here."""
        return (self.folder / "plan.json").is_file()

    def begin(self, plan: dict[str, Any], resume: bool) -> None:
        """Write the plan, or hold it against the one that is there.

        Raises:
            AlreadyExists: An unfinished conversion is here and nobody said to resume it.
            SourceError: It is of another source or other options.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plan, sort_keys=True, indent=1).encode()
        if publish(self.folder / "plan.json", text):
            return
        if not resume:
            raise AlreadyExists(
                f"{self.folder.parent}: an unfinished conversion is here; go on with it (if_exists='resume', "
                "`--if-exists resume`) or throw it away (if_exists='overwrite')"
            )
        found = self._load("plan.json")
        for key in sorted({*found, *plan}):
            if found.get(key) != plan.get(key):
                raise SourceError(
                    f"{self.folder.parent}: the unfinished conversion has {key}={found.get(key)!r}, this one {plan.get(key)!r}; "
                    "resume with the same source and options, or start over with if_exists='overwrite'"
                )

    def note(self, bundle: int, entries: list[dict[str, Any]]) -> None:
        """Say that a bundle's shards are published."""
        told = [{**e, "header_sha256": e["header_sha256"].hex()} for e in entries]
        publish(self.folder / f"bundle-{bundle:06d}.json", json.dumps(told, sort_keys=True).encode())

    def done(self, bundle: int) -> list[dict[str, Any]] | None:
        """Return a finished bundle's shards, None if it is not finished.

        A note whose files are not there as long as it says does not count: the disk lied, or someone cleaned up.
        """
        name = f"bundle-{bundle:06d}.json"
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
            (self.folder / name).unlink()
            return None
        return entries

    def end(self) -> None:
        """Forget everything: the snapshot that was committed says it now. Idempotent."""
        # The plan goes first: without it nothing else here counts.
        (self.folder / "plan.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError) as cause:
            raise CorruptData(f"{self.folder / name}: cannot be read ({cause}); delete {self.folder} and start over") from cause
