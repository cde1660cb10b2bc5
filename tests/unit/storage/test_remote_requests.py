"""Retries, their budget, requests at a time and hedges, in simulated time: no thread, no socket, no waiting."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflestore.storage.remote_client import Answer, RemoteOptions
from shufflestore.storage.remote_requests import (
    HEDGE_BURST,
    HEDGE_SHARE,
    LEAST_SHARE,
    RETRY_TOKENS,
    Request,
    Schedule,
)

Server = Callable[[float, random.Random], "tuple[float, Answer | None]"]
"""server(now, random) -> the seconds that an attempt sent now takes, and how it ends."""
REFUSED = Answer("throttled", "503")
BROKEN = Answer("transient", "connection reset")


class World:
    """A store, as many senders as anybody wants, and a clock of its own."""

    def __init__(self, server: Server, seed: int = 0, **options) -> None:
        self.random = random.Random(seed)
        self.options = RemoteOptions(**options)
        self.schedule = Schedule(self.options, self.random.uniform)
        self.server = server
        self.now = 0.0
        self.sent: list[float] = []
        self.won: list[tuple[float, Request]] = []
        self.lost: list[tuple[float, Request]] = []
        self.most_in_flight = 0
        self._under_way: list[tuple[float, int, Request, float, Answer | None]] = []

    def ask(self, count: int, size: int = 2_000) -> list[Request]:
        made = [Request(None, size) for _ in range(count)]
        self.schedule.add(made)
        return made

    def run(self, until: float = 1e9, wanted: int | None = None) -> None:
        """Go on until then, until nothing is left to do, or until so many more have been answered."""
        enough = None if wanted is None else len(self.won) + len(self.lost) + wanted
        while self.now <= until:
            request, seconds = self.schedule.next(self.now)
            self.lost += [(self.now, one) for one in self.schedule.expired]
            self.schedule.expired = []
            if enough is not None and len(self.won) + len(self.lost) >= enough:
                return
            if request is not None:
                self.sent.append(self.now)
                self.most_in_flight = max(self.most_in_flight, self.schedule.in_flight)
                took, answer = self.server(self.now, self.random)
                heapq.heappush(self._under_way, (self.now + took, len(self.sent), request, self.now, answer))
                continue
            if not self._under_way and not self._is_waiting():
                return
            self.now += max(seconds, 1e-6)  # a clock never stands still
            if self._under_way and self._under_way[0][0] <= self.now:
                self._end_one()

    def _is_waiting(self) -> bool:
        schedule = self.schedule
        events = [request for _, _, _, request in schedule._events]
        queues = (schedule._retries, schedule._urgent, schedule._queue, events)
        return any(not one.is_done for queue in queues for one in queue)

    def _end_one(self) -> None:
        self.now, _, request, begun, answer = heapq.heappop(self._under_way)
        if answer is None:
            if self.schedule.succeeded(request, self.now - begun):
                self.won.append((self.now, request))
        elif self.schedule.failed(request, answer, self.now):
            self.lost.append((self.now, request))


def failing(share: float, *answers: Answer, seconds: float = 0.01) -> Server:
    def server(now: float, chance: random.Random) -> tuple[float, Answer | None]:
        return seconds, chance.choice(answers) if chance.random() < share else None

    return server


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0, 1),
    kinds=st.lists(st.sampled_from(["throttled", "transient", "missing", "denied", "checksum", "fatal"]), min_size=1),
    count=st.integers(0, 200),
    most=st.integers(1, 64),
    seed=st.integers(0, 999),
)
def test_every_request_ends_once_whatever_the_store_does(share, kinds, count, most, seed):
    world = World(failing(share, *(Answer(kind, kind) for kind in kinds)), seed, max_in_flight=most, total_seconds=50.0)
    asked = world.ask(count)
    world.run()
    ended = [request for _, request in world.won + world.lost]
    assert len(ended) == len(set(ended)) == count
    assert set(ended) == set(asked)
    assert world.schedule.in_flight == 0
    assert world.most_in_flight <= most
    assert all(request.attempts <= world.options.attempts for request in ended)


@pytest.mark.parametrize(("share", "most_requests"), [(0.05, 1.1), (0.2, 1.35)])
@pytest.mark.parametrize(
    "answers", [(BROKEN,), (REFUSED,), (BROKEN, REFUSED)], ids=lambda a: "-".join(x.kind for x in a)
)
def test_failures_cost_their_retries_and_lose_nothing(share, most_requests, answers):
    world = World(failing(share, *answers), max_in_flight=64)
    world.ask(10_000)
    world.run()
    assert len(world.won) == 10_000
    assert len(world.sent) <= most_requests * 10_000


def test_at_one_failure_in_two_the_work_still_gets_done():
    world = World(failing(0.5, BROKEN), max_in_flight=64)
    world.ask(2_000)
    world.run(until=60)
    assert len(world.won) + len(world.lost) == 2_000
    assert len(world.lost) <= 30  # 2,000 / 2^8 is 8


@pytest.mark.parametrize("seconds_of_a_refusal", [0.0005, 0.01])
def test_an_outage_of_a_minute_is_waited_out_with_little_traffic_and_soon_made_good(seconds_of_a_refusal):
    begin, end = 10.0, 70.0

    def server(now: float, chance: random.Random) -> tuple[float, Answer | None]:
        return (seconds_of_a_refusal, REFUSED) if begin <= now < end else (0.01, None)

    world = World(server, max_in_flight=64)
    world.ask(300_000)
    world.run(until=100)

    def rate(since: float, until: float, times) -> float:
        return sum(since <= t < until for t in times) / (until - since)

    before = rate(5, 10, world.sent)
    assert before == pytest.approx(6_400, rel=0.05)
    assert rate(begin + 10, end, world.sent) <= before / 100
    assert not world.lost
    assert rate(end + 15, end + 20, [t for t, _ in world.won]) >= 0.9 * before


def test_a_store_that_stays_away_is_a_bounded_error_and_sees_few_requests():
    world = World(failing(1.0, BROKEN), max_in_flight=64, total_seconds=120.0)
    world.ask(64)
    world.run()
    assert len(world.lost) == 64
    assert max(t for t, _ in world.lost) <= 132
    assert len(world.sent) <= 64 + RETRY_TOKENS + 2 * 132


def test_one_request_alone_has_all_its_attempts_within_seconds():
    world = World(failing(1.0, BROKEN))
    (asked,) = world.ask(1)
    world.run()
    assert (asked.attempts, len(world.sent)) == (8, 8)
    assert world.now < 30
    assert asked.answer == BROKEN


def test_the_deadline_holds_although_an_attempt_hangs():
    attempts = iter([(0.5, BROKEN), (100.0, BROKEN)])
    world = World(lambda now, chance: next(attempts), total_seconds=10.0)
    (asked,) = world.ask(1)
    world.run()
    ((when, lost),) = world.lost
    assert (lost, asked.is_done) == (asked, True)
    assert when == pytest.approx(10.0, abs=0.01)


def test_refusals_halve_the_requests_at_a_time_once_a_round_and_successes_bring_them_back():
    world = World(failing(0.0, REFUSED), max_in_flight=64)
    schedule = world.schedule
    first = world.ask(64)
    for request in first:
        assert schedule.next(0.0)[0] is request
    for request in first:
        schedule.failed(request, REFUSED, 1.0)
    assert schedule.limit == 32, "64 refusals of one round are one piece of news"
    for time in (2.0, 3.0, 4.0, 5.0):
        (again,) = world.ask(1)
        schedule._retries.clear()
        schedule._events.clear()
        assert schedule.next(time)[0] is again
        schedule.failed(again, REFUSED, time + 0.5)
    assert schedule.limit == 64 // LEAST_SHARE
    world.schedule._events.clear()
    world.now = 6.0
    world.ask(3_000)
    world.run()
    assert schedule.limit == 64


def test_one_percent_of_slow_requests_are_overtaken_by_few_second_tries():
    def server(now: float, chance: random.Random) -> tuple[float, Answer | None]:
        return (2.0 if chance.random() < 0.01 else chance.uniform(0.009, 0.013)), None

    def batches(hedge: bool) -> tuple[World, np.ndarray]:
        world = World(server, max_in_flight=64, hedge=hedge)
        world.ask(256)
        world.run()  # whoever just begins cannot know what is slow
        times = []
        for _ in range(200):
            begun = world.now
            world.ask(256)
            world.run(wanted=256)
            times.append(world.now - begun)
        return world, np.array(times)

    hedged, times = batches(True)
    plain, slow = batches(False)
    asked = 201 * 256
    assert np.quantile(slow, 0.5) > 1.9, "without hedges the usual batch waits for a slow request"
    assert np.quantile(times, 0.99) <= 2 * np.quantile(times, 0.5)
    assert len(hedged.sent) <= (1 + HEDGE_SHARE) * asked + HEDGE_BURST
    assert len(plain.sent) == asked


def test_hedges_stay_within_their_share_when_everything_slows_down():
    world = World(lambda now, chance: (0.01 if now < 1 else 0.5, None), max_in_flight=64)
    world.ask(20_000)
    world.run()
    assert len(world.won) == 20_000
    assert 0 < world.schedule.counts["hedges"] <= HEDGE_SHARE * 20_000 + HEDGE_BURST


def test_urgent_requests_go_first_and_retries_before_them():
    schedule = Schedule(RemoteOptions(max_in_flight=1), lambda low, high: 0.0)
    later, urgent, failed = (Request(None, 1) for _ in range(3))
    schedule.add([failed])
    assert schedule.next(0.0)[0] is failed
    schedule.add([later])
    schedule.add([urgent], is_urgent=True)
    assert schedule.next(0.0)[0] is None, "one at a time"
    schedule.failed(failed, BROKEN, 0.0)
    order = []
    for _ in range(3):
        request, _ = schedule.next(0.0)
        order.append(request)
        schedule.succeeded(request, 0.0)
    assert order == [failed, urgent, later]


@pytest.mark.parametrize(
    ("kind", "attempts"), [("changed", 1), ("fatal", 1), ("missing", 4), ("denied", 3), ("checksum", 3)]
)
def test_what_is_seldom_the_network_s_fault_is_tried_less_often(kind, attempts):
    world = World(failing(1.0, Answer(kind, kind)))
    world.ask(1)
    world.run()
    assert len(world.sent) == attempts


def test_a_request_that_nobody_wants_any_more_is_not_sent():
    world = World(failing(0.0, BROKEN), max_in_flight=1)
    first, second, third = world.ask(3)
    assert world.schedule.next(0.0)[0] is first
    world.schedule.drop(second)
    world.schedule.drop(first)
    assert world.schedule.next(0.0)[0] is third
    assert not world.schedule.succeeded(first, 1.0), "it was given up"
    assert world.schedule.in_flight == 1
