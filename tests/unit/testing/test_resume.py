"""assert_resumes_everywhere passes what resumes exactly, and shows where other loaders lose or repeat records."""

from __future__ import annotations

import pytest
import torch.utils.data
from torchdata.stateful_dataloader import StatefulDataLoader

from shufflestore.errors import OptionError
from shufflestore.testing import assert_resumes_everywhere
from tests.unit.testing.peers import (
    by_name,
    hf_buffer,
    hf_in_order,
    ours,
    plain,
    stateful_distributed,
    stateful_random,
    torch_random,
)

# Theirs to mend: torchdata calls a function of torch's that is gone; Python 3.12 warns of forks beside threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
ALONE = [{"world_size": 1}]


@pytest.fixture(scope="module")
def make_for(tmp_path_factory):
    return ours(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("n", [1, 30, 41])
def test_our_loader_resumes_after_every_batch_at_any_world_and_batch_size(make_for, n, epoch):
    topologies = [{"world_size": 1}, {"world_size": 2, "batch_size": 3}, {"world_size": 3, "batch_size": 64}]
    assert_resumes_everywhere(make_for(n), by_name, n, topologies=topologies, epoch=epoch)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_torchdata_resumes_at_its_own_world_size(world):
    assert_resumes_everywhere(stateful_distributed(96), plain, 96, topologies=[{"world_size": world}], epoch=1)


def test_torchdata_resumes_with_workers_and_a_sampler_that_has_a_state():
    topologies = [{"num_workers": 2}]
    assert_resumes_everywhere(stateful_random(40), plain, 40, topologies=topologies, at_steps=[0, 2, 5])


def test_hugging_face_resumes_where_nothing_is_buffered():
    assert_resumes_everywhere(hf_in_order(96), by_name, 96, topologies=[{"world_size": 2}])


@pytest.mark.parametrize(
    ("saved", "resumed", "words"),
    [
        (1, 2, r"72 records delivered, 96 expected; 24 lost: (\d+, ){7}\d+ and 16 more$"),
        (
            2,
            1,
            r"120 records delivered, 96 expected; 24 repeated: \d+ \(before, rank . batch ., after, rank 0 batch .\)",
        ),
    ],
)
def test_torchdata_loses_or_repeats_records_at_another_world_size(saved, resumed, words):
    with pytest.raises(
        AssertionError, match=f"^saved with world_size={saved}, epoch 0, after step 3 .*{resumed}: {words}"
    ):
        assert_resumes_everywhere(
            stateful_distributed(96), plain, 96, at_steps=[3],
            topologies=[{"world_size": saved}], resumed_at=[{"world_size": resumed}],
        )  # fmt: skip


def test_torchdata_does_not_resume_with_another_number_of_workers():
    with pytest.raises(AssertionError, match="num_workers=0.*resumed with world_size=1, num_workers=2: .* failed with"):
        assert_resumes_everywhere(
            stateful_random(40),
            plain,
            40,
            topologies=[{"num_workers": 0}],
            resumed_at=[{"num_workers": 2}],
            at_steps=[2],
        )


def test_hugging_face_loses_what_its_buffer_held():
    with pytest.raises(AssertionError, match=r"resumed with world_size=1: .* lost: "):
        assert_resumes_everywhere(hf_buffer(96), by_name, 96, topologies=ALONE)


def test_torchdatas_state_holds_the_generator_of_its_sampler():
    assert_resumes_everywhere(
        lambda **_: StatefulDataLoader(range(40), 8, shuffle=True), plain, 40, topologies=ALONE, epoch=1
    )


def test_an_order_that_the_state_does_not_hold_comes_in_other_batches():
    class Random(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(torch.randperm(40).tolist())

    def make(rank, world_size):
        return StatefulDataLoader(range(40), 8, sampler=Random())

    with pytest.raises(AssertionError, match=r"but not in the batches .* rank 0 batch 0 after the resume holds \["):
        assert_resumes_everywhere(make, plain, 40, topologies=ALONE)


def test_a_loader_without_a_state_is_named():
    with pytest.raises(
        OptionError, match="torch.utils.data.dataloader.DataLoader without state_dict and load_state_dict"
    ):
        assert_resumes_everywhere(torch_random(40), plain, 40)


class Counting:
    """Resumes by skipping what it counted; each fault is one that loaders have had."""

    def __init__(self, fault=None):
        self.fault, self.skip, self.count = fault, 0, 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.skip = self.count = state["count"]
        if self.fault == "only since the resume":
            self.count = 0
        if self.fault == "refuses" and self.count == 3:
            raise KeyError("count")

    def __iter__(self):
        order = list(range(12))
        if self.fault == "turns batches round" and self.skip:
            order = [i + 1 - 2 * (i % 2) for i in order]
        for start in range(2 * self.skip, 12, 2):
            self.count += 1
            yield order[start : start + 2]
        self.skip = 0
        self.count = 0


def proof(fault, **options):
    assert_resumes_everywhere(lambda **_: Counting(fault), plain, 12, topologies=ALONE, **options)


def test_the_counting_loader_itself_is_right():
    proof(None)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "only since the resume",
            "after step 1 of 6; .* a step later; .* 2 repeated: 2 .between, rank 0 batch 0, after, rank 0 batch 0",
        ),
        (
            "refuses",
            "after step 2 of 6; .* saved again a step later; .*: loading the state failed with KeyError: 'count'",
        ),
        ("turns batches round", r"rank 0 batch 0 after the resume holds \[3, 2\], there it held \[2, 3\]"),
    ],
)
def test_each_promise_can_fail(fault, words):
    with pytest.raises(AssertionError, match=words):
        proof(fault)


def test_a_loader_that_never_gets_beyond_a_loaded_end_fails():
    class Stuck(Counting):
        def __iter__(self):
            for start in range(2 * self.skip, 12, 2):
                self.count += 1
                yield [start, start + 1]

    with pytest.raises(AssertionError, match="at the end of epoch 0; resumed .*, the next epoch: 0 records delivered"):
        assert_resumes_everywhere(lambda **_: Stuck(), plain, 12, topologies=ALONE)


def test_each_rank_gets_its_own_state_back_where_the_world_is_the_same():
    class Own(Counting):
        """Half of the records; a state is of use to its own rank alone."""

        def __init__(self, rank, world_size):
            super().__init__()
            self.rank = rank

        def state_dict(self):
            return {"count": self.count, "rank": self.rank}

        def load_state_dict(self, state):
            if state["rank"] != self.rank:
                raise ValueError(f"of rank {state['rank']}, not {self.rank}")
            super().load_state_dict(state)

        def __iter__(self):
            return ([i + 12 * self.rank for i in batch] for batch in super().__iter__())

    assert_resumes_everywhere(Own, plain, 24, topologies=[{"world_size": 2}])
    with pytest.raises(AssertionError, match="loading the state failed with ValueError: of rank 0, not 2"):
        assert_resumes_everywhere(Own, plain, 24, topologies=[{"world_size": 2}], resumed_at=[{"world_size": 3}])


def test_batches_are_not_compared_where_no_order_is_promised():
    proof("turns batches round", in_order=False)


def test_a_loader_that_fails_uninterrupted_is_said_to():
    with pytest.raises(
        AssertionError, match="epoch 0, not interrupted: 104 records delivered, 103 expected; 1 repeated"
    ):
        assert_resumes_everywhere(stateful_distributed(103), plain, 103, topologies=[{"world_size": 2}])


def test_an_error_while_reading_on_is_told_with_its_place():
    class Breaks(Counting):
        def __iter__(self):
            if self.skip:
                raise RuntimeError("worker died")
            yield from super().__iter__()

    with pytest.raises(
        AssertionError,
        match="after step 0 of 6; .* saved again a step later; .*: reading on failed with RuntimeError: worker died",
    ):
        assert_resumes_everywhere(lambda **_: Breaks(), plain, 12, topologies=ALONE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"at_steps": [7]}, r"at_steps=\[7\], but with world_size=1 an epoch has 6 steps"),
        ({"at_steps": [-1]}, "at least 0"),
        ({"epoch": -1}, "epoch=-1"),
        ({"resumed_at": []}, "topologies is empty"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(options, words):
    with pytest.raises(OptionError, match=words):
        proof(None, **options)
