"""E5: whatever fails on the way to an object store, no copy is lost, no commit is doubled, and a resume ends the same."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

import shufflestore as ss
from shufflestore.errors import NotFound, StorageError
from shufflestore.storage import upload
from tests import buckets, stores

RATES = (0.02, 0.1, 0.3, 0.6)


@pytest.fixture(scope="module")
def server():
    with buckets.serve() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return stores.parquet(tmp_path_factory.mktemp("source") / "in", 2, 20)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("expected") / "out"
    ss.convert(source, folder, options=stores.small())
    return stores.digests(folder)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """As many attempts, in less time."""
    monkeypatch.setattr(upload, "_FIRST_BACKOFF_SECONDS", 0.0005)
    monkeypatch.setattr(upload, "_LONGEST_BACKOFF_SECONDS", 0.002)


class Case:
    """One store that fails in some ways."""

    def __init__(self, server, folder, faults, rate, seed):
        self.uri = f"s3://{buckets.BUCKET}/{'-'.join(faults)[:40]}-{rate}-{seed}"
        self.how = buckets.options(server)
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        self.bucket = buckets.FaultyBucket(self.uri, self.how, faults, rate, seed)
        self.target = buckets.FaultyTarget(self.uri, self.how, folder / "staging", self.bucket)

    def convert(self, source, expected):
        """Convert; where that fails, go on with a store that works."""
        try:
            ss.convert(source, self.target, options=stores.small())
            outcome = "done"
        except StorageError:
            outcome = "failed"
            self.check_readers()
            try:
                ss.convert(source, self.uri, if_exists="resume", options=stores.small(), storage_options=self.how)
            except FileExistsError:  # nothing had begun
                ss.convert(source, self.uri, options=stores.small(), storage_options=self.how)
        assert list(self.target._staging.glob("*")) == []
        folder = buckets.mirror(self.uri, self.how, self.folder / "mirror")
        found = stores.digests(folder)
        # What could not be removed means nothing: a probe, or a note that a listing did not tell of.
        over = [name for name in found if ".tmp-probe" in name or name.startswith(".convert/bundle-")]
        assert not over or outcome == "failed" or "stale" in self.bucket.faults
        assert {name: digest for name, digest in found.items() if name not in over} == expected
        return outcome

    def check_readers(self):
        """Readers see nothing yet, or all of it."""
        try:
            with ss.open(self.uri, storage_options=self.how) as data:
                assert len(data) == 40
        except NotFound:
            pass

    def append(self):
        """Append by a Writer, which cannot resume; what it was told is what is there."""
        with ss.Writer(self.uri, stores.SCHEMA, storage_options=self.how) as writer:
            for record in stores.records(0, 5):
                writer.write(record)
        try:
            with ss.Writer(self.target, if_exists="append", options=stores.small().shards) as writer:
                for record in stores.records(5, 20):
                    writer.write(record)
            outcome = "done"
        except StorageError:
            outcome = "failed"
        with ss.open(self.uri, storage_options=self.how) as data:
            ids = data.take(range(len(data)))["id"].to_pylist()
        assert ids in ([*range(25)], [*range(5)]), "records were doubled, lost or mixed"
        assert ids == [*range(25)] or outcome == "failed"
        return outcome


def run(server, folder, source, expected, faults, rate, seed, totals):
    case = Case(server, folder, faults, rate, seed)
    totals[case.convert(source, expected)] += 1
    writes = Case(server, folder, ("writer", *faults)[1:], rate, 10_000 + seed)
    totals[writes.append()] += 1
    totals["kept"] += case.target.kept + writes.target.kept
    totals["faults"] += case.bucket.done.total() + writes.bucket.done.total()
    totals["requests"] += case.bucket.asked + writes.bucket.asked
    return case


@pytest.mark.parametrize("fault", buckets.FAULTS)
def test_a_store_that_fails_now_and_then_costs_time_and_nothing_else(server, tmp_path, source, expected, fault):
    totals: Counter[str] = Counter()
    rate = 0.4 if fault in ("conflict", "stale") else 0.1  # few requests can fail these ways
    run(server, tmp_path / "a", source, expected, (fault,), rate, 1, totals)
    assert totals["done"] == 2, totals
    assert totals["faults"] > 0, "nothing failed, so nothing was shown"


def test_a_store_that_fails_in_all_ways_more_often_than_not_loses_nothing(server, tmp_path, source, expected):
    totals: Counter[str] = Counter()
    for seed in range(4):
        run(server, tmp_path / "a", source, expected, buckets.FAULTS, 0.6, seed, totals)
    assert totals["failed"] > 0, "so many faults should be too many now and then"


def test_a_store_that_takes_no_shards_leaves_their_copies(server, tmp_path, source):
    case = Case(server, tmp_path / "a", ("refused",), 0.0, 0)
    case.bucket.faults, plain = ("reset",), case.bucket._ask

    def no_shards(call, name, *arguments, **options):
        case.bucket.rate = float(call == "put" and name.endswith(".arrow"))
        return plain(call, name, *arguments, **options)

    case.bucket._ask = no_shards
    with pytest.raises(StorageError, match=r"put failed 8 times.*the local copy is kept, until a later conversion, as"):
        ss.convert(source, case.target, options=stores.small())
    assert case.target.kept >= 1


@pytest.mark.campaign
@pytest.mark.parametrize("fault", [*buckets.FAULTS, "all"])
def test_48_of_528_uploads_through_faults(server, tmp_path, source, expected, fault, capsys):
    """24 conversions and 24 appends by a Writer, at four rates of faults."""
    totals: Counter[str] = Counter()
    faults = buckets.FAULTS if fault == "all" else (fault,)
    for rate in RATES:
        for seed in range(100, 106):
            run(server, tmp_path / "a", source, expected, faults, rate, seed, totals)
    assert totals["done"] + totals["failed"] == 48
    with capsys.disabled():
        print(f"\nE5 {fault}: {dict(totals)}, 0 lost, 0 doubled")
