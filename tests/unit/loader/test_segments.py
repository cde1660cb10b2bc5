"""Memory shared with worker processes: what arrives is what was sent, and nobody's memory is written while he holds it."""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data._utils import collate

from shufflestore.loader.messages import dumps
from shufflestore.loader.segments import SegmentPool, SegmentTable
from tests.scenes import child_code, later_child

LARGE = 100_000
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def table() -> SegmentTable:
    return SegmentTable()


@pytest.fixture
def pool(table) -> SegmentPool:
    return SegmentPool(table.number)


def crossed(pool, what):
    """What arrives, here in the same process."""
    return ForkingPickler.loads(dumps(what, pool))


def large(value: int, length: int = LARGE) -> torch.Tensor:
    return torch.full((length,), value, dtype=torch.uint8)


# -- what arrives -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.complex64],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7, 5), (130, 257, 3)], ids=str)
def test_a_tensor_arrives_as_it_was(pool, dtype, shape):
    sent = (torch.rand(shape) * 100).to(dtype)
    came = crossed(pool, sent)
    assert type(came) is torch.Tensor
    assert (came.dtype, came.shape, came.stride()) == (sent.dtype, sent.shape, sent.stride())
    assert torch.equal(came, sent)
    assert came.storage_offset() == 0
    assert not came._is_view()


@pytest.mark.parametrize("length", [12, LARGE])
def test_views_arrive_with_the_strides_that_torch_would_send(pool, length):
    whole = torch.arange(length * 6, dtype=torch.float32).view(6, length)
    for sent in (whole.T, whole[1:], whole[:, 3:], whole.expand(2, 6, length), whole[::2], whole.view(3, 2, length)):
        came, theirs = crossed(pool, sent), ForkingPickler.loads(ForkingPickler.dumps(sent.clone()[:]))
        assert torch.equal(came, theirs)
        assert torch.equal(came, sent)
        assert came.stride() == sent.stride()


@pytest.mark.parametrize("length", [7, LARGE])
@pytest.mark.parametrize("dtype", ["?", "u1", "i4", "f2", "c16", "M8[s]", "S3", "U2", "i4,(2,)f8"])
def test_a_numpy_array_arrives_as_it_was(pool, dtype, length):
    sent = np.frombuffer(np.random.default_rng(0).bytes(length * np.dtype(dtype).itemsize), "u1") % 2
    sent = sent.view(dtype).reshape(1, length, 1)
    came, same = crossed(pool, [sent, sent])
    assert came is same
    assert type(came) is np.ndarray
    assert (came.dtype, came.shape, came.strides) == (sent.dtype, sent.shape, sent.strides)
    assert came.tobytes() == sent.tobytes()
    assert came.flags.writeable
    assert len(pool) == (sent.nbytes > 16384)


def test_other_arrays_arrive_pickles_way(pool):
    sent = [np.arange(LARGE).reshape(10, -1).T, np.array(["a", None] * LARGE, object), np.ma.arange(LARGE)[::2]]
    came = crossed(pool, sent)
    assert all(type(a) is type(b) and np.array_equal(a, b) for a, b in zip(came, sent, strict=True))
    assert came[0].strides == sent[0].strides
    assert len(pool) == 0


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_what_is_no_plain_tensor_goes_torchs_way(pool):
    wanted = large(3).float().requires_grad_()
    came = crossed(pool, [wanted, torch.nn.Parameter(large(4).float()), torch.eye(3).to_sparse()])
    assert came[0].requires_grad
    assert torch.equal(came[0], wanted)
    assert type(came[1]) is torch.nn.Parameter
    assert came[2].is_sparse
    assert len(pool) == 0


@pytest.mark.parametrize("length", [9, LARGE])
def test_a_conjugate_that_was_never_computed_arrives_as_one(pool, length):
    number = torch.full((length,), 1 + 2j)
    came = crossed(pool, [number.conj(), number, number.conj().imag])
    assert [complex(x[5]) for x in came] == [1 - 2j, 1 + 2j, -2]
    came = crossed(pool, [torch.full((length,), i + 2j).conj() for i in range(9)])
    assert [complex(x[5]) for x in came] == [i - 2j for i in range(9)]


@pytest.mark.parametrize("length", [8, LARGE])
def test_tensors_that_share_memory_still_do(pool, length):
    whole = torch.zeros(100, length)
    rows = crossed(pool, {"whole": whole, "rows": list(whole)})
    rows["rows"][7][3] = 5
    assert rows["whole"][7, 3] == 5
    assert len({row.untyped_storage().data_ptr() for row in rows["rows"]}) == 1
    assert len(pool) == (length == LARGE)
    assert whole.sum() == 0


def test_what_the_data_set_sends_again_is_shared_for_good(pool):
    kept = large(3)
    came = [crossed(pool, kept[1:]) for _ in range(5)]
    assert [x.is_shared() for x in came] == [False, True, True, True, True]
    assert all((x == 3).all() for x in came)
    assert len(pool) == 1
    for i in range(5):
        assert not crossed(pool, large(i)).is_shared(), "another one, though perhaps at the same address"


def test_little_of_a_very_large_tensor_is_shared_for_good_at_once(pool, monkeypatch):
    monkeypatch.setattr("shufflestore.loader.segments._KEPT", 50 * LARGE)
    whole = torch.zeros(100, LARGE, dtype=torch.uint8)
    came = crossed(pool, whole[3])
    assert came.is_shared()
    assert len(pool) == 0
    came[0] = 5
    assert whole[3, 0] == 5


def test_small_records_that_the_data_set_keeps_are_sent_alone(pool):
    whole = torch.rand(40, 50, 60)
    assert all(torch.equal(x, whole[i]) for i, x in enumerate(crossed(pool, list(whole))))
    assert len(pool) == 1, "the first time it could be a batch"
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        came = crossed(pool, [*whole, whole[7].T, whole[7, ::2], whole[0, 0, 0]])
        assert len(os.listdir("/proc/self/fd")) < before + 20, "not one for each"
        assert all(torch.equal(x, whole[i]) for i, x in enumerate(came[:40]))
        assert torch.equal(came[40], whole[7].T)
        assert came[40].stride() == (1, 60)
        assert torch.equal(came[41], whole[7, ::2])
        assert came[42] == whole[0, 0, 0]
        came[0][0] = 9
    assert not whole.is_shared()
    assert (whole < 1).all()


@pytest.mark.filterwarnings("ignore:.*must not be out of place")
def test_a_batch_is_stacked_like_torchs(pool):
    for batch in ([torch.rand(300, 40)] * 5, [torch.rand(3)] * 5, [torch.tensor(3)] * 4, [torch.rand(0, 3)] * 2):
        came = pool.collate_tensor(batch)
        assert torch.equal(came, torch.stack(batch))
        assert came.stride() == torch.stack(batch).stride()
        assert came.dtype == batch[0].dtype
    with pytest.raises(RuntimeError, match="equal size"):
        pool.collate_tensor([torch.rand(300, 40), torch.rand(300, 41)])
    with pytest.raises(TypeError, match="can't be cast"):
        pool.collate_tensor([torch.ones(300, dtype=torch.int64), torch.rand(300)])
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        pool.collate_tensor([torch.rand(30000), torch.rand(30000, requires_grad=True)])
    with pytest.raises(RuntimeError, match="sparse"):
        pool.collate_tensor([torch.eye(3).to_sparse()])


# -- whose memory it is ---------------------------------------------------------------------------------


def test_a_segment_is_used_again_when_nothing_looks_at_it_any_more(pool, table):
    came = crossed(pool, large(1))
    assert (len(pool), len(table)) == (1, 1)
    view = came[5:].numpy()
    del came
    second = crossed(pool, large(2))
    assert (view == 1).all()
    assert len(pool) == 2
    alias = second.view(-1, 2).T
    del second, view
    third = crossed(pool, large(3))
    assert len(pool) == 2, "the first is free again"
    assert (alias == 2).all()
    assert (third == 3).all()


def test_an_array_holds_its_segment_too(pool):
    part = crossed(pool, np.full(LARGE, 1))[7:9]
    assert (crossed(pool, np.full(LARGE, 2)) == 2).all()
    assert part.tolist() == [1, 1]
    del part
    assert (crossed(pool, np.full(LARGE, 3)) == 3).all()
    assert len(pool) == 2


def test_as_many_segments_as_are_in_use(pool, table):
    held = []
    for i in range(500):
        held = [*held[-3:], crossed(pool, large(i % 256))]
        assert [int(x[0]) for x in held] == [j % 256 for j in range(max(0, i - 3), i + 1)]
        assert all((x == x[0]).all() for x in held)
    assert len(pool) <= 6
    assert len(table) == len(pool)


def test_what_the_worker_keeps_is_not_written(pool):
    kept = pool.collate_tensor([large(7)] * 4)
    for _ in range(100):  # more often than a segment's header counts
        came = crossed(pool, kept)
        assert (came == 7).all()
        del came
    others = [crossed(pool, large(i, 4 * LARGE)) for i in range(5)]
    assert (kept == 7).all()
    assert all((x == i).all() for i, x in enumerate(others))


def test_what_was_sent_and_is_held_twice_waits_for_both(pool):
    kept = pool.collate_tensor([large(7)] * 4)
    first, second = crossed(pool, kept), crossed(pool, kept)
    del kept, first
    assert (crossed(pool, large(9, 4 * LARGE)) == 9).all()
    assert (second == 7).all()
    assert len(pool) == 2
    del second
    held = [crossed(pool, large(i, 4 * LARGE)) for i in range(2)]
    assert len(pool) == 2, "both are free again"
    assert all((x == i).all() for i, x in enumerate(held))


def test_a_batch_that_is_not_sent_leaves_its_segment_at_once(pool):
    for _ in range(50):
        _ = pool.collate_tensor([large(7)] * 4)
    assert len(pool) <= 2


def test_sizes_that_change_leave_no_heap_of_segments(pool, table):
    rng = np.random.default_rng(0)
    held, most = [], 0
    for i in range(800):
        length = int(2 ** rng.uniform(15, 22 if i < 200 else 17))
        held = [*held[-3:], crossed(pool, large(i % 256, length))]
        assert (held[-1] == i % 256).all()
        in_use = sum(x.numel() for x in held)
        most = max(most, sum(segment.capacity for segment in pool._by_address.values()) / in_use)
    assert sum(segment.capacity for segment in pool._by_address.values()) < 5 << 20, (
        "large ones that nobody uses are gone"
    )
    assert len(table) <= len(pool) + 1
    assert most < 40, most


def test_no_more_idle_memory_than_in_use_when_another_is_made(pool):
    held = [crossed(pool, large(1, 1 << 20)) for _ in range(4)]
    del held
    crossed(pool, large(1, 1 << 17))
    assert sum(segment.capacity for segment in pool._by_address.values()) < 1 << 18


def test_idle_segments_go_where_there_is_no_memory(pool, monkeypatch):
    new, calls = torch.UntypedStorage._new_shared, []

    def failing(size):
        calls.append(size)
        if len(calls) in (3, 5, 6):
            raise RuntimeError("unable to allocate shared memory(shm)")
        return new(size)

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", failing)
    first, second = crossed(pool, large(1, 1 << 20)), crossed(pool, large(2))
    del second
    assert (crossed(pool, large(3, 1 << 18)) == 3).all()
    assert (first == 1).all()
    assert len(pool) == 2
    held = crossed(pool, large(4, 1 << 18))
    with pytest.raises(RuntimeError, match="unable to allocate"):
        crossed(pool, large(5, 1 << 19))
    assert (held == 4).all()


def test_several_threads_may_stack_at_once(pool):
    errors = []

    def work(value: int) -> None:
        for _ in range(200):
            came = pool.collate_tensor([large(value)] * 2)
            if not bool((came == value).all()):
                errors.append(value)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sys.setswitchinterval(interval)
    assert not errors
    assert len(pool) <= 16


@pytest.mark.parametrize("is_sent", [True, False])
def test_what_a_child_looks_at_is_never_written_again(pool, is_sent):
    held = [crossed(pool, large(1)) if is_sent else pool.collate_tensor([large(1)])]

    def see() -> None:
        assert (held[0].numpy() == 1).all()  # not by torch, whose threads are not there any more

    with later_child(see) as code:
        held.clear()
        for i in range(20):
            assert (crossed(pool, large(100 + i)) == 100 + i).all()
        assert code() == 0


def test_a_child_that_drops_its_copy_gives_nothing_back(pool, table):
    for i in range(20):
        held = [crossed(pool, large(i))]
        assert child_code(held.clear) == 0
        assert [(crossed(pool, large(j)) == j).all().item() for j in range(30, 33)] == [True] * 3
        assert (held[0] == i).all()
    assert len(pool) <= 3, "what a child has seen is let go"
    assert len(table) <= 4


@pytest.mark.parametrize("sent", [large(1), np.full(LARGE, 1)])
def test_a_copy_is_nobody_elses_before_it_is_sent(pool, monkeypatch, sent):
    address = SegmentPool.address

    def beside(pool, segment):
        pool.take(segment.capacity).fill_(9)  # as a thread would that stacks
        return address(pool, segment)

    monkeypatch.setattr(SegmentPool, "address", beside)
    assert (crossed(pool, sent) == 1).all()


def test_what_cannot_be_pickled_loses_no_segment(pool, table):
    for _ in range(30):
        with pytest.raises(Exception, match="lambda"):
            dumps([large(1), lambda: None], pool)
    assert len(pool) == 0
    assert (crossed(pool, large(2)) == 2).all()
    assert (len(pool), len(table)) == (1, 1)


def test_the_users_own_rule_for_tensors_stays(monkeypatch, pool):
    monkeypatch.setattr(collate, "default_collate_fn_map", dict(collate.default_collate_fn_map))
    pool.serve_default_collate()
    assert collate.default_collate_fn_map[torch.Tensor] == pool.collate_tensor
    mine = {**collate.default_collate_fn_map, torch.Tensor: list}
    monkeypatch.setattr(collate, "default_collate_fn_map", mine)
    pool.serve_default_collate()
    assert collate.default_collate_fn_map[torch.Tensor] is list
