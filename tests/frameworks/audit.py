"""What a training run of several lives delivered, from the lines that its ranks wrote.

A rank writes "epoch step id id id" when a batch arrives. A run that goes on from a checkpoint counts steps from there, so
its first step says how much of the life before it was kept: what came later was lost together with the weights.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.frameworks.launch import EXAMPLES, Launcher

Line = tuple[int, int, list[int]]


def lines_of(folder: Path, life: str) -> list[Line]:
    """Return what all ranks of one life wrote; a line that a kill cut short does not count."""
    found = []
    for file in sorted(folder.glob(f"seen-{life}-*.txt")):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                epoch, step, *ids = map(int, line.split())
                found.append((epoch, step, ids))
    return found


def kept(folder: Path, lives: list[str]) -> list[Line]:
    """Return the lines of all lives that the last one builds on."""
    found: list[Line] = []
    for life in lives:
        new = lines_of(folder, life)
        assert new, f"life {life} delivered nothing"
        first = min(step for _, step, _ in new)
        found = [line for line in found if line[1] < first] + new
    return found


def assert_exactly_once(folder: Path, lives: list[str], records: int, epochs: int) -> None:
    """Hold each epoch of a run of several lives against the data."""
    seen: dict[int, list[int]] = defaultdict(list)
    for epoch, _, ids in sorted(kept(folder, lives)):
        seen[epoch] += ids
    assert sorted(seen) == list(range(epochs))
    for epoch, ids in seen.items():
        lost = sorted(set(range(records)) - set(ids))
        repeated = sorted(i for i in set(ids) if ids.count(i) > 1)
        assert (lost, repeated) == ([], []), f"epoch {epoch}: lost {lost}, repeated {repeated}"
    assert len(set(map(tuple, seen.values()))) == epochs, "two epochs had the same order"


def assert_survives_kills(
    ranks: Launcher, example: str, folder: Path, sizes: tuple[int, int, int], kills: tuple[int, int] = (5, 9)
) -> str:
    """Kill an example in its first epoch and in its second, each time going on with other ranks; hold it against the data.

    Args:
        ranks: Of the framework.
        example: Name of the script; its 103 records are delivered in two epochs.
        folder: Empty.
        sizes: Of a rank's batch with 2, 3 and 4 ranks.
        kills: Optimizer steps after which the first two lives end.

    Returns:
        What the last life printed.
    """
    script = str(EXAMPLES / example)
    arguments = [["--folder", ".", "--batch-size", str(size)] for size in sizes]
    ranks.killed(script, arguments[0], 2, folder, kills[0])
    ranks.killed(script, arguments[1], 3, folder, kills[1])
    printed = ranks.succeed(script, arguments[2], 4, folder)
    first = kept(folder, ["2"])
    assert {epoch for epoch, _, _ in first} == {0}, "killed in the first epoch"
    assert {epoch for epoch, _, _ in lines_of(folder, "3")} == {0, 1}, "killed in the second epoch"
    assert len(kept(folder, ["2", "3"])) < len(first) + len(lines_of(folder, "3")), "the kill lost what was not saved"
    assert_exactly_once(folder, ["2", "3", "4"], records=103, epochs=2)
    return printed


def assert_each_epoch_once(answers: list[dict[str, Any]], records: int, step_count: int) -> None:
    """Hold what all ranks read, batch by batch, against the data: nothing lost or repeated, steps as many on all ranks."""
    assert len({len(answer["epochs"]) for answer in answers}) == 1
    orders = set()
    for epochs in zip(*(answer["epochs"] for answer in answers), strict=True):
        assert [len(batches) for batches in epochs] == [step_count] * len(answers)
        assert sorted(i for batches in epochs for ids in batches for i in ids) == list(range(records))
        orders.add(str(epochs))
    assert len(orders) == len(answers[0]["epochs"]), "two epochs had the same order"
