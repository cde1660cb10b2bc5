"""Reading never runs code and never unpickles; whatever a file holds, the answer is data or a named error."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import shufflestore
from tests import hostile

PACKAGE = Path(shufflestore.__file__).parent
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "yaml",
    "ctypes",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("os", "system"), ("os", "popen"), ("pa", "deserialize")}
ALLOWED: set[tuple[str, str]] = set()
"""(file, what): none. A loader's worker gets its arguments from torch, which pickles them itself."""


def findings(source: str, name: str) -> list[tuple[str, str]]:
    """Return what must not stand in a file of the package."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(name, a.name) for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append((name, str(node.module)))
        elif isinstance(node, ast.Call):
            call = node.func
            if isinstance(call, ast.Name) and call.id in FORBIDDEN_CALLS:
                found.append((name, call.id))
            if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name):
                if (call.value.id, call.attr) in FORBIDDEN_ATTRIBUTES:
                    found.append((name, f"{call.value.id}.{call.attr}"))
            if any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            ):
                found.append((name, "allow_pickle"))
        if isinstance(node, (ast.Name, ast.Attribute)):
            word = node.id if isinstance(node, ast.Name) else node.attr
            if word in ("PyExtensionType", "register_extension_type"):
                found.append((name, word))
    return found


def test_no_file_of_the_package_unpickles_or_runs_text():
    files = sorted(PACKAGE.rglob("*.py"))
    found = [f for file in files for f in findings(file.read_text("utf-8"), str(file.relative_to(PACKAGE)))]
    assert len(files) > 30
    assert [f for f in found if f not in ALLOWED] == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from marshal import loads", "eval('1')", "torch.load(f)", "np.load(f, allow_pickle=True)",
     "pa.PyExtensionType", "import joblib.parallel", "yaml.load(f)", "np.load(f, allow_pickle=flag)"],
)  # fmt: skip
def test_the_lint_sees_each_thing_that_it_forbids(line):
    assert findings(line, "x")


@pytest.mark.parametrize("name", list(hostile.TEXTS))
def test_a_manifest_that_is_none_is_refused_by_name(name):
    from shufflestore.format.manifest import Manifest

    message = hostile.refused(lambda: Manifest.decode(hostile.TEXTS[name], "the root"))
    assert "the root" in message


AUDIT = """
    import json, resource, sys, tempfile, time
    from pathlib import Path
    from shufflestore.errors import ShuffleStoreError
    from tests import attacks, hostile
    from tests.invented import arrow_bytes, memory_store, opened

    folder = Path(tempfile.mkdtemp())
    good = opened(memory_store([arrow_bytes(hostile.TABLE, 16), arrow_bytes(hostile.TABLE, 7)]))

    def tolerated(attempt):
        try:
            attempt()
            return "read"
        except ShuffleStoreError as error:
            return f"{type(error).__name__}: {error}"

    def everything():
        for name, attempt in attacks.attacks(folder):
            yield name, lambda a=attempt: hostile.refused(a)
        for name, attempt in attacks.mutations():
            yield name, lambda a=attempt: tolerated(a)
        for name, attempt in attacks.harmless():
            yield name, attempt

    for _, attempt in everything():  # whatever is imported or compiled on first use is, before anybody watches
        attempt()
    list(good.batches(8, shuffle=True))
    good.take(range(80))

    WATCHED = ("pickle.", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "ctypes.",
               "marshal.", "import", "code.__new__", "socket.", "shelve.")
    watching, events = False, []

    def hook(event, arguments):
        if watching and event.startswith(WATCHED):
            events.append((event, str(arguments)[:80]))

    sys.addaudithook(hook)
    slowest, count, messages = (0.0, ""), 0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, attempt in everything():
        watching, started = True, time.process_time()
        messages.append((name, attempt()))
        watching = False
        slowest = max(slowest, (time.process_time() - started, name))
        count += 1
    watching = True
    list(good.batches(8, shuffle=True, seed=3))
    good.take(range(79, -1, -1))
    good[5]
    watching = False
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    import os
    print(json.dumps({"events": events[:20], "count": count, "slowest": slowest, "grown_mb": grown,
                      "pwned": "PWNED" in os.environ, "messages": [m for m in messages if m[1]]}))
"""


@pytest.fixture(scope="module")
def audit() -> dict:
    """What a process saw while it read good data and refused all of the hostile files."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDIT)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=PACKAGE.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_code_runs_while_hostile_files_are_read_or_refused(audit):
    assert audit["events"] == []
    assert not audit["pwned"]
    assert audit["count"] >= 200


def test_refusals_are_quick_and_need_little_memory(audit):
    seconds, name = audit["slowest"]
    assert seconds <= 0.1, name
    assert audit["grown_mb"] <= 64


def test_every_refusal_is_of_a_named_kind_with_a_sentence(audit):
    kinds = {message.split(":")[0] for _, message in audit["messages"] if message != "read"}
    assert kinds <= {
        "CorruptData",
        "FormatError",
        "UnsupportedFeature",
        "OptionError",
        "NotFound",
        "ShardTruncated",
        "StorageError",
    }
    assert all(len(message) > 25 for _, message in audit["messages"] if message != "read")
