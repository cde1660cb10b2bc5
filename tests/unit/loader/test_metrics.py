"""Figures say what their names say, to people, loggers and Prometheus."""

from __future__ import annotations

import dataclasses
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shufflestore.errors import OptionError
from shufflestore.loader.metrics import BUCKETS, Stats


def waits(**batches: int) -> tuple[int, ...]:
    """Batches by bucket, e.g. b5=3 for three waits of 5 ns."""
    made = [0] * BUCKETS
    for name, count in batches.items():
        made[int(name[1:])] = count
    return tuple(made)


SOME = Stats(
    records=1000, batches=10, waited_seconds=1.0, step_seconds=3.0, bytes_read=30_000_000, bytes_used=20_000_000,
    engine="mmap", lookahead_fill=0.75, quarantined=2, epoch=3, rank=1, waits=waits(b5=9, b60=1),
)  # fmt: skip


def test_rates_and_shares_are_of_all_the_time_measured():
    assert SOME.seconds == 4.0
    assert SOME.records_per_second == 250.0
    assert SOME.megabytes_per_second == 5.0
    assert SOME.stall_share == 0.25
    assert SOME.bytes_read_per_byte_used == 1.5
    assert SOME.p50_seconds == pytest.approx(5e-9)
    assert SOME.p99_seconds == pytest.approx(60e-9)
    assert SOME.quantile(0.9) == pytest.approx(5e-9)


def test_before_the_first_batch_there_are_zeros_and_nothing_is_divided_by_them():
    none = Stats()
    assert none.records_per_second == none.stall_share == none.p50_seconds == none.p99_seconds == 0.0
    assert none.megabytes_per_second is None
    assert none.bytes_read_per_byte_used is None
    assert Stats(bytes_read=5, bytes_used=0).bytes_read_per_byte_used is None
    assert Stats(bytes_used=0).megabytes_per_second == 0.0
    assert str(none) == "epoch 0: 0 records/s, waited 0.0%, batch p50 0 us p99 0 us"


def test_a_line_for_people_has_what_is_known():
    assert str(SOME) == (
        "epoch 3: 250 records/s, 5.0 MB/s, waited 25.0%, batch p50 0.005 us p99 0.06 us, ahead 75%, mmap, "
        "read/used 1.50, 2 bad records"
    )


def test_figures_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SOME.records = 5  # type: ignore[misc]


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(OptionError, match=r"share=.*above 0 and up to 1"):
        SOME.quantile(share)


def test_since_wants_what_came_before():
    with pytest.raises(OptionError, match="figures of 0 batches .* since those of 10 and 1,000: .*later.since"):
        Stats().since(SOME)
    later = dataclasses.replace(SOME, records=1500, batches=11, quarantined=3, epoch=4, waits=waits(b5=9, b60=2))
    step = later.since(SOME)
    assert (step.records, step.batches, step.quarantined, step.epoch, step.bytes_read) == (500, 1, 1, 4, 0)
    assert step.p50_seconds == pytest.approx(60e-9)


def test_a_logger_gets_every_figure_as_json():
    told = json.loads(json.dumps(SOME.to_dict()))
    figures = {f.name for f in dataclasses.fields(Stats)} | {
        name for name, value in vars(Stats).items() if isinstance(value, property)
    }
    assert set(told) == figures - {"waits"}
    assert all(told[name] == getattr(SOME, name) for name in told)


# -- Prometheus ------------------------------------------------------------------------------------


def parsed(text: str):
    """Family -> (type, {sample and its labels: value}), by Prometheus' own parser."""
    assert text.endswith("\n")
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.name not in found, "a family is told once"
        found[family.name] = (
            family.type,
            {(s.name, *sorted(s.labels.items())): s.value for s in family.samples},
        )
    return found


def test_prometheus_reads_what_was_counted():
    rank = ("rank", "1")
    assert parsed(SOME.to_prometheus()) == {
        "shufflestore_records": ("counter", {("shufflestore_records_total", rank): 1000}),
        "shufflestore_batch_wait_seconds": (
            "summary",
            {
                ("shufflestore_batch_wait_seconds", ("quantile", "0.5"), rank): SOME.p50_seconds,
                ("shufflestore_batch_wait_seconds", ("quantile", "0.99"), rank): SOME.p99_seconds,
                ("shufflestore_batch_wait_seconds_sum", rank): 1.0,
                ("shufflestore_batch_wait_seconds_count", rank): 10,
            },
        ),
        "shufflestore_step_seconds": ("counter", {("shufflestore_step_seconds_total", rank): 3.0}),
        "shufflestore_read_bytes": ("counter", {("shufflestore_read_bytes_total", rank): 30_000_000}),
        "shufflestore_used_bytes": ("counter", {("shufflestore_used_bytes_total", rank): 20_000_000}),
        "shufflestore_quarantined_records": ("counter", {("shufflestore_quarantined_records_total", rank): 2}),
        "shufflestore_epoch": ("gauge", {("shufflestore_epoch", rank): 3}),
        "shufflestore_lookahead_ratio": ("gauge", {("shufflestore_lookahead_ratio", rank): 0.75}),
        "shufflestore_engine_info": ("gauge", {("shufflestore_engine_info", ("engine", "mmap"), rank): 1}),
    }


def test_what_nobody_counts_is_left_out_with_its_heading():
    found = parsed(Stats().to_prometheus())
    assert set(found) == {
        "shufflestore_records", "shufflestore_batch_wait_seconds", "shufflestore_step_seconds",
        "shufflestore_quarantined_records", "shufflestore_epoch",
    }  # fmt: skip


def test_labels_come_back_whatever_is_in_them():
    odd = 'a "quoted" \\ path\nand a line {x="y"}, é'
    text = dataclasses.replace(SOME, engine=odd).to_prometheus({"run": odd, "loader": "train"})
    for _, samples in parsed(text).values():
        for name, *labels in samples:
            assert dict(labels)["run"] == odd, name
            assert dict(labels)["loader"] == "train"
            assert dict(labels)["rank"] == "1"
    ((_, engine, *_),) = parsed(text)["shufflestore_engine_info"][1]
    assert engine == ("engine", odd)


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a b", "__name", 'x="', "é"])
def test_a_label_without_a_name_is_refused(name):
    with pytest.raises(OptionError, match="letters, digits and _"):
        SOME.to_prometheus({name: "x"})
