"""A training loop whose clock is moved by hand."""

from __future__ import annotations

from shufflestore.loader.telemetry import Meter, Pulled

SECOND = 10**9


class Clock:
    def __init__(self):
        self.now = 1

    def __call__(self):
        return self.now


class Run:
    """A loop that spends the time it is told to."""

    def __init__(self, pull=Pulled):
        self.clock = Clock()
        self.meter = Meter(pull, self.clock)

    def batches(self, count, wait=0.0, step=0.0, records=1):
        for _ in range(count):
            self.meter.wait_began()
            self.clock.now += round(wait * SECOND)
            self.meter.delivered(records)
            self.clock.now += round(step * SECOND)

    def end(self, wait=0.0):
        """The `next` that finds nothing more."""
        self.meter.wait_began()
        self.clock.now += round(wait * SECOND)
