"""How much memory a process may have, and how a limit is shared out."""

from __future__ import annotations

import pytest

from shufflestore.errors import OptionError
from shufflestore.storage import memory
from shufflestore.storage.memory import Budget

MACHINE = {"/proc/meminfo": "MemTotal:  4000 kB\nMemAvailable:  1000 kB\n"}
VERSION_2 = {
    "/proc/self/cgroup": "0::/job/step\n",
    "/sys/fs/cgroup/job/step/memory.max": "max\n",
    "/sys/fs/cgroup/job/step/memory.current": "100\n",
    "/sys/fs/cgroup/job/memory.max": "500000\n",
    "/sys/fs/cgroup/job/memory.current": "400000\n",
    "/sys/fs/cgroup/job/memory.stat": "anon 5\nfile 300000\n",
}
VERSION_1 = {
    "/proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n",
    "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "600000\n",
    "/sys/fs/cgroup/memory/job/memory.usage_in_bytes": "590000\n",
    "/sys/fs/cgroup/memory/job/memory.stat": "cache 1\ntotal_cache 90000\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": "12345\n",
}


@pytest.mark.parametrize(
    ("texts", "allowed", "available"),
    [
        ({}, 4_096_000, 1_024_000),
        (VERSION_2, 500_000, 400_000),
        (VERSION_1, 600_000, 100_000),
        ({**VERSION_2, "/sys/fs/cgroup/job/memory.max": "max\n"}, 4_096_000, 1_024_000),
        ({**VERSION_2, "/sys/fs/cgroup/job/memory.current": "900000\n"}, 500_000, 0),
    ],
    ids=["no group", "version 2, a group above", "version 1", "no limit", "over its limit"],
)
def test_the_memory_of_a_container_counts(
    texts: dict[str, str], allowed: int, available: int, monkeypatch: pytest.MonkeyPatch
):
    known = {**MACHINE, **texts}
    monkeypatch.setattr(memory, "_text", lambda path: known.get(path, ""))
    assert memory.allowed_bytes() == allowed
    assert memory.available_bytes() == available


def test_this_machine_has_memory():
    assert 0 < memory.available_bytes() <= memory.allowed_bytes()


@pytest.mark.parametrize("limit", [32 << 20, 100 << 20, 8 << 30, 1 << 40])
def test_the_parts_of_a_budget_stay_within_it(limit: int):
    budget = Budget.of(limit)
    assert budget.limit == limit
    assert budget.index + budget.ahead + budget.whole <= limit
    assert min(budget.index, budget.ahead, budget.whole) > 0


def test_without_a_limit_it_is_a_quarter_of_what_the_process_may_have(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "allowed_bytes", lambda: 4 << 30)
    assert Budget.of(None).limit == 1 << 30
    monkeypatch.setattr(memory, "allowed_bytes", lambda: 1 << 20)
    assert Budget.of(None).limit == memory.LEAST


@pytest.mark.parametrize("limit", [0, -1, (32 << 20) - 1, True, 1e9, "1GB"])
def test_a_limit_that_is_none_is_refused_with_the_range(limit: object):
    with pytest.raises(OptionError, match=r"memory_limit is .*at least 33,554,432"):
        Budget.of(limit)  # type: ignore[arg-type]
