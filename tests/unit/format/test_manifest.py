"""A manifest is read back as it was written, and only if every part of it agrees with every other."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from shufflestore.errors import CorruptData, FormatError, OptionError, ShuffleStoreError, UnsupportedFeature
from shufflestore.format.manifest import ROOT_LIMIT, Manifest, Split, snapshot_name, snapshot_number
from tests import hostile

SCHEMA = pa.schema([("x", pa.int64())], metadata={"huggingface": "{}"})
MADE = Manifest(
    SCHEMA, (Split("train", 5, 2), Split("test", 1, 1)), "snapshots/t.shards", 10, "ab" * 32, 3, "parent", {"a": [1]}
)


def test_a_manifest_comes_back_as_it_was_written():
    read = Manifest.decode(MADE.encode("nonce"), "r")
    for name in (
        "splits",
        "table_name",
        "table_bytes",
        "table_sha256",
        "snapshot",
        "parent",
        "options",
        "digest",
        "identity",
    ):
        assert getattr(read, name) == getattr(MADE, name), name
    assert read.schema.equals(SCHEMA, check_metadata=True)
    assert (read.record_count, read.shard_count) == (6, 3)


def test_the_nonce_is_no_part_of_the_digest_but_sealed():
    one, two = MADE.encode("one"), MADE.encode("two")
    assert one != two
    assert Manifest.decode(one, "r").digest == Manifest.decode(two, "r").digest
    with pytest.raises(CorruptData, match="digest"):
        Manifest.decode(one.replace(b'"one"', b'"onf"'), "r")


def test_the_identity_is_that_of_schema_and_shards_alone():
    other = Manifest(SCHEMA, MADE.splits, "elsewhere", 10, MADE.table_sha256, 9, None, {})
    assert other.identity == MADE.identity
    assert Manifest(SCHEMA, MADE.splits, MADE.table_name, 10, "cd" * 32).identity != MADE.identity


def test_a_field_that_a_later_minor_version_added_is_no_error():
    value = json.loads(MADE.encode("n")) | {"later": {"x": [1, 2]}}
    assert Manifest.decode(hostile.signed(value), "r").record_count == 6


def test_a_newer_version_and_an_unknown_feature_say_to_upgrade():
    value = json.loads(MADE.encode("n"))
    with pytest.raises(UnsupportedFeature, match=r"version 2.*upgrade"):
        Manifest.decode(hostile.signed(value | {"version": 2}), "r")
    with pytest.raises(UnsupportedFeature, match=r"\['blocks'\].*upgrade"):
        Manifest.decode(hostile.signed(value | {"features": ["blocks"]}), "r")


@pytest.mark.parametrize("name", list(hostile.TEXTS))
def test_bytes_that_are_no_manifest_are_refused(name):
    with pytest.raises(FormatError, match=r"^r: "):
        Manifest.decode(hostile.TEXTS[name], "r")


@pytest.mark.parametrize("name", list(hostile.ROOTS))
def test_a_lying_root_is_refused_although_its_digest_is_right(name):
    parts = hostile.Parts()
    store = parts.store()
    good = json.loads(store.files[snapshot_name(1)])
    store.files[snapshot_name(1)] = hostile.signed(hostile.ROOTS[name](good))
    with pytest.raises(ShuffleStoreError, match="memory://"):
        hostile.read_all(store)


def test_a_root_larger_than_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(CorruptData, match="1,048,577 bytes"):
        Manifest.decode(b"x" * (ROOT_LIMIT + 1), "r")


def test_a_split_is_named_unless_there_is_only_one():
    assert MADE.split("test") == 1
    with pytest.raises(OptionError, match=r"\['train', 'test'\]; say which"):
        MADE.split(None)
    with pytest.raises(OptionError, match="no split 'dev'"):
        MADE.split("dev")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("snapshots/0000000012.json", 12),
        ("snapshots/12.json", None),
        ("snapshots/0000000012.json.tmp", None),
        ("x", None),
    ],
)
def test_only_names_of_snapshots_have_numbers(name, number):
    assert snapshot_number(name) == number


def test_names_of_snapshots_sort_as_their_numbers():
    assert [snapshot_name(n) for n in (1, 9, 10, 100)] == sorted(snapshot_name(n) for n in (1, 9, 10, 100))
