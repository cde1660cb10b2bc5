"""Puts are certain: done, refused or an error that says so, whatever was lost on the way."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError, PermissionDeniedError

from shufflestore.errors import NotFound, OptionError, StorageError
from shufflestore.storage import upload
from shufflestore.storage.remote_target import RemoteTarget
from shufflestore.storage.upload import PART_BYTES, Bucket
from tests import buckets


class Scripted(Bucket):
    """A bucket whose requests each go through `script`, in the order they are sent."""

    def __init__(self, uri, how):
        super().__init__(uri, how)
        self.log = []
        self.script = lambda number, call, ask: ask()

    def _ask(self, call, name, *arguments, **options):
        self.log.append(call)
        same = sum(one == call for one in self.log)
        return self.script(
            same, call, lambda *other: super(Scripted, self)._ask(call, name, *(other or arguments), **options)
        )


@pytest.fixture(scope="module")
def server():
    with buckets.serve() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(server, request):
    return Scripted(
        f"s3://{buckets.BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}", buckets.options(server)
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(upload, "_FIRST_BACKOFF_SECONDS", 0.0005)
    monkeypatch.setattr(upload, "_LONGEST_BACKOFF_SECONDS", 0.002)


def times(call, most, fault):
    """A script: the first `most` requests of one kind go through `fault`."""
    return lambda number, asked, ask: fault(ask) if asked == call and number <= most else ask()


def lost(ask):
    ask()
    raise GenericError("connection closed before message completed")


def reset(ask):
    raise GenericError("connection reset by peer")


# -- put if absent ---------------------------------------------------------------------------------


def test_a_name_is_taken_once_at_the_cost_of_one_request(bucket):
    assert bucket.create("a", b"first")
    assert bucket.log == ["put"]
    assert not bucket.create("a", b"second")
    assert not bucket.create("a", b"first"), "the same bytes from somebody else are still somebody else's"
    assert bucket.read("a") == b"first"


def test_of_many_at_once_one_succeeds(server, bucket):
    others = [Bucket(bucket.uri, buckets.options(server)) for _ in range(8)]
    found, gate = [], threading.Barrier(len(others))

    def put(number, one):
        gate.wait(timeout=30)
        found.append((one.create("a", b"%d" % number), number))

    threads = [threading.Thread(target=put, args=item) for item in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    (winner,) = (number for is_mine, number in found if is_mine)
    assert bucket.read("a") == b"%d" % winner


@pytest.mark.parametrize("most", [1, 3])
def test_a_put_whose_reply_was_lost_is_ours_and_is_not_done_again(bucket, most):
    bucket.script = times("put", most, lost)
    assert bucket.create("a", b"mine")
    assert bucket.log.count("put") == 1


def test_a_put_that_counted_after_we_had_looked_is_ours_too(bucket):
    """The request is still under way when it is given up, arrives after the look, and our second try finds it."""
    late = []

    def script(number, call, ask):
        if call == "put" and number == 1:
            late.append(ask)
            raise GenericError("operation timed out")
        if call == "put" and number == 2:
            late[0]()
        return ask()

    bucket.script = script
    assert bucket.create("a", b"mine")


def test_a_put_that_another_one_beat_while_its_reply_was_lost_is_not_ours(server, bucket):
    def script(number, call, ask):
        if call == "put" and number == 1:
            assert Bucket(bucket.uri, buckets.options(server)).create("a", b"theirs")
            raise GenericError("connection reset by peer")
        return ask()

    bucket.script = script
    assert not bucket.create("a", b"mine")


def test_a_conflict_with_nothing_there_is_tried_again(bucket):
    def conflict(ask):
        raise AlreadyExistsError("409 ConditionalRequestConflict")

    bucket.script = times("put", 2, conflict)
    assert bucket.create("a", b"mine")
    assert bucket.log.count("put") == 3


def test_bytes_that_the_store_got_wrong_are_put_again(bucket):
    bucket.script = times("put", 2, lambda ask: ask(b"mina"))
    assert bucket.create("a", b"mine")
    assert bucket.read("a") == b"mine"


def test_our_own_damaged_object_is_not_taken_for_another_s_when_looking_at_it_fails_too(bucket):
    def script(number, call, ask):
        if call == "put" and number == 1:
            return ask(b"mina")
        if call == "get" and number <= 3:
            reset(ask)
        return ask()

    bucket.script = script
    assert bucket.create("a", b"mine")
    assert bucket.read("a") == b"mine"


def test_an_answer_damaged_on_its_way_does_not_make_ours_another_s(bucket):
    def script(number, call, ask):
        if call == "put" and number == 1:
            lost(ask)
        size, data = found = ask()
        return (size, b"minf") if call == "get" and number == 1 and data == b"mine" else found

    bucket.script = lambda number, call, ask: script(number, call, ask) if call in ("put", "get") else ask()
    assert bucket.create("a", b"mine")


# -- files named by their content --------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 2 * PART_BYTES + 12_345])
def test_a_file_is_sent_whole_and_its_tag_saves_reading_it_back(bucket, tmp_path, size):
    (tmp_path / "file").write_bytes(os.urandom(size))
    bucket.send("a", tmp_path / "file")
    assert bucket.log == ["put", "head"]
    assert bucket.read("a") == (tmp_path / "file").read_bytes()
    bucket.send("a", tmp_path / "file")


def test_the_tag_of_parts_is_that_of_s3():
    """As documented: the MD5 of the parts' MD5s, and their number."""
    body = bytes(range(256)) * 100
    digests = [hashlib.md5(body[i : i + 10_000]).digest() for i in range(0, len(body), 10_000)]
    assert upload._expected_tag(body, 10_000) == f"{hashlib.md5(b''.join(digests)).hexdigest()}-3"
    assert upload._expected_tag(body, 0) == hashlib.md5(body).hexdigest()


def test_where_tags_are_no_md5_the_file_is_read_back(bucket, tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(PART_BYTES + 10))
    bucket.script = lambda number, call, ask: {**ask(), "e_tag": '"opaque"'} if call == "head" else ask()
    bucket.send("a", tmp_path / "file")
    assert bucket.log == ["put", "head", "get_range", "get_range"]


@pytest.mark.parametrize("wrong", [b"mina", b"min", b""])
def test_a_file_that_the_store_got_wrong_is_sent_again(bucket, wrong):
    bucket.script = times("put", 2, lambda ask: ask(wrong))
    bucket.send("a", b"mine")
    assert bucket.log.count("put") == 3
    assert bucket.read("a") == b"mine"


def test_a_sent_file_whose_reply_was_lost_is_not_sent_again(bucket):
    bucket.script = times("put", 1, lost)
    bucket.send("a", b"mine")
    assert bucket.log == ["put", "head"]


def test_parts_that_fail_are_sent_again_and_not_the_whole_file(tmp_path):
    """At one failure in three, a file of ten parts would hardly ever come through in one piece."""
    parts = []

    def refuse(environ):
        if "partNumber" not in environ["QUERY_STRING"]:
            return ""
        parts.append(environ["QUERY_STRING"])
        return "503 Slow Down" if len(parts) % 3 == 1 else ""

    (tmp_path / "file").write_bytes(os.urandom(10 * PART_BYTES))
    with buckets.serve(refuse) as endpoint:
        bucket = Scripted(f"s3://{buckets.BUCKET}/x", buckets.options(endpoint))
        bucket.send("a", tmp_path / "file")
        assert bucket.log == ["put", "head"]
        assert bucket.read("a") == (tmp_path / "file").read_bytes()
    assert len(set(parts)) == 10
    assert 14 <= len(parts) <= 16


# -- bounds and errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "verb"),
    [
        (lambda b: b.create("a", b"1"), "put"),
        (lambda b: b.send("a", b"1"), "put"),
        (lambda b: b.read("a"), "read"),
        (lambda b: b.head("a"), "look at"),
        (lambda b: b.delete("a"), "delete"),
        (lambda b: b.list("a"), "list"),
    ],
)
def test_a_store_that_only_fails_is_asked_a_bounded_number_of_times(bucket, act, verb):
    bucket.script = lambda number, call, ask: reset(ask)
    with pytest.raises(StorageError, match=f"{bucket.uri}/a: {verb} failed 8 times: .*reset by peer.*resume"):
        act(bucket)
    assert len(bucket.log) <= 16


def test_refused_credentials_are_an_error_soon_that_says_what_to_check(bucket):
    def denied(ask):
        raise PermissionDeniedError("AccessDenied")

    bucket.script = lambda number, call, ask: denied(ask)
    with pytest.raises(StorageError, match="failed 3 times.*check the credentials"):
        bucket.create("a", b"1")


def test_credentials_that_are_renewed_are_used(bucket):
    def expired(ask):
        raise PermissionDeniedError("ExpiredToken")

    bucket._attempts = 8
    bucket.script = times("list_with_delimiter", 2, expired)
    assert bucket.list().objects == ()


def test_what_is_not_there_is_none_or_not_found_and_may_be_deleted(bucket):
    assert bucket.head("a") is None
    with pytest.raises(NotFound, match=f"{bucket.uri}/a is not there"):
        bucket.read("a")
    bucket.delete("a")


def test_attempts_are_the_user_s_to_choose(server, bucket):
    asked = Scripted(bucket.uri, {**buckets.options(server), "attempts": 2})
    asked.script = lambda number, call, ask: reset(ask)
    with pytest.raises(StorageError, match="failed 2 times"):
        asked.list()


def test_a_bucket_crosses_processes(bucket, server):
    plain = Bucket(bucket.uri, buckets.options(server))
    plain.create("a", b"1")
    assert pickle.loads(pickle.dumps(plain)).read("a") == b"1"


# -- stores that do not honour conditions -----------------------------------------------------------


def overwriting(bucket):
    """What a store does that does not know If-None-Match."""
    plain = Bucket._ask

    def ask(call, name, *arguments, **options):
        if call == "put":
            options["mode"] = "overwrite"
        return plain(bucket, call, name, *arguments, **options)

    return ask


def test_a_store_that_overwrites_is_refused_and_nothing_is_left_there(server, bucket):
    target = RemoteTarget(bucket.uri, buckets.options(server))
    target.probe()
    assert target.top() == set()
    target._bucket._ask = overwriting(target._bucket)
    with pytest.raises(StorageError, match=r"does not honour conditional puts \(If-None-Match: \*\).*snapshots` last"):
        target.probe()
    assert target.top() == set()


def test_a_store_that_refuses_conditions_is_refused_likewise(server, bucket):
    target = RemoteTarget(bucket.uri, buckets.options(server))
    target._bucket = bucket

    def unknown(ask):
        raise NotSupportedError("conditional put")

    bucket.script = times("put", 9, unknown)
    with pytest.raises(StorageError, match="does not honour conditional puts"):
        target.probe()


@pytest.mark.parametrize("fault", [reset, lost])
def test_a_probe_is_not_misled_by_a_network_that_fails(server, bucket, fault):
    target = RemoteTarget(bucket.uri, buckets.options(server))
    target._bucket = bucket
    bucket.script = times("put", 1, fault)
    target.probe()


def test_places_that_can_only_be_read_are_refused():
    for uri in ("http://localhost/x", "hf://datasets/a/b"):
        with pytest.raises(OptionError, match="can be read, not written"):
            RemoteTarget(uri)
