"""Results as a small JSON file and a markdown table, side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import describe

__all__ = ["Figure", "Report"]

_RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Figure:
    """One limit of the project's table of figures, and where this run stands."""

    what: str
    found: float
    limit: float
    at_most: bool = False
    """Whether smaller is better."""

    @property
    def is_met(self) -> bool:
        """Whether the limit holds."""
        return self.found <= self.limit if self.at_most else self.found >= self.limit


@dataclass
class Report:
    """What a run found."""

    name: str
    """Of the results' files."""
    title: str
    command: str
    reference: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    figures: list[Figure] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    """Sizes, cache state, what was calibrated."""

    def text(self) -> str:
        """Return the run as markdown."""
        lines = [f"# {self.title}", "", f"`{self.command}`", ""]
        if self.rows:
            lines += [f"| | records/s | of {self.reference} | lowest - highest | cpus | cpu ns a record |"]
            lines.append("|---|---:|---:|---:|---:|---:|")
            for row in self.rows:
                span = f"{row['ratio_low']:.4g} - {row['ratio_high']:.4g}"
                lines.append(
                    f"| {row['name']} | {row['records_per_second']:,.0f} | {row['ratio']:.4g} | {span} "
                    f"| {row['cpus_used']} | {row['cpu_ns_per_record']:,.0f} |"
                )
            lines.append("")
        if self.figures:
            lines += ["| figure | found | limit | |", "|---|---:|---:|---|"]
            for figure in self.figures:
                sign = "<=" if figure.at_most else ">="
                met = "met" if figure.is_met else "MISSED"
                lines.append(f"| {figure.what} | {figure.found:.4g} | {sign} {figure.limit:g} | {met} |")
            lines.append("")
        lines += [f"- {key}: {value}" for key, value in self.notes.items()]
        return "\n".join(lines) + "\n"

    def write(self, is_full: bool) -> None:
        """Print the run and keep it.

        Args:
            is_full: Whether it had the sizes of the figures; only such a run goes into `results/`
                unless `SHUFFLESTORE_BENCH_RESULTS` names a folder.
        """
        environment = describe()
        self.notes["machine"] = (
            f"{environment['processor']}, {environment['cpus']} cpus, load {environment['load_before']}"
        )
        self.notes["versions"] = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
        print(f"\n{self.text()}")
        chosen = os.environ.get("SHUFFLESTORE_BENCH_RESULTS")
        if not is_full and not chosen:
            return
        folder = Path(chosen) if chosen else _RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        value = {
            "title": self.title, "command": self.command, "reference": self.reference, "environment": environment,
            "notes": self.notes, "rows": list(self.rows),
            "figures": [vars(figure) | {"is_met": figure.is_met} for figure in self.figures],
        }  # fmt: skip
        (folder / f"{self.name}.json").write_text(json.dumps(value, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.text())
