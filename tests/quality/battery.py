"""One rule for everyone: what is run, at which lengths, and when an order has failed.

A test fails a candidate if its p-value is below 1e-5 and, on fresh keys, below 1e-3 again; below 1e-30
once is enough. With a few thousand tests a run, a perfect order fails one run in some 50,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.quality import large, small
from tests.quality.candidates import EPOCHS_A_SEED, Candidate

FIRST = 1e-5
AGAIN = 1e-3
BEYOND_DOUBT = 1e-30

# length -> keys; as many as the n! cells of a tiny length and the patience of a long one ask for
SMALL_LENGTHS = {
    "small": {2: 20_000, 3: 20_000, 4: 20_000, 5: 20_000, 6: 40_000, 7: 40_000, 8: 20_000, 12: 20_000, 16: 20_000, 31: 8_000,
              64: 4_000, 97: 2_000, 256: 1_000, 1000: 200},
    "full": {**dict.fromkeys(range(2, 9), 1_000_000), 12: 200_000, 16: 200_000, 31: 150_000, 64: 80_000, 97: 50_000,
             256: 25_000, 1000: 8_000, 1024: 8_000, 4096: 1_200},
}  # fmt: skip
LARGE_LENGTHS = {
    "small": {65_537: 2**16, 10**6: 2**16, 10**9: 2**17, 2**40: 2**17},
    "full": dict.fromkeys(
        (65_537, 100_003, 2**17, 10**6, 2**20, 2**20 + 1, 10**7, 2**24, 10**9, 2**30, 10**12, 2**40, 2**50 + 1), 2**21
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What became of one candidate at one length."""

    candidate: str
    length: int
    test_count: int
    smallest_p: float
    smallest_name: str
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        failed = f"FAILS {len(self.failures)}: {', '.join(self.failures[:3])}" if self.failures else "pass"
        return (
            f"{self.candidate:22} n = {self.length:>18,}  {self.test_count:4} tests  "
            f"smallest p {self.smallest_p:8.1e} ({self.smallest_name})  {failed}"
        )


def judge_small(candidate: Candidate, length: int, keys: int) -> Verdict:
    """Whole orders of `keys` consecutive keys."""
    return _judge(candidate.name, length, lambda first: small.run(candidate.tables(length, first, keys)), keys)


def judge_large(candidate: Candidate, length: int, sample: int) -> Verdict:
    """Samples of a long order."""
    return _judge(candidate.name, length, lambda first: large.run(candidate, length, first, sample), 100_000)


def run(candidate: Candidate, tier: str) -> Iterator[Verdict]:
    """Every length of a tier that the candidate can make."""
    for length, keys in SMALL_LENGTHS[tier].items():
        yield judge_small(candidate, length, keys)
    for length, sample in LARGE_LENGTHS[tier].items():
        if length <= candidate.longest:
            yield judge_large(candidate, length, sample)


def _judge(name: str, length: int, tests: Callable[[int], Iterator[tuple[str, float]]], keys: int) -> Verdict:
    found = list(tests(0))
    suspects = {test for test, p in found if p < FIRST}
    failures = [test for test, p in found if p < BEYOND_DOUBT]
    if suspects - set(failures):
        fresh = -(-(keys + 1) // EPOCHS_A_SEED) * EPOCHS_A_SEED  # whole seeds, none of them seen before
        failures += [test for test, p in tests(fresh) if test in suspects - set(failures) and p < AGAIN]
    smallest = min(found, key=lambda result: result[1])
    return Verdict(name, length, len(found), smallest[1], smallest[0], tuple(failures))
