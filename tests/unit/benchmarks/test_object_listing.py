"""Listings of the object store agree with a naive twin, page by page."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.object_store import ObjectStore
from tests.raw_http import ask

KEYS = st.lists(st.text("ab/&é~", min_size=1, max_size=8), min_size=0, max_size=12).map(
    # Folders end in x, files in f: no file can be a folder too.
    lambda keys: sorted(
        {"x/".join(key.split("/")) + "f" for key in keys if key[0] != "/" and "//" not in key}, key=str.encode
    )
)


def naive_listing(keys: list[str], prefix: str, delimiter: str) -> list[str]:
    """Keys and common prefixes, these marked by a delimiter at their end, in order."""
    found = set()
    for key in keys:
        if key.startswith(prefix):
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key[len(prefix) :], "", "")
            found.add(prefix + head + cut)
    return sorted(found, key=str.encode)


@pytest.fixture(scope="module")
def listing_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listings")
    with ObjectStore(folder) as running:
        yield running, folder


@settings(max_examples=40)
@given(
    keys=KEYS,
    prefix=st.text("ab/x", max_size=3),
    delimiter=st.sampled_from(["", "/"]),
    most=st.integers(1, 5),
    at=st.data(),
)
def test_pages_of_listings_are_those_of_a_naive_twin(listing_store, keys, prefix, delimiter, most, at):
    store, folder = listing_store
    bucket = f"b{len(list(folder.iterdir()))}"
    (folder / bucket).mkdir()
    for key in keys:
        (folder / bucket / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / bucket / key).write_bytes(b"")
    after = at.draw(st.sampled_from(["", *keys, *naive_listing(keys, prefix, delimiter)]))
    expected = naive_listing([key for key in keys if key.encode() > after.encode()], prefix, delimiter)
    asked = (
        f"/{bucket}?list-type=2&encoding-type=url&max-keys={most}&prefix={quote(prefix)}&delimiter={quote(delimiter)}"
    )
    came, more = [], f"&start-after={quote(after)}"
    while more:
        page = ask(store.endpoint, "GET", asked + more).body.decode()
        names = [unquote(one) for one in re.findall(r"<(?:Contents><Key|CommonPrefixes><Prefix)>([^<]*)<", page)]
        token = re.search(r"<NextContinuationToken>([^<]*)<", page)
        assert len(names) <= most
        assert (token is not None) == ("<IsTruncated>true<" in page)
        assert token is None or len(names) == most
        came += names
        more = f"&continuation-token={quote(token[1])}" if token else ""
    assert sorted(came, key=str.encode) == expected
