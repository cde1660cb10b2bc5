"""A journal says only what is on the disk, to whom it belongs, and nothing once the conversion is over."""

from __future__ import annotations

import json

import pytest

from shufflestore.convert.journal import Journal
from shufflestore.errors import AlreadyExists, CorruptData, SourceError

PLAN = {"kind": "parquet", "bundles": 2, "fingerprint": "abc"}


def entry(folder, name, size):
    (folder / name).write_bytes(b"x" * size)
    (folder / f"{name}.rows").write_bytes(b"y" * 5)
    return {"data": name, "data_bytes": size, "index": f"{name}.rows", "index_bytes": 5, "header_sha256": b"\x01" * 32}


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    journal.begin(PLAN, resume=False)
    return journal


def again(tmp_path, plan=PLAN):
    journal = Journal(tmp_path)
    journal.begin(plan, resume=True)
    return journal


def test_a_finished_bundle_is_found_by_the_next_process(tmp_path, journal):
    made = [entry(tmp_path, "a", 10), entry(tmp_path, "b", 20)]
    journal.note(1, made)
    assert again(tmp_path).done(1) == made
    assert again(tmp_path).done(0) is None


def test_a_bundle_without_shards_is_finished_too(tmp_path, journal):
    journal.note(0, [])
    assert again(tmp_path).done(0) == []


@pytest.mark.parametrize("name", ["a", "a.rows"])
def test_a_note_does_not_count_where_a_file_is_gone_or_short(tmp_path, journal, name):
    journal.note(0, [entry(tmp_path, "a", 10)])
    (tmp_path / name).write_bytes(b"x")
    assert again(tmp_path).done(0) is None
    journal.note(0, [entry(tmp_path, "a", 10)])
    (tmp_path / name).unlink()
    assert again(tmp_path).done(0) is None


def test_a_plan_is_there_from_begin_to_end(tmp_path, journal):
    assert Journal(tmp_path).plan() == PLAN
    journal.note(0, [])
    journal.end()
    assert Journal(tmp_path).plan() is None
    assert not journal.folder.exists()
    journal.end()


def test_a_second_conversion_is_told_of_the_first(tmp_path, journal):
    with pytest.raises(AlreadyExists, match=r"unfinished conversion.*resume.*overwrite"):
        Journal(tmp_path).begin(PLAN, resume=False)


def test_a_resume_with_another_plan_is_told_the_difference(tmp_path, journal):
    with pytest.raises(SourceError, match="has fingerprint='abc', this one 'other'"):
        again(tmp_path, {**PLAN, "fingerprint": "other"})


def test_notes_of_another_plan_do_not_count_and_are_cleared(tmp_path, journal):
    journal.note(0, [])
    (journal.folder / "plan.json").unlink()
    other = Journal(tmp_path)
    other.begin({**PLAN, "fingerprint": "other"}, resume=False)
    assert other.done(0) is None
    assert [p.name for p in other.folder.iterdir()] == ["plan.json"]


def test_a_note_written_after_another_process_ended_the_journal_is_no_error(tmp_path, journal):
    other = again(tmp_path)
    other.end()
    journal.note(0, [])
    assert Journal(tmp_path).plan() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '[{"data": 1}]'])
def test_a_damaged_note_or_plan_is_named_with_what_to_do(tmp_path, journal, text):
    journal.note(0, [])
    (note,) = journal.folder.glob("bundle-*")
    note.write_text(text)
    if text != "[]":
        with pytest.raises(CorruptData, match=r"bundle-000000.*delete"):
            again(tmp_path).done(0)
    (journal.folder / "plan.json").write_text(text)
    with pytest.raises(CorruptData, match=r"\.convert.*start over"):
        again(tmp_path)


def test_a_note_is_json_for_people(tmp_path, journal):
    journal.note(0, [entry(tmp_path, "a", 10)])
    (note,) = journal.folder.glob("bundle-*")
    assert json.loads(note.read_text())[0]["header_sha256"] == "01" * 32
