from __future__ import annotations

import pytest

from shufflestore.distributed.env import from_environment
from shufflestore.errors import OptionError
from shufflestore.orders.partition import Topology

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
SRUN = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
SBATCH = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environ", "topology"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1", "PATH": "/bin"}, None),
        (TORCHRUN, Topology(3, 8)),
        (MPIRUN, Topology(1, 2)),
        (SRUN, Topology(2, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, Topology(2, 4)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "3"}, Topology(2, 3)),
        ({**SRUN, **TORCHRUN}, Topology(3, 8)),
        ({**SBATCH, **MPIRUN}, Topology(1, 2)),
        ({**MPIRUN, **TORCHRUN}, Topology(3, 8)),
        (SBATCH, None),
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}, None),
    ],
    ids=lambda value: "" if value is None or isinstance(value, Topology) else "-".join(value)[:40],
)
def test_the_innermost_launcher_says_who_this_is(environ, topology):
    assert from_environment(environ) == topology


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"RANK": "0"}, "RANK=0 but not WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 but not RANK"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE"),
        ({"SLURM_PROCID": "0"}, "SLURM_NTASKS"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK='2' and WORLD_SIZE='2'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1'"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK=''"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one'"),
        ({"SLURM_PROCID": "9", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "5"}, "SLURM_STEP_NUM_TASKS='5'"),
    ],
)
def test_variables_that_contradict_themselves_are_refused(environ, named):
    with pytest.raises(OptionError, match=named):
        from_environment(environ)


def test_the_process_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert from_environment() == Topology(1, 4)
