from __future__ import annotations

import json

import pytest

from shufflestore.errors import StateError
from shufflestore.orders.cursor import CURSOR_VERSION, Cursor

GOOD = {
    "dataset": "9f86d081884c7d65",
    "snapshot": 3,
    "order": "global",
    "seed": 2**64 - 1,
    "epoch": 17,
    "position": 512,
    "length": 1000,
}
STATE = Cursor(**GOOD).to_dict()


def test_a_cursor_survives_json_and_stays_small():
    largest = Cursor(
        dataset="d" * 256,
        snapshot=2**63 - 1,
        order="o" * 128,
        seed=2**64 - 1,
        epoch=2**64 - 1,
        position=2**62,
        length=2**62,
    )
    for cursor in (Cursor(**GOOD), Cursor(**{**GOOD, "snapshot": None, "length": None}), largest):
        text = json.dumps(cursor.to_dict())
        assert len(text) < 1024
        assert Cursor.from_dict(json.loads(text)) == cursor


def test_the_layout_of_version_1_is_promised():
    assert STATE == {**GOOD, "version": 1, "check": "a4ba5210c6ec351c"}


def test_the_order_of_fields_does_not_matter_and_the_state_is_not_touched():
    backwards = dict(reversed(STATE.items()))
    before = dict(backwards)
    assert Cursor.from_dict(backwards) == Cursor(**GOOD)
    assert backwards == before


@pytest.mark.parametrize("field", list(STATE))
def test_a_missing_field_is_named(field):
    with pytest.raises(StateError, match=field):
        Cursor.from_dict({name: value for name, value in STATE.items() if name != field})


@pytest.mark.parametrize("field", ["batch_size", "", 3, None])
def test_an_unknown_field_is_named(field):
    with pytest.raises(StateError, match="unknown field"):
        Cursor.from_dict({**STATE, field: 1})


@pytest.mark.parametrize("field", ["snapshot", "seed", "epoch", "position", "length"])
@pytest.mark.parametrize("value", [-1, 2**64, True, False, 1.0, "1", [1], {}, float("nan")])
def test_an_integer_of_another_type_or_range_is_named_with_what_is_allowed(field, value):
    for attempt in (lambda: Cursor.from_dict({**STATE, field: value}), lambda: Cursor(**{**GOOD, field: value})):
        with pytest.raises(StateError, match=rf"^{field} is .*, not an integer in \[0, \d+\]"):
            attempt()


@pytest.mark.parametrize("field", ["seed", "epoch", "position"])
def test_only_snapshot_and_length_may_be_unknown(field):
    with pytest.raises(StateError, match=field):
        Cursor.from_dict({**STATE, field: None})


@pytest.mark.parametrize("field", ["dataset", "order"])
@pytest.mark.parametrize("value", ["", "x" * 257, "a\nb", "é", None, 3, b"global", True])
def test_a_text_of_another_type_or_range_is_named(field, value):
    with pytest.raises(StateError, match=f"^{field} is "):
        Cursor.from_dict({**STATE, field: value})


@pytest.mark.parametrize("version", [0, 2, -1, "1", True, 1.0, None])
def test_another_version_is_refused_before_anything_else(version):
    with pytest.raises(StateError, match=f"reads version {CURSOR_VERSION}"):
        Cursor.from_dict({"version": version, "something": "new"})


@pytest.mark.parametrize("state", [None, [], "{}", 3, tuple(STATE.items())])
def test_what_is_not_a_dict_is_refused(state):
    with pytest.raises(StateError, match="dict"):
        Cursor.from_dict(state)


def test_a_position_behind_the_length_is_refused():
    with pytest.raises(StateError, match=r"position is 1001, outside \[0, 1000\]"):
        Cursor.from_dict({**STATE, "position": 1001})
    assert Cursor(**{**GOOD, "position": 1000}).position == 1000


@pytest.mark.parametrize(
    "damage",
    [
        {"dataset": "9f86d081884c7d64"},
        {"snapshot": 4},
        {"snapshot": None},
        {"order": "once"},
        {"seed": 0},
        {"epoch": 16},
        {"position": 513},
        {"length": 1001},
        {"check": "0" * 16},
        {"check": None},
        {"check": 5},
    ],
)
def test_a_damaged_state_is_detected_though_each_field_is_plausible(damage):
    with pytest.raises(StateError, match="corrupted"):
        Cursor.from_dict({**STATE, **damage})


@pytest.mark.parametrize(
    ("at_hand", "named"),
    [
        ({"identity": "other"}, "data set '9f86d081884c7d65'.*'other'"),
        ({"order": "once"}, "order 'global'.*'once'"),
        ({"order": "sequential"}, "order 'global'.*'sequential'"),
        ({"seed": 5}, "seed 18446744073709551615.*seed 5"),
        ({"length": 999}, "1000 records.*999"),
    ],
)
def test_resuming_something_else_is_refused_by_name(at_hand, named):
    fits = {"identity": GOOD["dataset"], "order": "global", "seed": None, "length": None}
    Cursor(**GOOD).check(**fits)
    with pytest.raises(StateError, match=named):
        Cursor(**GOOD).check(**{**fits, **at_hand})


def test_the_same_seed_by_another_spelling_is_accepted():
    Cursor(**GOOD).check(GOOD["dataset"], "global", seed=-1, length=1000)
    Cursor(**GOOD).check(GOOD["dataset"], "global", seed=2**64 - 1)
