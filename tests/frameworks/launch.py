"""Ranks of a training script, as torchrun starts them, but forked from a process that has imported the framework.

An import of several seconds is then paid once and not by each rank of each run. A rank can be told to kill itself
(SIGKILL) right after one of its optimizer's steps; its supervisor kills the others, as torchrun does.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
WARM = ("torch._dynamo", "torch.nn.parallel", "pandas", "shufflestore.loader.loader", "shufflestore.convert.run")
"""What every rank would import: the first step of an optimizer imports the compiler, pyarrow's first array pandas."""
DEADLINE_SECONDS = 90


class Launcher:
    """Starts ranks and waits for them."""

    def __init__(self, *modules: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.frameworks.launch", *modules], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(30)

    def run(self, target: str, arguments: list[str], world: int, folder: Path, kill_at: int = 0) -> list[int]:
        """Run all ranks to their end; return their exit codes, -9 for a killed one.

        Args:
            target: A script, or "module:function", called with the arguments.
            arguments: Of each rank.
            world: Ranks; 0 for one process without a launcher's variables.
            folder: Where ranks work and where their output goes.
            kill_at: The last rank kills itself after so many optimizer steps; 0 for never.
        """
        job = {"target": target, "arguments": arguments, "world": world, "folder": str(folder), "kill_at": kill_at}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        codes: list[int] = json.loads(self._server.stdout.readline())
        return codes

    def succeed(self, target: str, arguments: list[str], world: int, folder: Path) -> str:
        """Run all ranks; return what they printed. All must end well."""
        codes = self.run(target, arguments, world, folder)
        printed = "".join(file.read_text() for file in sorted(folder.glob(f"printed-{world}-*.txt")))
        assert codes == [0] * max(world, 1), f"{codes}\n{printed}"
        return printed

    def answers(self, target: str, arguments: list[str], world: int, folder: Path) -> list[Any]:
        """Run all ranks; return what the last line of each is as JSON."""
        self.succeed(target, arguments, world, folder)
        files = [folder / f"printed-{world}-{rank}.txt" for rank in range(max(world, 1))]
        return [json.loads(file.read_text().splitlines()[-1]) for file in files]

    def killed(self, target: str, arguments: list[str], world: int, folder: Path, after: int) -> None:
        """Run all ranks until the last one has killed itself."""
        codes = self.run(target, arguments, world, folder, kill_at=after)
        printed = "".join(file.read_text() for file in sorted(folder.glob(f"printed-{world}-*.txt")))
        assert codes[-1] == -signal.SIGKILL, f"{codes}\n{printed}"
        assert 0 not in codes, "a rank went on without the others"


def _serve(modules: list[str]) -> None:
    for module in (*WARM, *modules):
        importlib.import_module(module)
    gc.freeze()  # what is here is never collected in a rank, hence not copied
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(max(job["world"], 1)):
            pid = os.fork()
            if pid == 0:
                _be_rank_and_exit(job, rank, port)
            ranks.append(pid)
        print(json.dumps(_supervised(ranks)), flush=True)


def _supervised(ranks: list[int]) -> list[int]:
    """Wait for all; once one has failed, or time is over, kill the others."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(codes) < len(ranks):
        for pid in set(ranks) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > deadline:
            for pid in set(ranks) - codes.keys():
                os.kill(pid, signal.SIGKILL)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.005)
    return [codes[pid] for pid in ranks]


def _be_rank_and_exit(job: dict[str, Any], rank: int, port: int) -> None:
    """Leave without tearing the interpreter down: that takes a second with a thousand modules, here copied on write."""
    code = 1
    try:
        _be_rank(job, rank, port)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_rank(job: dict[str, Any], rank: int, port: int) -> None:
    world, folder = job["world"], Path(job["folder"])
    printed = os.open(folder / f"printed-{world}-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((0, nothing), (1, printed), (2, printed)):
        os.dup2(new, old)
    if world:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
        )  # fmt: skip
    os.chdir(folder)
    faulthandler.dump_traceback_later(DEADLINE_SECONDS - 5)
    if job["kill_at"] and rank == world - 1:
        _die_after(job["kill_at"])
    target, arguments = job["target"], job["arguments"]
    if target.endswith(".py"):
        sys.argv = [target, *arguments]
        runpy.run_path(target, run_name="__main__")
    else:
        module, _, function = target.partition(":")
        getattr(importlib.import_module(module), function)(*arguments)


def _die_after(steps: int) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(count)


if __name__ == "__main__":
    _serve(sys.argv[1:])
