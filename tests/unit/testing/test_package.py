"""The kit stands on its own: it loads neither torch nor the rest of the package, and is not loaded with it."""

from __future__ import annotations

import subprocess
import sys


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


def test_it_loads_numpy_and_the_errors_and_no_more_of_the_package():
    modules = loaded_by("import shufflestore.testing")
    own = {name for name in modules if name.startswith("shufflestore") and ".testing" not in name}
    assert own <= {"shufflestore", "shufflestore.errors"}, own
    assert not modules & {"torch", "pyarrow", "numba", "datasets", "torchdata"}


def test_importing_the_package_does_not_load_it():
    assert "shufflestore.testing" not in loaded_by("import shufflestore")
