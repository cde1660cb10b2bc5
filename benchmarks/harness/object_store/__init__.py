"""An object store of our own on loopback, with latency, a bandwidth and faults: see `ObjectStore` and `FAULTS`.

`python -m benchmarks.harness.object_store --root DIR` serves by hand.
"""

from __future__ import annotations

from benchmarks.harness.object_store.faults import FAULTS, Fault, Settings
from benchmarks.harness.object_store.process import ObjectStore

__all__ = ["FAULTS", "Fault", "ObjectStore", "Settings"]
