"""The object store answers with the statuses, codes, headers and documents that moto, a model of S3, answers with."""

from __future__ import annotations

import re

import pytest

from benchmarks.harness.object_store import ObjectStore
from tests import buckets
from tests.raw_http import Came, ask

DATA = bytes(range(100))
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
}
TOLD = ("content-length", "content-range", "accept-ranges")
"""Headers that say the same in both."""
THERE = ("etag", "last-modified")
"""Headers that both have, or neither."""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shape")
    (folder / buckets.BUCKET).mkdir()
    with ObjectStore(folder) as ours, buckets.serve() as moto:
        for name in tags_of_keys(ask(moto, "GET", "/bucket?list-type=2", SIGNED)):  # moto keeps what other tests left
            ask(moto, "DELETE", f"/bucket/{name}", SIGNED)
        for endpoint in (ours.endpoint, moto):
            for name in ("a/1", "a/2", "b", "c/3"):
                assert ask(endpoint, "PUT", f"/bucket/{name}", SIGNED, DATA).status == 200
        yield ours.endpoint, moto


def tags_of_keys(came: Came) -> list[str]:
    """The keys of a listing."""
    return re.findall(r"<Key>([^<]+)</Key>", came.body.decode())


def tags(came: Came) -> list[str]:
    """The elements of a document, in order."""
    return re.findall(r"<([A-Z]\w+)", came.body.decode())


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/bucket/b", {}),
        ("GET", "/bucket/b", {"Range": "bytes=3-7"}),
        ("GET", "/bucket/b", {"Range": "bytes=-7"}),
        ("GET", "/bucket/b", {"Range": "bytes=90-"}),
        ("GET", "/bucket/b", {"If-None-Match": "ETAG"}),
        ("GET", "/bucket/b", {"If-Match": "ETAG", "Range": "bytes=3-7"}),
        ("GET", "/bucket/b", {"If-Match": '"0"'}),
        ("GET", "/bucket/none", {}),
        ("GET", "/nobucket/b", {}),
        ("GET", "/nobucket?list-type=2", {}),
        ("HEAD", "/bucket/b", {}),
        ("HEAD", "/bucket/none", {}),
        ("HEAD", "/bucket", {}),
        ("HEAD", "/nobucket", {}),
        ("PUT", "/bucket/b", {"If-None-Match": "*"}),
        ("PUT", "/bucket/b", {"If-Match": '"0"'}),
        ("PUT", "/bucket/none", {"If-Match": '"0"'}),
        ("PUT", "/nobucket/b", {}),
        ("DELETE", "/bucket/none", {}),
        ("DELETE", "/bucket/b?uploadId=none", {}),
    ],
)
def test_one_request(both, method, target, headers):
    came = []
    for endpoint in both:
        etag = ask(endpoint, "GET", "/bucket/b", SIGNED).headers["etag"]
        told = {name: etag if value == "ETAG" else value for name, value in headers.items()}
        came.append(ask(endpoint, method, target, {**SIGNED, **told}, b"body" if method == "PUT" else None))
    ours, moto = came
    assert (ours.status, ours.code) == (moto.status, moto.code)
    if ours.status in (200, 206):
        assert {name: ours.headers.get(name) for name in TOLD} == {name: moto.headers.get(name) for name in TOLD}
        assert [name in ours.headers for name in THERE] == [name in moto.headers for name in THERE]
        assert method == "PUT" or ours.body == moto.body


@pytest.mark.parametrize(
    "asked", ["", "&prefix=a/", "&delimiter=/", "&delimiter=/&prefix=a", "&prefix=none", "&max-keys=2"]
)
def test_listings(both, asked):
    ours, moto = (ask(endpoint, "GET", f"/bucket?list-type=2{asked}", SIGNED) for endpoint in both)
    texts = [came.body.decode() for came in (ours, moto)]
    for name in ("Name", "Key", "Prefix", "KeyCount", "IsTruncated", "Size", "StorageClass"):
        # S3 tells of an empty prefix too, moto does not.
        values = [re.findall(rf"<{name}>([^<]+)</{name}>", text) for text in texts]
        assert sorted(values[0]) == sorted(values[1]), name
    assert set(tags(ours)) <= {*tags(moto), "Prefix"}
    dates = [re.findall(r"<LastModified>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.\d{3}Z<", text) for text in texts]
    assert len(dates[0]) == len(dates[1])


def test_an_upload_in_parts(both):
    shapes = []
    for endpoint in both:
        begun = ask(endpoint, "POST", "/bucket/parts?uploads", SIGNED, b"")
        name = re.search(r"<UploadId>([^<]*)<", begun.body.decode())[1]
        where = f"/bucket/parts?uploadId={name}"
        first = ask(endpoint, "PUT", f"{where}&partNumber=1", SIGNED, bytes(5 << 20))
        part = f"<Part><PartNumber>1</PartNumber><ETag>{first.headers['etag']}</ETag></Part>"
        whole = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()
        wrong = whole.replace(first.headers["etag"].encode(), b'"0"')
        answers = [
            begun,
            first,
            ask(endpoint, "POST", where, SIGNED, wrong),
            ask(endpoint, "POST", where, SIGNED, whole),
            ask(endpoint, "POST", where, SIGNED, whole),
        ]
        shapes.append([(came.status, came.code, first.headers["etag"]) for came in answers])
        assert {"Bucket", "Key", "UploadId"} <= set(tags(begun))
        assert {"Bucket", "Key", "ETag"} <= set(tags(answers[3]))
    assert shapes[0] == shapes[1]
