"""Read a data set that `datasets` saved, where it lies: nothing is converted, not a byte is rewritten.

python examples/huggingface_in_place.py
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import datasets
import numpy as np

import shufflestore as ss


def digest(folder: Path) -> str:
    """Return a digest of all files of a saved data set."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and ss_folder not in p.parts)
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


ss_folder = ".shufflestore"


def main() -> None:
    """Save with `datasets`, index, and read the same folder in exact global shuffle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=5000)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    made = datasets.Dataset.from_dict(
        {
            "tokens": [random.integers(0, 1000, size=random.integers(5, 60)).tolist() for _ in range(args.records)],
            "label": [int(x) for x in random.integers(0, 3, size=args.records)],
        },
        features=datasets.Features(
            tokens=datasets.List(datasets.Value("int32")), label=datasets.ClassLabel(names=["no", "maybe", "yes"])
        ),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "saved"
        datasets.disable_progress_bars()
        made.save_to_disk(folder)
        before = digest(folder)

        print(f"row index in {ss.index(folder).relative_to(scratch)}")
        data = ss.open(folder)
        print(data)
        assert data.take([7]).to_pylist() == [made[7]], "the same record by either door"

        seen: list[int] = []
        for batch in ss.DataLoader(data, batch_size=256, shuffle=True, seed=3, return_ids=True):
            seen += batch["record_id"].tolist()
            assert len(batch["tokens"]) == len(batch["label"])
        assert sorted(seen) == list(range(args.records)), "every record exactly once"
        assert digest(folder) == before, "not a byte was rewritten"
        print(f"{len(seen):,} records in random order, the folder is as it was")

        names = datasets.Features.from_arrow_schema(data.schema)["label"].names
        print(f"the features came along: label is one of {names}")
        data.close()


if __name__ == "__main__":
    main()
