"""Exit codes, errors on one line or as JSON, and the two ways to start the program."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import shufflestore
from shufflestore import errors
from shufflestore.cli import main as program
from shufflestore.cli.main import DONE, FAULTY, USAGE, main


def test_usage_is_2_and_goes_to_stderr(capsys):
    for arguments in ([], ["fly"], ["info"], ["verify", "--grace", "x"], ["head", "p", "-n", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == USAGE
        out, err = capsys.readouterr()
        assert not out
        assert "usage: shufflestore" in err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == DONE
    told = capsys.readouterr().out
    assert {"convert", "index", "info", "head", "verify", "gc"} <= set(re.findall(r"^ +(\w+) ", told, re.MULTILINE))


def test_abbreviations_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "a", "b", "--work", "2"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.OptionError, USAGE),
        (errors.NotFound, USAGE),
        (errors.AlreadyExists, USAGE),
        (errors.MissingDependency, USAGE),
        (errors.CorruptData, FAULTY),
        (errors.SourceError, FAULTY),
        (errors.SchemaError, FAULTY),
        (errors.OutOfSpace, FAULTY),
        (errors.UnsupportedFeature, FAULTY),
    ],
)
def test_errors_become_one_line_and_a_code(error, code, monkeypatch, capsys):
    def fail(args):
        raise error("what happened: what to do")

    monkeypatch.setattr(program.info, "run", fail)
    assert main(["info", "x"]) == code
    assert capsys.readouterr().err == f"shufflestore: {error.__name__}: what happened: what to do\n"
    assert main(["info", "x", "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": error.__name__, "message": "what happened: what to do"}
    assert not err


def test_an_interrupt_is_130_and_a_closed_pipe_141(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(program.info, "run", interrupt)
    assert main(["info", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr(program.info, "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


def test_both_ways_to_start_it():
    for command in (
        [sys.executable, "-m", "shufflestore"],
        [str(__import__("pathlib").Path(sys.executable).parent / "shufflestore")],
    ):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == f"shufflestore {shufflestore.__version__}\n"


def test_a_closed_pipe_makes_no_noise(store):
    command = f"{sys.executable} -m shufflestore head {store} -n 30 | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert not done.stderr
