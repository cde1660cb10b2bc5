"""Who am I, by the environment variables that launchers set."""

from __future__ import annotations

__all__ = ["from_environment"]

import os
from collections.abc import Mapping

from shufflestore.errors import OptionError
from shufflestore.orders.partition import Topology

# Innermost launcher first: torchrun is started by srun or mpirun, and mpirun inside a Slurm job.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def from_environment(environ: Mapping[str, str] | None = None) -> Topology | None:
    """Return the topology a launcher announced, or None if there was none.

    Read are, the first found counting: RANK and WORLD_SIZE (torchrun and most others), Open MPI's
    OMPI_COMM_WORLD_RANK and _SIZE, Slurm's SLURM_PROCID and SLURM_NTASKS (SLURM_STEP_NUM_TASKS
    where srun set it). They may disagree, since one launcher starts another. A Slurm batch script
    or salloc shell that srun did not start is one process, however many tasks its job has.

    Args:
        environ: What to read; None is os.environ.

    Raises:
        OptionError: Only one of a pair is set, or they are not a rank below a world size.

    >>> from_environment({"RANK": "1", "WORLD_SIZE": "8"})
    Topology(rank=1, world_size=8)
    >>> from_environment({}) is None
    True
    """
    given = os.environ if environ is None else environ
    for rank_name, world_name in _LAUNCHERS:
        rank, world = given.get(rank_name), given.get(world_name)
        if rank_name == "SLURM_PROCID":
            if _is_outside_srun(given):
                continue
            if "SLURM_STEP_NUM_TASKS" in given:
                world_name, world = "SLURM_STEP_NUM_TASKS", given["SLURM_STEP_NUM_TASKS"]
        if rank is None and world is None:
            continue
        return _topology(rank_name, rank, world_name, world)
    return None


def _is_outside_srun(environ: Mapping[str, str]) -> bool:
    # sbatch and salloc export the job's task count to a shell that is not one of those tasks.
    in_job = "SLURM_JOB_ID" in environ or "SLURM_PROCID" not in environ
    return in_job and not {"SLURM_STEP_ID", "SLURM_STEPID"} & environ.keys()


def _topology(rank_name: str, rank: str | None, world_name: str, world: str | None) -> Topology:
    if rank is None or world is None:
        found, lacking = (world_name, rank_name) if rank is None else (rank_name, world_name)
        raise OptionError(
            f"the environment sets {found}={world if rank is None else rank} but not {lacking}; "
            "set both or neither, or pass rank= and world_size="
        )
    try:
        return Topology(int(rank), int(world))
    except ValueError as error:  # int() of a word, or an OptionError of the ranges
        raise OptionError(
            f"the environment sets {rank_name}={rank!r} and {world_name}={world!r}, "
            f"which is no rank below a world size: {error}"
        ) from None
