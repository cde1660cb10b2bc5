"""The object store of the benchmarks answers as S3 does, to real clients and byte by byte."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError
from obstore.store import HTTPStore, S3Store

from benchmarks.harness.object_store import ObjectStore
from tests.raw_http import Came, ask

CLIENT = {"allow_http": True}
DATA = bytes(range(256)) * 40
ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "root/bucket").mkdir(parents=True)
    (tmp_path / "root/bucket/data").write_bytes(DATA)
    return tmp_path / "root"


@pytest.fixture
def store(folder):
    with ObjectStore(folder) as running:
        yield running


def s3(store: ObjectStore, **options) -> S3Store:
    return S3Store("bucket", endpoint=store.endpoint, region="us-east-1", client_options=CLIENT, **options)


def get(store: ObjectStore, **headers: str) -> Came:
    return ask(
        store.endpoint, "GET", "/bucket/data", {name.replace("_", "-"): value for name, value in headers.items()}
    )


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=100-", 100, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=-999999", 0, len(DATA)),
        ("bytes=10-999999", 10, len(DATA)),
        (f"bytes={len(DATA) - 1}-", len(DATA) - 1, len(DATA)),
    ],
)
def test_a_range_brings_its_bytes_and_says_which(store, asked, start, stop):
    came = get(store, Range=asked)
    assert (came.status, came.body) == (206, DATA[start:stop])
    assert came.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert came.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", f"bytes={len(DATA)}-{len(DATA) + 5}", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused_with_the_size(store, asked):
    came = get(store, Range=asked)
    assert (came.status, came.code) == (416, "InvalidRange")
    assert came.headers["content-range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("asked", ["bytes=9-5", "bytes=-", "lines=0-5", "bytes=0-1,4-5", "bytes=x-"])
def test_what_is_no_single_range_brings_all(store, asked):
    came = get(store, Range=asked)
    assert (came.status, came.body) == (200, DATA)
    assert "content-range" not in came.headers


def test_conditions_of_reads(store):
    etag, changed = get(store).headers["etag"], get(store).headers["last-modified"]
    long_ago = "Thu, 01 Jan 2015 00:00:00 GMT"
    assert get(store, If_Match=etag, Range="bytes=1-2").body == DATA[1:3]
    assert get(store, If_Match=f'"other", {etag}').status == 200
    assert get(store, If_Match="*").status == 200
    assert get(store, If_Match='"other"').status == 412
    assert get(store, If_None_Match=etag).status == 304
    assert get(store, If_None_Match='"other"').status == 200
    assert get(store, If_Modified_Since=changed).status == 304
    assert get(store, If_Modified_Since=long_ago).status == 200
    assert get(store, If_Unmodified_Since=long_ago).status == 412
    assert get(store, If_Unmodified_Since=changed).status == 200
    assert get(store, If_Range=etag, Range="bytes=1-2").status == 206
    assert get(store, If_Range='"other"', Range="bytes=1-2").status == 200


def test_a_replaced_file_is_another_version_at_once(store, folder):
    first = get(store).headers["etag"]
    spare = folder / "spare"
    spare.write_bytes(DATA[::-1])  # as long as it was
    os.replace(spare, folder / "bucket/data")
    assert get(store, If_Match=first).status == 412
    now = get(store)
    assert now.headers["etag"] != first
    assert now.body == DATA[::-1]
    (folder / "bucket/data").unlink()
    assert get(store).code == "NoSuchKey"


def test_head_tells_what_get_does_and_sends_no_body(store):
    told, came = ask(store.endpoint, "HEAD", "/bucket/data"), get(store)
    assert told.headers == came.headers
    assert told.body == b""
    missing = ask(store.endpoint, "HEAD", "/bucket/none")
    assert (missing.status, missing.body) == (404, b"")


def test_large_objects_come_whole(store, folder):
    large = os.urandom(5_000_003)
    (folder / "bucket/large").write_bytes(large)
    assert ask(store.endpoint, "GET", "/bucket/large").body == large
    assert ask(store.endpoint, "GET", "/bucket/large", {"Range": "bytes=1-4000000"}).body == large[1:4_000_001]


@pytest.mark.parametrize(
    "target",
    ["/bucket/../bucket/data", "/bucket/%2e%2e/bucket/data", "/bucket//data", "/.spare/x", "/../x", "/bucket/a%00"],
)
def test_no_name_leads_out_of_the_buckets(store, target):
    assert ask(store.endpoint, "GET", target).status == 400
    assert ask(store.endpoint, "PUT", target, body=b"x").status == 400


def test_several_requests_sent_ahead_are_all_answered(store):
    answers = ask(
        store.endpoint,
        "GET",
        "/bucket/data HTTP/1.1\r\nRange: bytes=0-9\r\n\r\nGET /bucket/data",
        {"Range": "bytes=10-19"},
    )
    bodies = re.findall(rb"\r\n\r\n(.{10})", b"\r\n\r\n" + answers.body, re.DOTALL)
    assert bodies == [DATA[:10], DATA[10:20]]


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [{"skip_signature": True}, {"access_key_id": "any", "secret_access_key": "any"}])
def test_obstore_does_everything_it_can(store, key):
    client = s3(store, **key)
    told = obstore.put(client, "a/b c+ü.txt", b"0123456789", mode="create")
    assert obstore.head(client, "a/b c+ü.txt")["e_tag"] == told["e_tag"]
    assert bytes(obstore.get(client, "a/b c+ü.txt").bytes()) == b"0123456789"
    assert bytes(obstore.get_range(client, "a/b c+ü.txt", start=2, end=5)) == b"234"
    ranges = obstore.get_ranges(client, "data", starts=[0, 5_000, 9_990], ends=[10, 5_010, 10_000], coalesce=0)
    assert [bytes(one) for one in ranges] == [DATA[:10], DATA[5_000:5_010], DATA[9_990:10_000]]
    with pytest.raises(AlreadyExistsError):
        obstore.put(client, "a/b c+ü.txt", b"other", mode="create")
    obstore.put(client, "a/b c+ü.txt", b"other", mode={"e_tag": told["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(client, "a/b c+ü.txt", b"third", mode={"e_tag": told["e_tag"]})
    large = os.urandom(12_000_000)
    obstore.put(client, "large", large, use_multipart=True, chunk_size=5 << 20)
    assert bytes(obstore.get(client, "large").bytes()) == large
    obstore.copy(client, "a/b c+ü.txt", "a/copy")
    obstore.rename(client, "a/copy", "moved")
    listed = obstore.list(client).collect()
    assert {one["path"]: one["size"] for one in listed} == {
        "a/b c+ü.txt": 5,
        "data": len(DATA),
        "large": 12_000_000,
        "moved": 5,
    }
    level = obstore.list_with_delimiter(client)
    assert (level["common_prefixes"], [one["path"] for one in level["objects"]]) == (["a"], ["data", "large", "moved"])
    obstore.delete(client, ["moved", "large"])
    obstore.delete(client, "data")
    assert [one["path"] for one in obstore.list(client).collect()] == ["a/b c+ü.txt"]
    with pytest.raises(FileNotFoundError):
        obstore.get(client, "data")
    assert store.counts()["open_upload_count"] == 0


def test_obstore_reads_over_plain_http(store):
    client = HTTPStore(f"{store.endpoint}/bucket", client_options=CLIENT)
    assert obstore.head(client, "data")["size"] == len(DATA)
    assert bytes(obstore.get_range(client, "data", start=2, end=5)) == DATA[2:5]
    assert bytes(obstore.get(client, "data").bytes()) == DATA
    with pytest.raises((NotFoundError, FileNotFoundError)):
        obstore.get(client, "none")


def test_of_many_who_create_one_object_one_wins(store):
    bodies = [bytes([number]) * 1000 for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        came = list(
            pool.map(
                lambda body: ask(store.endpoint, "PUT", "/bucket/one", {"If-None-Match": "*"}, body).status, bodies
            )
        )
    assert sorted(came) == [200] + [412] * 31
    assert ask(store.endpoint, "GET", "/bucket/one").body == bodies[came.index(200)]


def test_if_match_of_a_write_needs_the_object_as_it_was(store):
    etag = get(store).headers["etag"]
    assert ask(store.endpoint, "PUT", "/bucket/none", {"If-Match": etag}, b"x").status == 404
    told = ask(store.endpoint, "PUT", "/bucket/data", {"If-Match": etag}, DATA)
    assert told.status == 200
    assert told.headers["etag"] not in ("", etag), "the same bytes written again are another version"
    assert ask(store.endpoint, "PUT", "/bucket/data", {"If-Match": etag}, b"x").status == 412
    assert get(store).body == DATA


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-amz-checksum-crc32", base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big"))),
        ("x-amz-checksum-crc32c", base64.b64encode(bytes.fromhex("bd846cd7"))),
        ("x-amz-checksum-sha1", base64.b64encode(hashlib.sha1(DATA).digest())),
        ("x-amz-checksum-sha256", base64.b64encode(hashlib.sha256(DATA).digest())),
        ("Content-MD5", base64.b64encode(hashlib.md5(DATA).digest())),
        ("x-amz-content-sha256", hashlib.sha256(DATA).hexdigest().encode()),
    ],
)
def test_a_body_that_is_not_what_its_checksum_says_is_not_kept(store, name, value):
    flipped = DATA[:-1] + bytes([DATA[-1] ^ 1])
    assert ask(store.endpoint, "PUT", "/bucket/new", {name: value.decode()}, flipped).status == 400
    assert ask(store.endpoint, "HEAD", "/bucket/new").status == 404
    assert ask(store.endpoint, "PUT", "/bucket/new", {name: value.decode()}, DATA).status == 200


def test_parts_become_an_object_only_if_all_are_as_they_came(store, folder):
    begun = ask(store.endpoint, "POST", "/bucket/parts?uploads", body=b"")
    name = re.search(rb"<UploadId>(\w+)<", begun.body)[1].decode()

    def put(number: int, body: bytes) -> str:
        told = ask(store.endpoint, "PUT", f"/bucket/parts?partNumber={number}&uploadId={name}", body=body)
        return told.headers.get("etag", str(told.status))

    def complete(*parts: tuple[int, str], **conditions: str) -> Came:
        told = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts)
        body = f"<CompleteMultipartUpload>{told}</CompleteMultipartUpload>".encode()
        return ask(store.endpoint, "POST", f"/bucket/parts?uploadId={name}", conditions, body)

    second, old, first = put(2, b"second"), put(1, b"old"), put(1, b"first ")
    assert put(0, b"x") == "400"
    assert complete((1, old), (2, second)).code == "InvalidPart"
    assert complete((1, first), (3, second)).code == "InvalidPart"
    assert complete((2, second), (1, first)).code == "InvalidPartOrder"
    assert store.counts()["open_upload_count"] == 1
    (folder / "bucket/parts").write_bytes(b"somebody else's")
    assert complete((1, first), (2, second), **{"If-None-Match": "*"}).status == 412
    (folder / "bucket/parts").unlink()
    assert complete((1, first), (2, second), **{"If-None-Match": "*"}).status == 200
    assert ask(store.endpoint, "GET", "/bucket/parts").body == b"first second"
    assert complete((1, first)).code == "NoSuchUpload"
    assert complete((1, first), (2, second), **{"If-None-Match": "*"}).status == 200, "the same again, as S3 has it"
    store.configure(can_repeat_completion=False)
    assert complete((1, first), (2, second)).code == "NoSuchUpload"
    again = re.search(rb"<UploadId>(\w+)<", ask(store.endpoint, "POST", "/bucket/parts?uploads", body=b"").body)[1]
    assert ask(store.endpoint, "DELETE", f"/bucket/parts?uploadId={again.decode()}").status == 204
    assert store.counts()["open_upload_count"] == 0
    assert not list((folder / ".spare").iterdir())


# -- time, counts, settings ------------------------------------------------------------------------


def test_latency_is_kept_by_each_of_many_at_once(folder):
    with ObjectStore(folder, latency_seconds=0.3) as store, ThreadPoolExecutor(40) as pool:

        def timed(_: int) -> float:
            began = time.monotonic()
            assert get(store, Range="bytes=0-9").body == DATA[:10]
            return time.monotonic() - began

        began = time.monotonic()
        each = list(pool.map(timed, range(40)))
        assert min(each) >= 0.3
        assert time.monotonic() - began < 40 * 0.3 / 2, "they waited for one another"
        assert store.counts()["most_in_flight"] > 20


def test_the_tail_is_the_share_asked_for(folder):
    with ObjectStore(folder, tail=(0.5, 0.25), seed=3) as store:
        seconds = []
        for _ in range(12):
            began = time.monotonic()
            get(store)
            seconds.append(time.monotonic() - began)
        slow = [one >= 0.25 for one in seconds]
        assert 0 < sum(slow) < 12


def test_all_share_the_bandwidth(folder):
    with ObjectStore(folder, bandwidth_bytes_per_second=1e6) as store, ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        assert all(came.body == DATA for came in pool.map(lambda _: get(store), range(40)))
        assert time.monotonic() - began > 0.9 * 40 * len(DATA) / 1e6
        store.configure(bandwidth_bytes_per_second=None)
        assert get(store).body == DATA


def test_counts_are_of_what_was_asked(store):
    for _ in range(3):
        get(store, Range="bytes=0-99")
    ask(store.endpoint, "HEAD", "/bucket/none")
    ask(store.endpoint, "GET", "/bucket")
    counts = store.counts()
    assert counts["requests"] == {"GET": 3, "HEAD": 1, "LIST": 1}
    assert counts["statuses"] == {"206": 3, "404": 1, "200": 1}
    assert counts["request_count"] == sum(counts["requests_per_100_ms"]) == 5
    assert counts["bytes_sent"] >= 300
    assert (counts["most_in_flight"], counts["in_flight"]) == (1, 0)
    store.reset_counts()
    assert store.counts()["request_count"] == 0


def test_settings_that_are_none_are_refused(store, folder):
    for wrong in ({"latency": 1}, {"faults": {"earthquake": 0.1}}, {"faults": {"stall": 1.5}}):
        with pytest.raises(ValueError, match=r"there are: |outside"):
            store.configure(**wrong)
        with pytest.raises(ValueError, match=r"there are: |outside"):
            ObjectStore(folder, **wrong)
    assert get(store).body == DATA


# -- the process -----------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_process_ends_with_the_block_even_if_that_fails(folder):
    with pytest.raises(ZeroDivisionError), ObjectStore(folder) as store:
        pid = store.pid
        assert is_running(pid)
        _ = 1 / 0
    assert not is_running(pid)


def test_the_process_ends_if_its_starter_is_killed(folder):
    code = f"""
import pathlib, time
from benchmarks.harness.object_store import ObjectStore
with ObjectStore(pathlib.Path({str(folder)!r})) as store:
    print(store.pid, flush=True)
    time.sleep(300)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        pid = int(starter.stdout.readline())
        assert is_running(pid)
        starter.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < until, "it outlived its starter"
        time.sleep(0.01)
