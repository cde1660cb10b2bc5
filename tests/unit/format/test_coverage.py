"""Spans that records read, and the gaps between them, cover a file once."""

from __future__ import annotations

import numpy as np

from shufflestore.format.coverage import gaps, merged


def test_merged_spans_and_their_gaps_cover_everything_once():
    rng = np.random.default_rng(1)
    for _ in range(200):
        lo = np.sort(rng.integers(0, 60, 8))
        hi = np.minimum(lo + rng.integers(0, 9, 8), 64)
        spans = merged(lo, hi)
        offsets, sizes = gaps(spans, 64)
        inside = np.zeros(64, int)
        for a, b in zip(lo, hi, strict=True):
            inside[a:b] = 1
        seen = np.zeros(64, int)
        for a, b in spans.tolist():
            seen[a:b] += 1
        for a, n in zip(offsets.tolist(), sizes.tolist(), strict=True):
            assert n > 0
            seen[a : a + n] += 2
        assert (seen == np.where(inside == 1, 1, 2)).all()
