"""Every example runs, small, in a process of its own, and checks its own claims."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# One thread of torch each: these are small, and two tests run at a time.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = {
    "distributed.py": ["--records", "101"],
    "huggingface_in_place.py": ["--records", "600"],
    "numpy_only.py": ["--records", "6000"],
    "own_loop_writer.py": ["--records", "300"],
    "quickstart.py": ["--megabytes", "1", "--seconds", "0.2", "--workers", "1"],
    "resume.py": ["--records", "400"],
    "train_accelerate.py": ["--folder", "."],
    "train_ddp.py": ["--folder", "."],
    "train_fabric.py": ["--folder", "."],
    "train_lightning.py": ["--folder", "."],
    "train_titan.py": ["--folder", "."],
    "train_tokens.py": ["--steps", "12", "--files", "2"],
    "train_transformers.py": ["--folder", "."],
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STARTED_BY = {"train_ddp.py": TORCHRUN, "train_titan.py": TORCHRUN}


def test_every_example_is_run():
    assert sorted(p.name for p in EXAMPLES.glob("*.py")) == sorted(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_example(name, tmp_path):
    arguments = [*SMALL[name], *(["--data", str(tmp_path)] if name == "quickstart.py" else [])]
    warnings = ["-W", "error::UserWarning", "-W", "ignore:The 'train_dataloader' does not have many workers"]
    command = [sys.executable, *warnings, *STARTED_BY.get(name, []), EXAMPLES / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_quickstart_runs_a_second_time_and_shows_both_loaders(tmp_path):
    command = [sys.executable, EXAMPLES / "quickstart.py", *SMALL["quickstart.py"], "--data", tmp_path]
    for again in (False, True):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("using the tokens of an earlier run" in done.stdout) == again
        assert re.search(r"came exactly\s+once", done.stdout)
        assert re.search(r"shufflestore: [\d,.]+ x the Hugging Face loader", done.stdout)


def test_the_scripts_are_sound_shell():
    root = EXAMPLES.parent
    for script in (EXAMPLES / "quickstart.sh", root / "tests/run.sh", root / ".ci/run", root / ".ci/environment.sh"):
        subprocess.run(["bash", "-n", script], check=True, timeout=60)
