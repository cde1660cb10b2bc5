"""`python -m benchmarks.harness.object_store`."""

from benchmarks.harness.object_store.process import main

main()
