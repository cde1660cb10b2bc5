"""Each fault of the object store is the one that its name says, and meets those that it should."""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError
from obstore.store import S3Store

from benchmarks.harness.object_store import FAULTS, Fault, ObjectStore, Settings
from benchmarks.harness.object_store.faults import Dealer
from benchmarks.harness.object_store.messages import parse_request
from tests.raw_http import Came, ask

DATA = bytes(range(256)) * 40
RANGE = {"Range": "bytes=1000-1999"}
WANTED = DATA[1000:2000]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "bucket").mkdir()
    (folder / "bucket/data").write_bytes(DATA)
    return folder


@pytest.fixture(scope="module")
def running(root):
    with ObjectStore(root, stall_seconds=0.2, drip_bytes_per_second=4_000, retry_after_seconds=7) as store:
        yield store


@pytest.fixture
def store(running):
    running.configure(faults=(), seed=0)
    running.reset_counts()
    yield running
    running.configure(faults=())


def once(store: ObjectStore, kind: str, method: str = "GET", target: str = "/bucket/data", **more) -> tuple[Came, Came]:
    """What a request is told that meets the fault, and what the same is told again."""
    store.configure(faults=[Fault(kind, 1.0, most=1)])
    headers = more.pop("headers", RANGE if method == "GET" else {})
    first, second = (ask(store.endpoint, method, target, headers, **more) for _ in range(2))
    assert store.counts()["faults"] == {kind: 1}
    assert not second.was_reset
    return first, second


def good(came: Came) -> bool:
    told = came.headers.get("content-range"), came.headers.get("content-length")
    return (came.status, came.body, told) == (206, WANTED, (f"bytes 1000-1999/{len(DATA)}", "1000"))


# -- faults of reads -------------------------------------------------------------------------------

REFUSED = {
    "slow_down": (503, "SlowDown"),
    "slow_down_retry_after": (503, "SlowDown"),
    "internal_error": (500, "InternalError"),
    "bad_gateway": (502, "BadGateway"),
    "gateway_timeout": (504, "GatewayTimeout"),
    "too_many_requests": (429, "TooManyRequests"),
    "request_timeout": (408, "RequestTimeout"),
    "moved_permanently": (301, "PermanentRedirect"),
    "temporary_redirect": (307, "TemporaryRedirect"),
    "expired_token": (403, "ExpiredToken"),
    "missing_once": (404, "NoSuchKey"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_has_its_status_once(store, kind):
    came, again = once(store, kind)
    assert (came.status, came.code) == REFUSED[kind]
    assert came.headers.get("retry-after") == ("7" if kind == "slow_down_retry_after" else None)
    assert came.headers.get("location") == (f"{store.endpoint}/bucket/data" if came.status in (301, 307) else None)
    assert good(again)


@pytest.mark.parametrize("kind", sorted(REFUSED.keys() - {"missing_once"}))
def test_a_refused_write_writes_nothing(store, root, kind):
    store.configure(faults={kind: 1.0})
    assert ask(store.endpoint, "PUT", "/bucket/refused", body=b"x").status == REFUSED[kind][0]
    assert not (root / "bucket/refused").exists()


def is_right_part(came: Came) -> bool:
    return came.status == 206 and came.headers["content-range"] == f"bytes 1000-1999/{len(DATA)}"


BROKEN = {
    "reset_before_headers": lambda came: came.was_reset and (came.status, came.body) == (0, b""),
    "reset_in_headers": lambda came: came.was_reset and came.status == 0 and came.body.startswith(b"HTTP/1.1 206"),
    "reset_in_body": lambda came: came.was_reset and is_right_part(came) and came.body == WANTED[:500],
    "short_body": lambda came: (
        is_right_part(came)
        and came.headers["content-length"] == "1000"
        and came.body == WANTED[:500]
        and not came.was_reset
    ),
    "short_body_without_length": lambda came: (
        is_right_part(came)
        and "content-length" not in came.headers
        and came.body == WANTED[:500]
        and not came.was_reset
    ),
    "long_body": lambda came: (
        is_right_part(came) and came.headers["content-length"] == "1007" and came.body == WANTED + b"surplus"
    ),
    "bytes_after_body": lambda came: (
        is_right_part(came) and came.headers["content-length"] == "1000" and came.body == WANTED + b"surplus"
    ),
    "whole_object": lambda came: came.status == 200 and came.body == DATA and "content-range" not in came.headers,
    "wrong_range": lambda came: (
        came.headers["content-range"] == f"bytes 999-1998/{len(DATA)}" and came.body == DATA[999:1999]
    ),
    "flipped_bit": lambda came: (
        is_right_part(came) and sum((a ^ b).bit_count() for a, b in zip(came.body, WANTED, strict=True)) == 1
    ),
    "other_version": lambda came: (
        is_right_part(came)
        and came.headers["etag"].startswith('"other-')
        and all(a != b for a, b in zip(came.body, WANTED, strict=True))
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_reply_is_broken_in_its_way_once(store, kind):
    came, again = once(store, kind)
    assert BROKEN[kind](came), came
    assert good(again)


@pytest.mark.parametrize(("kind", "least"), [("drip", 0.25), ("stall", 0.2)])
def test_a_slow_reply_is_right_and_slow(store, kind, least):
    store.configure(faults={kind: 1.0})
    began = time.monotonic()
    assert good(ask(store.endpoint, "GET", "/bucket/data", RANGE))
    assert time.monotonic() - began >= least


def test_other_version_is_served_whatever_was_asked_for(store):
    etag = ask(store.endpoint, "HEAD", "/bucket/data").headers["etag"]
    came, again = once(store, "other_version", headers={**RANGE, "If-Match": etag})
    assert came.status == 206
    assert came.headers["etag"] != etag == again.headers["etag"]


@pytest.mark.parametrize(
    ("asked", "came"), [("bytes=0-9", "bytes 1-10/"), ("bytes=-5", f"bytes {len(DATA) - 6}-"), ("bytes=7-", "bytes 6-")]
)
def test_wrong_ranges_of_all_forms(store, asked, came):
    assert once(store, "wrong_range", headers={"Range": asked})[0].headers["content-range"].startswith(came)


# -- faults of writes and listings -----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "status"), [("commit_409", 409), ("commit_412", 412)])
def test_refused_commits_write_nothing_and_meet_no_other_write(store, root, kind, status):
    first, again = once(store, kind, "PUT", f"/bucket/{kind}", headers={"If-None-Match": "*"}, body=b"x")
    assert (first.status, again.status) == (status, 200)
    store.configure(faults={kind: 1.0})
    assert ask(store.endpoint, "PUT", "/bucket/plain", body=b"x").status == 200
    assert ask(store.endpoint, "PUT", "/bucket/plain", {"If-Match": again.headers["etag"]}, b"y").status == status
    assert (root / "bucket/plain").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["commit_409", "commit_412"])
def test_a_refused_completion_can_be_tried_again(store, kind):
    begun = ask(store.endpoint, "POST", f"/bucket/parts-{kind}?uploads", body=b"")
    where = f"/bucket/parts-{kind}?uploadId=" + re.search(rb"<UploadId>(\w+)<", begun.body)[1].decode()
    etag = ask(store.endpoint, "PUT", f"{where}&partNumber=1", body=b"part").headers["etag"]
    body = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>".encode()
    first, again = once(store, kind, "POST", where, headers={"If-None-Match": "*"}, body=body)
    assert (first.status, again.status) == (int(kind[-3:]), 200)


def test_a_lost_reply_is_lost_after_the_write(store, root):
    first, again = once(store, "reply_lost", "PUT", "/bucket/lost", headers={"If-None-Match": "*"}, body=b"there")
    assert (first.was_reset, first.status) == (True, 0)
    assert (root / "bucket/lost").read_bytes() == b"there"
    assert again.status == 412


def test_a_stale_list_shows_what_was_there_before(store, root):
    (root / "stale").mkdir()
    old = time.time() - 100
    for name in ("kept", "deleted"):
        (root / "stale" / name).write_bytes(b"x")
        os.utime(root / "stale" / name, (old, old))
    ask(store.endpoint, "DELETE", "/stale/deleted")
    ask(store.endpoint, "PUT", "/stale/new", body=b"x")
    stale, now = once(store, "stale_list", "GET", "/stale?list-type=2", headers={})
    assert re.findall(rb"<Key>(\w+)<", stale.body) == [b"deleted", b"kept"]
    assert re.findall(rb"<Key>(\w+)<", now.body) == [b"kept", b"new"]


def test_every_fault_is_tested_here():
    tested = {*REFUSED, *BROKEN, "drip", "stall", "commit_409", "commit_412", "reply_lost", "stale_list"}
    assert tested == set(FAULTS)


# -- whom they meet --------------------------------------------------------------------------------


def request(method: str = "GET", target: str = "/bucket/data", *headers: str):
    return parse_request("\r\n".join([f"{method} {target} HTTP/1.1", *headers]).encode())


def drawn(settings: Settings, count: int, **changes) -> list[str | None]:
    dealer = Dealer(settings, 0.0)
    return [dealer.deal(request(**changes), 1.0)[0] for _ in range(count)]


def test_the_same_seed_deals_the_same():
    faults = {"slow_down": 0.2, "flipped_bit": 0.1}
    first = drawn(Settings(faults=faults, seed=1), 500)
    assert first == drawn(Settings(faults=faults, seed=1), 500)
    assert first != drawn(Settings(faults=faults, seed=2), 500)


def test_rates_are_shares_of_requests_and_exclude_one_another():
    found = Counter(drawn(Settings(faults={"slow_down": 0.2, "flipped_bit": 0.05, "stall": 0.0}), 20_000))
    # Six standard deviations: these draws are seeded, so it holds or fails for good.
    assert abs(found["slow_down"] - 4000) < 6 * (20_000 * 0.2 * 0.8) ** 0.5
    assert abs(found["flipped_bit"] - 1000) < 6 * (20_000 * 0.05 * 0.95) ** 0.5
    assert found["stall"] == 0
    assert set(drawn(Settings(faults={"slow_down": 0.5, "flipped_bit": 0.5}), 200)) == {"slow_down", "flipped_bit"}


def test_the_tail_is_drawn_apart_from_faults():
    settings = Settings(faults={"slow_down": 0.1}, tail=(0.01, 2.0), latency_seconds=0.01)
    dealer = Dealer(settings, 0.0)
    seconds = Counter(dealer.deal(request(), 1.0)[1] for _ in range(20_000))
    assert set(seconds) == {0.01, 2.0}
    assert abs(seconds[2.0] - 200) < 6 * 200**0.5


@pytest.mark.parametrize(
    ("fault", "meets", "misses"),
    [
        (Fault("stall", 1.0, methods=("PUT",)), request("PUT"), request("GET")),
        (Fault("stall", 1.0, methods=("LIST",)), request("GET", "/bucket?prefix=x"), request("GET")),
        (Fault("stall", 1.0, suffix=".arrow"), request("GET", "/bucket/a.arrow"), request("GET", "/bucket/a.json")),
        (
            Fault("stall", 1.0, prefix="bucket/rows/"),
            request("GET", "/bucket/rows/1"),
            request("GET", "/bucket/shards/1"),
        ),
        (Fault("whole_object", 1.0), request("GET", "/bucket/data", "range: bytes=0-1"), request("GET")),
        (Fault("commit_412", 1.0), request("PUT", "/bucket/data", "If-None-Match: *"), request("PUT")),
        (Fault("flipped_bit", 1.0), request("GET"), request("HEAD")),
        (Fault("stale_list", 1.0), request("GET", "/bucket"), request("GET")),
    ],
)
def test_filters(fault, meets, misses):
    dealer = Dealer(Settings(faults=[fault]), 0.0)
    assert dealer.deal(meets, 1.0)[0] == fault.kind
    assert dealer.deal(misses, 1.0)[0] is None


def test_most_and_total_seconds():
    dealer = Dealer(Settings(faults=[Fault("slow_down", 1.0, most=2), Fault("stall", 1.0, most=1)]), 0.0)
    assert [dealer.deal(request(), 1.0)[0] for _ in range(4)] == ["slow_down", "slow_down", "stall", None]
    dealer = Dealer(Settings(faults=[Fault("slow_down", total_seconds=60)]), 100.0)
    assert [dealer.deal(request(), now)[0] for now in (100.0, 159.9, 160.1)] == ["slow_down", "slow_down", None]


@pytest.mark.parametrize(
    "wrong", [{"kind": "none"}, {"kind": "stall", "rate": -0.1}, {"kind": "stall", "methods": ("PATCH",)}]
)
def test_faults_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=r"none|outside"):
        Fault(**wrong)
    with pytest.raises(ValueError, match="more than 1"):
        Settings(faults={"stall": 0.6, "drip": 0.6})


# -- clients ---------------------------------------------------------------------------------------


def client(store: ObjectStore, retries: int) -> S3Store:
    return S3Store(
        "bucket",
        endpoint=store.endpoint,
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
        retry_config={"max_retries": retries, "backoff": {"init_backoff": timedelta(milliseconds=1)}},
    )


def test_a_client_that_tries_again_reads_all(store):
    kinds = ("slow_down", "internal_error", "bad_gateway", "reset_before_headers", "reset_in_headers")
    store.configure(faults=dict.fromkeys(kinds, 0.04))
    reader = client(store, 10)
    for start in range(300):
        assert bytes(obstore.get_range(reader, "data", start=start, end=start + 50)) == DATA[start : start + 50]
    counts = store.counts()
    assert set(counts["faults"]) == set(kinds)
    assert counts["request_count"] == 300 + sum(counts["faults"].values())


@pytest.mark.parametrize("kind", ["short_body", "whole_object", "wrong_range", "reset_in_body", "expired_token"])
def test_a_client_that_does_not_sees_an_error(store, kind):
    store.configure(faults={kind: 1.0})
    with pytest.raises((GenericError, PermissionDeniedError)):
        obstore.get_range(client(store, 0), "data", start=5, end=50)


def test_nothing_is_left_open_however_requests_end(store, root):
    (root / "bucket/large").write_bytes(bytes(2_000_000))
    broken = [kind for kind in FAULTS if kind not in ("drip", "stall")]
    ask(store.endpoint, "GET", "/bucket/large")
    before = len(list(Path(f"/proc/{store.pid}/fd").iterdir()))
    store.configure(faults=dict.fromkeys(broken, 1 / len(broken)), seed=5)
    for _ in range(200):
        ask(store.endpoint, "GET", "/bucket/large", {"Range": "bytes=5-1999990"})
    store.configure(faults=(), stall_seconds=0.2)
    until = time.monotonic() + 30
    while store.counts()["in_flight"] or len(list(Path(f"/proc/{store.pid}/fd").iterdir())) > before:
        assert time.monotonic() < until, "requests or descriptors are left"


def test_a_client_that_goes_away_ends_its_request(store):
    store.configure(stall_seconds=600.0, latency_seconds=600.0, faults={"stall": 0.5}, seed=1)
    host, port = store.endpoint.removeprefix("http://").split(":")
    for _ in range(6):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /bucket/data HTTP/1.1\r\n\r\n")
    store.configure(latency_seconds=0.0)
    for _ in range(6):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /bucket/data HTTP/1.1\r\n\r\n")
    until = time.monotonic() + 30
    while store.counts()["request_count"] < 12 or store.counts()["in_flight"]:
        assert time.monotonic() < until, "requests are left"
    store.configure(stall_seconds=0.2)
