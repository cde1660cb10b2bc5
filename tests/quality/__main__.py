"""`python -m tests.quality`: put the orders to the statistical tests and print a line a length."""

from __future__ import annotations

import argparse
import sys
import time

from shufflestore.orders.kernels import warm
from tests.quality import battery
from tests.quality.candidates import FewRounds, Lcg, Numpy, Package


def main() -> int:
    """Return 0 if the package and the control pass and the bad orders fail, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality", description=__doc__)
    parser.add_argument("--tier", choices=sorted(battery.SMALL_LENGTHS), default="small")
    parser.add_argument("--only", choices=["shufflestore", "numpy", "bad"], help="one column instead of all")
    args = parser.parse_args()
    columns = {"shufflestore": [Package()], "numpy": [Numpy()], "bad": [FewRounds(4), Lcg()]}
    warm()
    surprises = []
    for column, candidates in columns.items():
        if args.only not in (None, column):
            continue
        for candidate in candidates:
            begin, verdicts = time.monotonic(), []
            # A bad order needs no more than the small tier to be told.
            for verdict in battery.run(candidate, "small" if column == "bad" else args.tier):
                print(verdict, flush=True)
                verdicts.append(verdict)
            failed = sum(bool(verdict.failures) for verdict in verdicts)
            tests = sum(verdict.test_count for verdict in verdicts)
            print(f"-- {candidate.name}: {tests:,} tests at {len(verdicts)} lengths, fails at {failed} lengths, "
                  f"{time.monotonic() - begin:.0f} s\n")  # fmt: skip
            if (column == "bad") != bool(failed):
                surprises.append(candidate.name)
    for name in surprises:
        print(f"-- unexpected: {name}")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
