"""What every source of files keeps, whatever is in the files: cuts, order, specs, workers, kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import shufflestore as ss
from shufflestore.convert.base import Piece, SourceOptions, detect, from_spec
from tests import layouts, stores
from tests.crashes import Forks

CUTS = (SourceOptions(), SourceOptions(piece_bytes=700, batch_bytes=300), SourceOptions(piece_bytes=1, batch_bytes=1))


def records_of(source: Any) -> list[dict[str, Any]]:
    """All records, in order; each batch is valid and in the schema."""
    found = []
    for piece in source.pieces():
        rows = []
        for batch in source.read(piece):
            batch.validate(full=True)
            assert batch.schema.equals(source.schema(), check_metadata=True)
            rows += batch.to_pylist()
        assert piece.record_count in (None, len(rows))
        found += rows
    return found


def check_contract(value: Any, records: list[dict[str, Any]], kind: str) -> None:
    """The records come out in order however they are cut, in any order of pieces, and from a spec."""
    for options in CUTS:
        source = detect(value, options=options)
        assert source.kind == kind
        assert records_of(source) == records
        pieces = list(source.pieces())
        assert len({piece.name for piece in pieces}) == len(pieces)
        assert [Piece.from_json(json.loads(json.dumps(piece.to_json()))) for piece in pieces] == pieces
        backward = {piece.name: list(source.read(piece)) for piece in reversed(pieces)}
        spec = source.spec()
        assert spec is not None
        again = from_spec(json.loads(json.dumps(spec.to_json())))
        # Read before anything else is asked: a worker gets its pieces from elsewhere.
        assert {piece.name: list(again.read(piece)) for piece in pieces} == backward
        assert list(again.pieces()) == pieces
        assert again.fingerprint() == source.fingerprint() == detect(value, options=options).fingerprint()
        assert again.schema().equals(source.schema(), check_metadata=True)


def check_conversion(value: Path, records: dict[str, list[dict[str, Any]]], home: Path) -> None:
    """A store holds the records, the same bytes whoever wrote them, and a killed conversion goes on to the same."""
    home.mkdir()
    layout = layouts.Layout("source", home, {"do": "convert", "if_exists": "error", "source": str(value)})
    assert layout.after == records
    assert ss.verify(home / "done").is_sound
    ss.convert(value, home / "two", options=stores.small(2))
    assert stores.digests(home / "two") == layout.digests
    with Forks() as forks:
        for at in range(3, len(layout.ops), max(1, len(layout.ops) // 3)):
            target = layout.fresh("victim")
            ended = forks.run(layout.job_at(target, die_at=at, when="torn" if layout.ops[at] == "write" else "before"))
            assert ended.was_killed, ended.error
            layout.check_readers(target)
            layout.recover(target)
            layout.check_recovered(target)
