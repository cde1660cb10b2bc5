"""Proofs for loaders: delivery, resume, order and the quality of the shuffle, on any loader.

Works on whatever can be iterated over: shufflestore's loader, torch's, torchdata's, a Hugging Face iterable data
set, one's own. It needs two functions of the caller:

    make(rank=..., world_size=..., ...)   returns a new loader of one rank
    ids(batch)                            returns the ids of a batch's records

A *topology* is a mapping of keyword arguments for `make`, such as {"world_size": 2, "num_workers": 1}. The loaders of
all its ranks are made and read in this process. An assertion that fails raises AssertionError and names what was
lost or repeated, how much of it, and where. An argument that makes no sense is an `OptionError`.

Not loaded by `import shufflestore`; loads numpy, and torch only if the program has.
"""

from __future__ import annotations

__all__ = [
    "BlockQuality",
    "Ids",
    "Make",
    "Measure",
    "ShuffleQuality",
    "Topology",
    "assert_epochs_differ",
    "assert_exactly_once",
    "assert_ignores_global_rng",
    "assert_order_golden",
    "assert_resumes_everywhere",
    "block_quality",
    "shuffle_quality",
]

from shufflestore.testing.blocks import BlockQuality, block_quality
from shufflestore.testing.delivery import assert_exactly_once
from shufflestore.testing.driving import Ids, Make, Topology
from shufflestore.testing.order import assert_epochs_differ, assert_ignores_global_rng, assert_order_golden
from shufflestore.testing.quality import Measure, ShuffleQuality, shuffle_quality
from shufflestore.testing.resume import assert_resumes_everywhere
