"""The response cache: what is one request, what is kept, and who waits for whom."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest

from models.manifest import TensorSpec
from service.batching.arena import ShapedRow
from service.batching.claim import FROM_CACHE, Claim
from service.batching.link import Status
from service.errors import DeadlineExceeded, EngineDied, EngineError
from service.frontend.cache import Answers, Outputs, ResponseCache, size_bytes
from tests.support.claims import deadline_in
from tests.support.waiting import Seen, Waiting

ROW = bytes([1, 2, 3, 4])
OTHER = bytes([4, 3, 2, 1])


class Asking:
    """Requests to one copy through one cache."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.seen = Seen()
        self.cache = ResponseCache(max_bytes, self.seen)
        self.engine = Waiting()
        self.done: list[Claim] = []

    def ask(self, rows: bytes = ROW, seconds: float = 1000.0, priority: int = 1) -> Claim:
        claim = self.engine.claim(rows, deadline_in(seconds), priority)
        self.cache.run(claim, self.done.append)
        return claim

    def answer_of(self, claim: Claim) -> list[int]:
        """Encoded and released, as a frontend does."""
        self.done.remove(claim)
        assert claim.error is None
        values: list[int] = claim.read("y")[:, 0].tolist()
        claim.release()
        return values

    def error_of(self, claim: Claim) -> Exception | None:
        self.done.remove(claim)
        claim.release()
        return claim.error

    def settled(self) -> bool:
        return not (self.done or self.engine.committed or self.engine.model.in_flight)


@pytest.fixture
async def asking() -> AsyncIterator[Asking]:
    """At the end every slot is free."""
    asking = Asking()
    yield asking
    assert asking.settled()


# ── hits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_same_rows_are_run_once(asking: Asking) -> None:
    asking.engine.answer(first := asking.ask())
    assert first.timings == (5, 7, 1)
    assert asking.answer_of(first) == [10]
    second = asking.ask()
    assert second.timings == (0, 0, FROM_CACHE)
    assert asking.answer_of(second) == [10]
    assert asking.engine.runs == 1
    assert (asking.engine.seen.hits, asking.engine.seen.misses) == (1, 1)


async def test_a_request_of_several_items_is_known_as_a_whole(asking: Asking) -> None:
    asking.engine.answer(both := asking.ask(ROW + bytes(4)))
    assert asking.answer_of(both) == [10, 0]
    assert asking.answer_of(asking.ask(ROW + bytes(4))) == [10, 0]
    for rows, sums in ((bytes(4) + ROW, [0, 10]), (ROW, [10]), (ROW + bytes(8), [10, 0, 0])):
        asking.engine.answer(other := asking.ask(rows))
        assert asking.answer_of(other) == sums
    assert asking.engine.runs == 4


async def test_another_loaded_copy_knows_nothing(asking: Asking) -> None:
    asking.engine.answer(first := asking.ask())
    asking.answer_of(first)
    asking.engine = Waiting()
    asking.engine.answer(again := asking.ask())
    assert asking.answer_of(again) == [10]
    assert asking.engine.runs == 1


async def test_a_request_without_items_is_not_looked_up(asking: Asking) -> None:
    asking.ask(b"").release()
    asking.ask(b"").release()
    assert len(asking.done) == 2
    asking.done.clear()
    assert (asking.engine.seen.hits, asking.engine.seen.misses) == (0, 0)


@pytest.mark.parametrize("status", [Status.FAILED, Status.TOO_LARGE, Status.EXPIRED])
async def test_an_error_is_not_kept(asking: Asking, status: Status) -> None:
    asking.engine.answer(asking.ask(), status)
    assert asking.error_of(asking.done[0]) is not None
    asking.engine.answer(again := asking.ask())
    assert asking.answer_of(again) == [10]
    assert asking.engine.seen.misses == 2


# ── one run for those in flight ──────────────────────────────────────────────────────────────────────────────────────


async def test_identical_requests_in_flight_are_run_once(asking: Asking) -> None:
    claims = [asking.ask() for _ in range(10)]
    assert asking.engine.committed == claims[:1]
    asking.engine.answer(claims[0])
    assert asking.done == claims, "in the order in which they came"
    assert [asking.answer_of(claim) for claim in claims] == [[10]] * 10
    assert (asking.engine.seen.hits, asking.engine.seen.misses) == (9, 1)
    assert claims[9].timings[2] == FROM_CACHE


async def test_one_that_waits_and_leaves_is_not_told(asking: Asking) -> None:
    leader, leaves, stays = asking.ask(), asking.ask(), asking.ask()
    asking.cache.give_up(leaves)
    assert asking.engine.model.in_flight == 2
    asking.engine.answer(leader)
    assert asking.done == [leader, stays]
    assert asking.answer_of(leader) == asking.answer_of(stays) == [10]


async def test_the_run_of_one_whose_client_leaves_goes_on_for_the_others(asking: Asking) -> None:
    leader, waits = asking.ask(), asking.ask()
    asking.cache.give_up(leader)
    late = asking.ask()
    asking.engine.answer(leader)
    assert asking.done == [waits, late]
    assert asking.answer_of(waits) == asking.answer_of(late) == [10]
    assert asking.engine.runs == 1


async def test_what_ran_for_nobody_is_kept(asking: Asking) -> None:
    leader = asking.ask()
    asking.cache.give_up(leader)
    asking.engine.answer(leader)
    assert asking.engine.model.in_flight == 0
    assert asking.answer_of(asking.ask()) == [10]
    assert asking.engine.runs == 1


async def test_after_the_deadline_of_the_run_the_next_takes_over(asking: Asking) -> None:
    leader, second, third = asking.ask(), asking.ask(), asking.ask()
    asking.engine.answer(leader, Status.EXPIRED)
    assert isinstance(asking.error_of(leader), DeadlineExceeded)
    assert asking.engine.committed == [second]
    joins = asking.ask()
    asking.engine.answer(second)
    assert [asking.answer_of(claim) for claim in (second, third, joins)] == [[10]] * 3
    assert asking.engine.runs == 2


async def test_who_takes_over_may_be_late_too(asking: Asking) -> None:
    claims = [asking.ask() for _ in range(5)]
    for claim in claims[:4]:
        asking.engine.answer(claim, Status.EXPIRED)
        assert isinstance(asking.error_of(claim), DeadlineExceeded)
    asking.engine.answer(claims[4])
    assert asking.answer_of(claims[4]) == [10]
    assert asking.engine.runs == 5


async def test_one_given_up_by_the_clock_while_the_engine_holds_it_lets_the_next_take_over(asking: Asking) -> None:
    leader, second = asking.ask(), asking.ask()
    leader.fail(DeadlineExceeded("as client.py does"))
    assert isinstance(asking.error_of(leader), DeadlineExceeded)
    asking.engine.answer(second)
    assert asking.answer_of(second) == [10]
    assert asking.engine.model.in_flight == 1, "the engine still holds the first"
    asking.engine.answer(leader)


async def test_one_that_waits_has_a_deadline_of_its_own(asking: Asking) -> None:
    leader, waits, late = asking.ask(), asking.ask(), asking.ask(seconds=-1)
    await until(lambda: late in asking.done)
    assert isinstance(asking.error_of(late), DeadlineExceeded)
    asking.engine.answer(leader)
    assert asking.answer_of(leader) == asking.answer_of(waits) == [10]


@pytest.mark.parametrize("status", [Status.FAILED, Status.TOO_LARGE])
async def test_what_the_model_fails_on_fails_for_all_that_wait(asking: Asking, status: Status) -> None:
    claims = [asking.ask() for _ in range(3)]
    asking.engine.answer(claims[0], status)
    assert all(isinstance(asking.error_of(claim), EngineError) for claim in claims)
    assert asking.engine.runs == 1


async def test_the_engine_s_death_fails_all_that_wait(asking: Asking) -> None:
    claims = [asking.ask() for _ in range(3)]
    asking.engine.die(lambda: EngineDied("gone"))
    assert all(isinstance(asking.error_of(claim), EngineDied) for claim in claims)


async def test_a_more_urgent_request_does_not_wait_for_the_run_of_a_less_urgent(asking: Asking) -> None:
    patient, urgent, joins = asking.ask(priority=9), asking.ask(priority=1), asking.ask(priority=5)
    assert asking.engine.committed == [patient, urgent]
    asking.engine.answer(urgent)
    assert asking.answer_of(urgent) == asking.answer_of(joins) == [10]
    asking.engine.answer(patient)
    assert asking.answer_of(patient) == [10]


# ── what is one request ──────────────────────────────────────────────────────────────────────────────────────────────

ANY_SHAPE = Waiting((TensorSpec("x", "INT64", (-1, -1)),), (TensorSpec("y", "INT64", (-1, -1)),), batch_axis=False)
TEXT = Waiting((TensorSpec("x", "BYTES", (-1, -1)),), (TensorSpec("y", "BYTES", (-1, -1)),))


def test_items_of_unequal_shapes_with_the_same_bytes_are_not_one() -> None:
    cache = ResponseCache(0, Seen())
    data = np.arange(4).tobytes()
    with ANY_SHAPE.model.claim(1) as flat, ANY_SHAPE.model.claim(1) as tall, ANY_SHAPE.model.claim(1) as same:
        for claim, shape in ((flat, (1, 4)), (tall, (4, 1)), (same, (1, 4))):
            claim.write("x", [ShapedRow(shape, data)])
        assert cache._key(flat) == cache._key(same) != cache._key(tall)


def test_where_one_string_ends_is_part_of_the_request() -> None:
    cache = ResponseCache(0, Seen())
    with TEXT.model.claim(2) as one, TEXT.model.claim(2) as other, TEXT.model.claim(2) as same:
        for claim, cut in ((one, 1), (other, 2), (same, 1)):
            claim.write("x", [ShapedRow((1,), b"abcd"[:cut]), ShapedRow((1,), b"abcd"[cut:])])
        assert cache._key(one) == cache._key(same) != cache._key(other)


def test_what_a_row_held_before_is_not_part_of_the_request() -> None:
    cache = ResponseCache(0, Seen())
    with TEXT.model.claim(1) as claim:
        claim.write("x", [ShapedRow((1,), b"long text")])
        first = cache._key(claim)
        claim.write("x", [ShapedRow((1, 2, 3), b"another")])
        claim.write("x", [ShapedRow((1,), b"short")])
        short = cache._key(claim)
        claim.write("x", [ShapedRow((1,), b"long text")])
        assert cache._key(claim) == first != short


def test_the_same_bytes_of_another_datatype_are_not_one() -> None:
    cache = ResponseCache(0, Seen())
    kinds = ("INT32", "FP32", "UINT32")
    models = [Waiting((TensorSpec("x", kind, (-1, 1)),)).model for kind in kinds]
    claims = [model.claim(1) for model in models]
    for claim in claims:
        claim.write("x", ROW)
    assert len({cache._key(claim) for claim in claims}) == len(kinds)


async def test_outputs_whose_items_differ_in_size_come_back_as_they_were() -> None:
    cache, seen = ResponseCache(1 << 20, Seen()), []
    row = ShapedRow((2, 1), np.array([7, 8]).tobytes())
    first, second = ANY_SHAPE.model.claim(1), ANY_SHAPE.model.claim(1)
    for claim in (first, second):
        claim.write("x", [row])
        claim.deadline = deadline_in(1000)
    cache.run(first, seen.append)
    ANY_SHAPE.arena.shaped_outputs["y"].write(first.slots[0], row)
    ANY_SHAPE.committed.remove(first)
    first.answered(Status.OK, 0, 0, 1)
    first.release()
    cache.run(second, seen.append)
    assert seen == [first, second]
    assert second.read_shaped("y") == [row]
    second.release()


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def outputs_of(n_bytes: int) -> Outputs:
    return Outputs((bytes(n_bytes),), ())


def test_the_least_recently_used_goes_first() -> None:
    size = size_bytes(b"k0", outputs_of(100))
    answers = Answers(8 * size)
    for i in range(8):
        assert answers.keep(b"k%d" % i, outputs_of(100)) == 0
    assert answers.get(b"k0") is not None
    assert answers.keep(b"k8", outputs_of(100)) == 1
    assert answers.get(b"k0") is not None
    assert answers.get(b"k1") is None
    assert answers.size_bytes == 8 * size


def test_one_that_would_take_more_than_its_part_is_not_kept() -> None:
    answers = Answers(80_000)
    answers.keep(b"fits", outputs_of(9_000))
    assert answers.keep(b"large", outputs_of(11_000)) == 0
    assert answers.get(b"large") is None
    assert answers.get(b"fits") is not None


def small_outputs() -> Iterator[Outputs]:
    for i in range(20_000):
        yield Outputs((b"%10d" % i,), ((ShapedRow((1000 + i, 2000 + i), b"%5d" % i),),))


def test_what_is_counted_is_at_least_what_python_takes() -> None:
    answers = Answers(1 << 30)
    tracemalloc.start()
    try:
        for i, outputs in enumerate(small_outputs()):
            answers.keep(b"%032d" % i, outputs)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(answers) == 20_000
    assert taken <= answers.size_bytes <= 2 * taken


async def test_what_is_kept_and_evicted_is_told() -> None:
    asking = Asking(max_bytes=8 * 700)
    for i in range(20):
        asking.engine.answer(claim := asking.ask(bytes([i, 0, 0, 0])))
        assert asking.answer_of(claim) == [i]
    kept = len(asking.cache._answers)
    assert asking.seen.evicted == 20 - kept
    assert 0 < asking.seen.size_bytes == asking.cache._answers.size_bytes <= 8 * 700


async def until(condition: Callable[[], bool]) -> None:
    """Turns of the event loop, as many as it takes: the test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0)
