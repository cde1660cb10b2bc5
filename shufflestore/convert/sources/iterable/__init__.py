"""Dicts from Python: `source` reads them, `records` makes batches of them, `values` knows their types."""
