"""shufflestore.DataLoader on the Hugging Face folder itself, not converted: a row index beside it."""

from __future__ import annotations

from benchmarks.loaders.ours import Ours

__all__ = ["rivals"]


def rivals() -> list[Ours]:
    """Return our loader in place, with checksums in the index and without."""
    return [
        Ours("ours in place", "indexed"),
        Ours("ours in place, no checksums", "indexed-unchecked"),
    ]
