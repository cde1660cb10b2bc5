"""`shufflestore.convert` is a function for who calls it and a package for who imports from it, whichever came first."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import shufflestore as ss
from shufflestore.convert.run import convert


@pytest.mark.parametrize(
    "program",
    [
        "import shufflestore as ss; ss.convert([{'x': 1}], TARGET)",
        "import shufflestore.convert, shufflestore as ss; ss.convert([{'x': 1}], TARGET)",
        "from shufflestore import convert; convert([{'x': 1}], TARGET)",
        "from shufflestore.convert.run import convert; import shufflestore as ss; ss.convert([{'x': 1}], TARGET)",
        "import shufflestore as ss; ss.Writer; ss.convert([{'x': 1}], target=TARGET, if_exists='error')",
    ],
)
def test_it_can_be_called_in_whatever_way_it_was_imported(tmp_path, program):
    program = program.replace("TARGET", repr(str(tmp_path / "out")))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert ss.open(tmp_path / "out").take([0]).to_pylist() == [{"x": 1}]


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, shufflestore.convert; print([m for m in ('pyarrow', 'numpy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_signature_is_that_of_the_issue():
    names = list(inspect.signature(convert).parameters)
    assert names == ["source", "target", "columns", "schema", "if_exists", "options", "storage_options"]
    assert inspect.signature(convert).parameters["if_exists"].default == "error"
