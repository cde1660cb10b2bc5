"""A state taken anywhere goes on exactly where it was taken, at any topology, and again after that."""

from __future__ import annotations

__all__ = ["assert_resumes_everywhere"]

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shufflestore.errors import OptionError
from shufflestore.testing.delivery import check_delivered, expected_ids, limit_of, some, told
from shufflestore.testing.driving import (
    WORLDS,
    Ids,
    Make,
    Step,
    Topology,
    loaders_of,
    set_epoch,
    skip_to,
    steps,
)


def assert_resumes_everywhere(
    make: Make,
    ids: Ids,
    records: int | Iterable[int],
    *,
    topologies: Sequence[Topology] = WORLDS,
    resumed_at: Sequence[Topology] | None = None,
    at_steps: Collection[int] | None = None,
    epoch: int = 0,
    in_order: bool = True,
) -> None:
    """Assert that a run resumed from any state delivers what was left of the epoch, nothing lost or repeated.

    In each of `topologies` one epoch is read, all ranks in step. A state of every rank is taken before the first
    batch, after each step, and after the end. From each, and for each of `resumed_at`:

    1. new loaders load it and read to the end: with what was delivered before, every record came exactly once, and
       where the topology is the state's own, in the same batches as without the interruption (see `in_order`);
    2. new loaders load it, read one step, and hand their states to a third run, in the topology of the first: again
       every record came exactly once;
    3. from the state after the end, the next epoch comes whole. An empty rest of the old one may come first.

    Rank r loads the state of rank r mod (world size of the run that saved it). `set_epoch` is called after
    loading where a loader, its samplers or its data set have it, as trainers do.

    Args:
        make: Returns a new loader of one rank, with `state_dict` and `load_state_dict`.
        ids: Returns the ids of a batch.
        records: How many, n, if their ids are 0 .. n - 1; else the ids.
        topologies: In which states are taken.
        resumed_at: In which they are loaded; None for `topologies`.
        at_steps: Take states only after so many steps, 0 being before the first batch; None for all. The state
            after the end is always taken.
        epoch: The epoch that is interrupted, at least 0.
        in_order: Whether the same batches are promised; False for a loader that delivers as its workers finish.

    Raises:
        AssertionError: Records were lost, repeated or foreign, batches differ, or a state was refused.
        OptionError: A loader has no state, or an argument makes no sense.

    Cost: each resume reads the rest of an epoch; 2 x topologies x resumed_at x steps of them.

    >>> class Loader:
    ...     def __init__(self, rank, world_size):
    ...         self.rank, self.world_size, self.start, self.done = rank, world_size, 0, 0
    ...     def state_dict(self):
    ...         return {"position": self.start + self.done * self.world_size}
    ...     def load_state_dict(self, state):
    ...         self.start = state["position"]
    ...     def __iter__(self):
    ...         for self.done, i in enumerate(range(self.start + self.rank, 12, self.world_size), 1):
    ...             yield [i]
    ...         self.start = self.done = 0
    >>> assert_resumes_everywhere(Loader, lambda batch: batch, 12)
    """
    expected = expected_ids(records)
    if epoch < 0 or (at_steps is not None and any(step < 0 for step in at_steps)):
        raise OptionError(f"epoch={epoch}, at_steps={at_steps}: numbers of at least 0 are needed")
    for topology in some(topologies):
        run = _Run.to_the_end(make, ids, topology, epoch, expected, at_steps)
        check_delivered(f"{told(topology)}, epoch {epoch}, not interrupted", expected, _named("", run.steps))
        for step in sorted(run.states):
            for other in some(topologies if resumed_at is None else resumed_at):
                case = _Case(make, ids, expected, run, step, other)
                case.goes_on(in_order=in_order)
                case.goes_on_again()
        for other in topologies if resumed_at is None else resumed_at:
            _Case(make, ids, expected, run, len(run.steps), other).goes_on_to_the_next_epoch()


@dataclass(frozen=True)
class _Run:
    """An epoch without interruption, and the states taken on the way."""

    topology: Topology
    epoch: int
    steps: list[Step]
    states: dict[int, list[Any]]
    """After how many steps: the state of each rank."""
    last: list[Any]
    """After the end."""

    @classmethod
    def to_the_end(
        cls, make: Make, ids: Ids, topology: Topology, epoch: int, expected: frozenset[int], at: Collection[int] | None
    ) -> _Run:
        loaders = loaders_of(make, topology)
        for loader in loaders:
            _check_has_state(loader)
            skip_to(loader, epoch)
        now = [_state_of(loader) for loader in loaders]
        taken, states = [], {0: now}
        for step in steps(loaders, ids, limit_of(expected)):
            taken.append(step)
            # A rank that has ended before the others keeps the state after its last batch.
            present = {each.rank for each in step}
            now = [_state_of(loader) if rank in present else now[rank] for rank, loader in enumerate(loaders)]
            states[len(taken)] = now
        if at is not None:
            if not states.keys() >= set(at):
                raise OptionError(f"at_steps={sorted(at)}, but with {told(topology)} an epoch has {len(taken)} steps")
            states = {step: states[step] for step in at}
        return cls(topology, epoch, taken, states, [_state_of(loader) for loader in loaders])


@dataclass(frozen=True)
class _Case:
    """One state, resumed at one topology."""

    make: Make
    ids: Ids
    expected: frozenset[int]
    run: _Run
    step: int
    topology: Topology

    @property
    def name(self) -> str:
        return (
            f"saved with {told(self.run.topology)}, epoch {self.run.epoch}, after step {self.step} of "
            f"{len(self.run.steps)}; resumed with {told(self.topology)}"
        )

    @property
    def before(self) -> list[Step]:
        return self.run.steps[: self.step]

    def goes_on(self, *, in_order: bool) -> None:
        """The first promise."""
        name = self.name
        rest = self._read(name, self._resume(name, self.topology, self.run.states[self.step]))
        whole = [*_named("before, ", self.before), *_named("after, ", rest)]
        check_delivered(name, self.expected, whole)
        if in_order and dict(self.topology) == dict(self.run.topology):
            _check_same_batches(name, self.run.steps[self.step :], rest)

    def goes_on_again(self) -> None:
        """The second promise."""
        name = self.name
        loaders = self._resume(name, self.topology, self.run.states[self.step])
        one, states = self._read_one(name, loaders)
        name += f", saved again a step later; resumed with {told(self.run.topology)}"
        rest = self._read(name, self._resume(name, self.run.topology, states))
        whole = [*_named("before, ", self.before), *_named("between, ", [one]), *_named("after, ", rest)]
        check_delivered(name, self.expected, whole)

    def goes_on_to_the_next_epoch(self) -> None:
        """The third promise."""
        name = (
            f"saved with {told(self.run.topology)}, at the end of epoch {self.run.epoch}; resumed with "
            f"{told(self.topology)}, the next epoch"
        )
        loaders = self._resume(name, self.topology, self.run.last, is_over=True)
        found = self._read(name, loaders)
        if not any(each.ids for step in found for each in step):
            for loader in loaders:
                set_epoch(loader, self.run.epoch + 1)
            found = self._read(name, loaders)
        check_delivered(name, self.expected, _named("", found))

    def _resume(self, name: str, topology: Topology, states: Sequence[Any], *, is_over: bool = False) -> list[Any]:
        loaders = loaders_of(self.make, topology)
        for rank, loader in enumerate(loaders):
            try:
                loader.load_state_dict(copy.deepcopy(states[rank % len(states)]))
            except Exception as error:
                raise _failed(name, "loading the state", error) from error
            if not is_over:
                set_epoch(loader, self.run.epoch)
        return loaders

    def _read(self, name: str, loaders: Sequence[Any]) -> list[Step]:
        try:
            return list(steps(loaders, self.ids, limit_of(self.expected)))
        except OptionError:
            raise
        except Exception as error:  # some look at the state only when they are iterated over
            raise _failed(name, "reading on", error) from error

    def _read_one(self, name: str, loaders: Sequence[Any]) -> tuple[Step, list[Any]]:
        """One step, if there is one, and the states after it: of a rank that delivered nothing, that it loaded."""
        ranks = self.run.states[self.step]
        reading = steps(loaders, self.ids, limit_of(self.expected))
        try:
            one = next(reading, [])
            present = {each.rank for each in one}
            states = [
                _state_of(loader) if rank in present else ranks[rank % len(ranks)]
                for rank, loader in enumerate(loaders)
            ]
        except OptionError:
            raise
        except Exception as error:
            raise _failed(name, "reading on", error) from error
        return one, states


def _check_has_state(loader: Any) -> None:
    lacking = [name for name in ("state_dict", "load_state_dict") if not callable(getattr(loader, name, None))]
    if lacking:
        kind = f"{type(loader).__module__}.{type(loader).__qualname__}"
        raise OptionError(
            f"make returned a {kind} without {' and '.join(lacking)}: a loader without a state cannot resume; "
            "return the object whose state your training loop saves"
        )


def _state_of(loader: Any) -> Any:
    return copy.deepcopy(loader.state_dict())


def _failed(name: str, what: str, error: Exception) -> AssertionError:
    return AssertionError(f"{name}: {what} failed with {type(error).__name__}: {error}")


def _named(when: str, run: Iterable[Step]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{when}rank {each.rank} batch {each.batch}", each.ids) for step in run for each in step]


def _check_same_batches(name: str, expected: Sequence[Step], found: Sequence[Step]) -> None:
    for rank in sorted({each.rank for step in expected for each in step}):
        whole, rest = ([each.ids for step in run for each in step if each.rank == rank] for run in (expected, found))
        for place in range(max(len(whole), len(rest))):
            theirs, ours = (run[place] if place < len(run) else None for run in (whole, rest))
            if theirs != ours:
                raise AssertionError(
                    f"{name}: every record came once, but not in the batches of the run that went on: rank {rank} "
                    f"batch {place} after the resume holds {_told(ours)}, there it held {_told(theirs)}"
                )


def _told(batch: tuple[int, ...] | None) -> str:
    if batch is None:
        return "nothing: it does not exist"
    return str(list(batch[:8])) + (f" and {len(batch) - 8} more" if len(batch) > 8 else "")
