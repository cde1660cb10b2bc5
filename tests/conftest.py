"""What every test shares: no network, no hub, a Hypothesis profile for kernels that compile on first use."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # run with & by a script, which every child would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A kernel's first call compiles it, which takes longer than Hypothesis' default deadline.
settings.register_profile("shufflestore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("shufflestore")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave campaigns out unless they are asked for by name."""
    if config.option.markexpr == "campaign":
        return
    skip = pytest.mark.skip(reason="a campaign: run `bash tests/run.sh campaign`")
    for item in items:
        if item.get_closest_marker("campaign"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes made by opening foreign data go to a folder of the test's own."""
    monkeypatch.setenv("SHUFFLESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
