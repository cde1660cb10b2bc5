"""The table of docs/testing.md: which loader keeps which promise, as tried here."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from shufflestore.errors import OptionError
from shufflestore.testing import (
    assert_epochs_differ,
    assert_exactly_once,
    assert_ignores_global_rng,
    assert_order_golden,
    assert_resumes_everywhere,
    shuffle_quality,
)
from tests.unit.testing.peers import OTHERS, Peer, by_name, ours

# Theirs to mend: torchdata calls a function of torch's that is gone; Python 3.12 warns of forks beside threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
PAGE = Path(__file__).resolve().parents[3] / "docs/testing.md"
OURS = "shufflestore DataLoader"


def exactly_once(peer):
    assert_exactly_once(peer.make_for(103), peer.ids, 103, topologies=peer.worlds)


def resumes_as_saved(peer):
    for topology in peer.worlds:
        assert_resumes_everywhere(peer.make_for(48), peer.ids, 48, topologies=[topology])


def resumes_elsewhere(peer):
    assert_resumes_everywhere(peer.make_for(48), peer.ids, 48, topologies=peer.elsewhere)


def epochs_differ(peer, calls_set_epoch=False):
    assert_epochs_differ(peer.make_for(103), peer.ids, topologies=peer.worlds, calls_set_epoch=calls_set_epoch)


def epochs_differ_if_set(peer):
    epochs_differ(peer, calls_set_epoch=True)


def order_golden(peer):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        golden = [int(i) for batch in peer.make_for(103)() for i in peer.ids(batch)]
        torch.manual_seed(2)
        assert_order_golden(peer.make_for(103), peer.ids, golden)


def ignores_global_rng(peer):
    assert_ignores_global_rng(peer.make_for(103), peer.ids, topologies=peer.worlds)


def like_a_true_shuffle(peer):
    found = shuffle_quality([int(i) for batch in peer.make_for(4_096, 64)() for i in peer.ids(batch)])
    assert found.is_like_true_shuffle, str(found)


COLUMNS = {
    "exactly once": exactly_once,
    "resumes as saved": resumes_as_saved,
    "resumes elsewhere": resumes_elsewhere,
    "epochs differ": epochs_differ,
    "with `set_epoch`": epochs_differ_if_set,
    "golden order": order_golden,
    "ignores global RNG": ignores_global_rng,
    "true shuffle": like_a_true_shuffle,
}


def verdict(peer, check) -> str:
    """What the page says: "yes", "no", or "no state"."""
    try:
        check(peer)
    except AssertionError:
        return "no"
    except OptionError as error:
        return "no state" if "without state_dict" in str(error) else str(error)
    return "yes"


@functools.cache
def table() -> dict[str, dict[str, str]]:
    rows = [re.split(r" *\| *", line.strip("| ")) for line in PAGE.read_text("utf-8").splitlines() if line[:2] == "| "]
    head, *others = [row for row in rows if len(row) == len(COLUMNS) + 1]
    assert head[1:] == list(COLUMNS)
    return {row[0].replace("`", ""): dict(zip(head[1:], row[1:], strict=True)) for row in others}


def test_the_table_is_of_the_loaders_tried_here():
    assert list(table()) == [OURS, *(peer.name for peer in OTHERS)]


@pytest.mark.parametrize("column", COLUMNS)
def test_ours_is_what_the_table_says_and_it_says_yes(tmp_path, column):
    peer = Peer(OURS, ours(tmp_path), by_name)
    assert verdict(peer, COLUMNS[column]) == table()[OURS][column] == "yes"


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("peer", OTHERS, ids=lambda peer: peer.name)
def test_others_are_what_the_table_says(peer, column):
    assert verdict(peer, COLUMNS[column]) == table()[peer.name][column]
