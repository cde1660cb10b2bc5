"""Sizes in and out."""

from __future__ import annotations

import argparse

import pytest

from shufflestore.cli.sizes import byte_size, count, readable


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4096", 4096), ("1k", 1000), ("256MiB", 256 << 20), ("1.5 gb", 1_500_000_000), ("2ti", 2 << 40)],
)
def test_sizes_have_units(text, size):
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.2.3", "1xb", "MiB", "1e9", "0.1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no size"):
        byte_size(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no count"):
        count(text)


def test_readable_sizes():
    assert [readable(n) for n in (0, 1023, 1024, 5 << 20, 3 << 30, 7 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 GiB", "7.0 TiB",
    ]  # fmt: skip
