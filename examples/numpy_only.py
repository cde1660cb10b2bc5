"""Iterate in exact global shuffle without torch: dicts of numpy arrays, or Arrow tables.

python examples/numpy_only.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import shufflestore as ss


def main() -> None:
    """Fit a line to shuffled records by stochastic gradient descent, in numpy alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(-1, 1, args.records))  # sorted: without a true shuffle this would go wrong
    y = 3.0 * x + 0.5 + 0.1 * random.standard_normal(args.records)
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        ss.convert([{"x": a, "y": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)], store)
        slope = offset = 0.0
        with ss.open(store) as data:
            for epoch in range(3):
                for batch in data.batches(64, shuffle=True, seed=0, epoch=epoch):
                    error = slope * batch["x"] + offset - batch["y"]
                    slope -= 0.1 * float(np.mean(error * batch["x"]))
                    offset -= 0.1 * float(np.mean(error))
            table = next(data.batches(4, shuffle=True, format="arrow"))
            print(table)
    print(f"y = {slope:.2f} x + {offset:.2f}")
    assert abs(slope - 3.0) < 0.1, slope
    assert abs(offset - 0.5) < 0.1, offset
    assert "torch" not in sys.modules, "nothing here needs torch"


if __name__ == "__main__":
    main()
