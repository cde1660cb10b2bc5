"""Write a store from a loop of your own: records of text, numbers, arrays and missing values.

python examples/own_loop_writer.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

import shufflestore as ss

SCHEMA = pa.schema({"text": pa.string(), "embedding": pa.list_(pa.float32(), 16), "score": pa.float64()})
"""Without one, types are inferred, and the embedding would be a list of any length."""


def main() -> None:
    """Write, append, verify and read back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        random = np.random.default_rng(0)

        with ss.Writer(store, schema=SCHEMA) as writer:  # leaving the block by an error would commit nothing
            for i in range(args.records):
                writer.write(
                    {
                        "text": f"record number {i}",
                        "embedding": random.standard_normal(16).astype(np.float32),
                        "score": None if i % 10 == 0 else i / 2,
                    }
                )
        with ss.Writer(store, if_exists="append") as writer:  # the schema is the store's own
            writer.write({"text": "one more", "embedding": np.zeros(16, np.float32), "score": 1.0})

        report = ss.verify(store)
        assert report.is_sound, report.problems
        data = ss.open(store)
        print(f"{len(data):,} records, snapshot {data.manifest.snapshot}, {report.byte_count:,} bytes verified")
        assert len(data) == args.records + 1

        # Tensors have no nulls, so what stands for them must be said.
        loader = ss.DataLoader(data, batch_size=256, shuffle=True, fill_nulls={"score": -1.0})
        batch = next(iter(loader))
        print(batch["text"][0], tuple(batch["embedding"].shape), batch["score"][:4])
        loader.close()
        data.close()


if __name__ == "__main__":
    main()
