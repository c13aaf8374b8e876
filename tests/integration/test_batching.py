"""Engine and client together on real onnxruntime: whatever happens, each request gets the answer to its own input."""

import asyncio
import gc
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.batching.claim import ModelObserver, ServedModel
from service.batching.client import Client, Observer
from service.batching.link import ModelFacts, ModelFailed, link_pair
from service.engine.instance import Instance
from service.engine.loop import Engine
from service.errors import DeadlineExceeded, EngineDied, EngineError
from tests.integration.conftest import SETTINGS, Start
from tests.support.claims import Timings, answered, deadline_in

FACTORS = {"tenfold": 10, "negative": -1, "slow": 1, "picky": 1}


def found(client: Client, name: str) -> ServedModel:
    model = client.known(name)
    assert model is not None
    return model


async def ask(
    client: Client, name: str, values: list[int], priority: int = 1, lifetime_s: float = 30.0
) -> tuple[list[int], Timings]:
    with found(client, name).claim(len(values)) as claim:
        claim.write("x", np.array(values).tobytes())
        timings = await answered(claim, deadline_in(lifetime_s), priority)
        return claim.read("y")[:, 0].tolist(), timings


async def check(client: Client, name: str, values: list[int]) -> Timings:
    answers, timings = await ask(client, name, values)
    assert answers == [FACTORS[name] * value for value in values]
    return timings


async def settled(client: Client) -> None:
    """Nothing is in flight, or becomes so within a moment."""
    async with asyncio.timeout(5):
        while client.in_flight:
            await asyncio.sleep(0.005)


async def test_two_thousand_concurrent_requests_to_two_models_each_get_their_own_answer(start: Start) -> None:
    chosen = random.Random(0)
    async with start(max_queue_items=4096) as (_, client):
        requests = [
            check(client, chosen.choice(["tenfold", "negative"]), [i * 10 + k for k in range(chosen.choice([1, 1, 3]))])
            for i in range(2000)
        ]
        timings = await asyncio.gather(*requests)
        assert max(timing.batch_size for timing in timings) == SETTINGS.max_batch_size
        assert client.in_flight == 0


async def test_a_lone_request_runs_alone_and_at_once(start: Start) -> None:
    async with start() as (_, client):
        await check(client, "tenfold", [1])
        timings = await check(client, "tenfold", [7])
        assert timings.batch_size == 1


async def test_idle_instances_share_what_waits(start: Start) -> None:
    async with start() as (_, client):
        sizes = [(await check(client, "slow", [1, 2, 3, 4, 5, 6])).batch_size for _ in range(3)]
        assert 3 in sizes  # half each, as soon as both executors stood idle


async def test_a_request_larger_than_a_batch_is_split_and_joined(start: Start) -> None:
    async with start() as (_, client):
        await check(client, "tenfold", list(range(60)))


async def test_an_item_that_fails_fails_alone(start: Start) -> None:
    async with start(instances=1, cores=1) as (_, client):
        blocker = asyncio.create_task(check(client, "slow", [0]))  # meanwhile the others gather into one batch
        await asyncio.sleep(0.02)
        values = [1, 2, 1000, 3, 4, 2000, 5]
        answers = await asyncio.gather(*(ask(client, "picky", [value]) for value in values), return_exceptions=True)
        await blocker
        for value, answer in zip(values, answers, strict=True):
            if value > 99:
                assert isinstance(answer, EngineError)
            else:
                assert not isinstance(answer, BaseException)
                assert answer[0] == [value]
        assert client.in_flight == 0


async def test_a_request_with_one_failing_item_fails_whole_and_frees_its_slots(start: Start) -> None:
    async with start() as (_, client):
        with pytest.raises(EngineError):
            await ask(client, "picky", [1, 5000, 2])
        await settled(client)


async def test_priority_overtakes_what_waits(start: Start) -> None:
    async with start(instances=1, cores=1, max_batch_size=1) as (_, client):
        order: list[int] = []

        async def record(value: int, priority: int) -> None:
            await ask(client, "slow", [value], priority)
            order.append(value)

        async with asyncio.TaskGroup() as group:
            group.create_task(record(0, 1))
            await asyncio.sleep(0.01)  # it runs; the others wait
            for value, priority in [(1, 2), (2, 1), (3, 0)]:
                group.create_task(record(value, priority))
        assert order == [0, 3, 2, 1]


async def test_a_deadline_is_kept_while_the_engine_is_busy_and_the_slot_comes_back(start: Start) -> None:
    async with start(instances=1, cores=1, max_batch_size=1) as (_, client):
        busy = [asyncio.create_task(check(client, "slow", [i])) for i in range(4)]
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await ask(client, "slow", [9], lifetime_s=0.05)
        waited = time.monotonic() - begun
        assert not busy[-1].done(), "the queue was empty: this shows nothing"
        assert waited < 1
        await asyncio.gather(*busy)
        await settled(client)


async def test_a_cancelled_request_frees_its_slot_after_the_engine_has_answered(start: Start) -> None:
    async with start(instances=1, cores=1) as (_, client):
        task = asyncio.create_task(check(client, "slow", [1]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.in_flight == 1, "the engine may still write that row"
        await check(client, "slow", [2])
        await settled(client)


async def test_a_queue_delay_gathers_what_comes_within_it(start: Start) -> None:
    async with start(max_queue_delay_us=100_000) as (_, client):
        first = asyncio.create_task(check(client, "tenfold", [1]))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(check(client, "tenfold", [2]))
        assert (await first).batch_size == (await second).batch_size == 2


async def test_batches_are_counted_once_and_items_each(repository: Path) -> None:
    class Counting(Observer, ModelObserver):
        items = batches = batched = 0

        def of(self, facts: ModelFacts) -> ModelObserver:
            return self

        def item_answered(self, queue_us: int) -> None:
            self.items += 1

        def batch_answered(self, batch_size: int, compute_us: int) -> None:
            self.batches += 1
            self.batched += batch_size

    frontend_link, engine_link = link_pair()
    counted = Counting()
    client = Client(frontend_link, counted)
    engine = Engine(repository, SETTINGS, 0, {0: engine_link})
    engine.start()
    await client.loaded.wait()
    await asyncio.gather(*(check(client, "tenfold", [i]) for i in range(50)))
    assert counted.items == counted.batched == 50
    assert counted.batches < 50
    client.close()
    await asyncio.to_thread(engine.stop)


async def test_frontends_do_not_share_slots_and_one_may_die(repository: Path) -> None:
    pairs = [link_pair() for _ in range(2)]
    clients = [Client(frontend) for frontend, _ in pairs]
    engine = Engine(repository, SETTINGS, 0, {i: end for i, (_, end) in enumerate(pairs)}, len(pairs))
    engine.start()
    for client in clients:
        await client.loaded.wait()
    ranges = [(min(free), max(free) + 1) for free in (found(client, "slow").free for client in clients)]
    assert ranges[0][1] <= ranges[1][0]
    doomed = asyncio.create_task(ask(clients[0], "slow", [1, 2, 3]))
    survivors = [asyncio.create_task(check(clients[1], "slow", [i])) for i in range(6)]
    await asyncio.sleep(0.02)
    clients[0].close()
    with pytest.raises(EngineDied):
        await doomed
    await asyncio.gather(*survivors)
    await check(clients[1], "tenfold", [5])
    clients[1].close()
    await asyncio.to_thread(engine.stop)


async def test_a_bug_in_an_executor_answers_everybody_and_hangs_nobody(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with start() as (_, client):

        def broken(self: Instance, slots: list[int]) -> None:
            time.sleep(0.05)
            raise TypeError("not one of the errors a run may raise")

        monkeypatch.setattr(Instance, "run", broken)
        answers = await asyncio.gather(*(ask(client, "tenfold", [i]) for i in range(20)), return_exceptions=True)
        assert all(isinstance(answer, EngineDied) for answer in answers)
        assert client.lost.is_set()
        assert client.known("tenfold") is None
        assert "bug: shoal-executor" in caplog.text


async def test_starting_and_stopping_leaves_no_descriptor_and_no_thread(start: Start) -> None:
    def left() -> tuple[int, int]:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("shoal")]
        return len(list(Path("/proc/self/fd").iterdir())), len(threads)

    async with start() as (_, client):
        await check(client, "tenfold", [1])
    gc.collect()  # what the tests before left
    before = left()
    for _ in range(3):
        async with start() as (_, client):
            await check(client, "tenfold", [1])
    assert left() == before


async def test_events_that_a_full_link_did_not_take_arrive_once_it_is_read(repository: Path) -> None:
    frontend_link, engine_link = link_pair()
    n_fillers = 0
    while not engine_link.wants_write:
        engine_link.send_event(ModelFailed("filler", str(n_fillers), "x" * 1000))
        n_fillers += 1
    engine = Engine(repository, SETTINGS, 0, {0: engine_link})
    engine.start()
    await asyncio.to_thread(engine._threads[0].join)  # everything is loaded and told, to a frontend that does not read
    client = Client(frontend_link)
    await asyncio.wait_for(client.loaded.wait(), 10)
    assert len(client.failures) == n_fillers
    await check(client, "tenfold", [4])
    client.close()
    await asyncio.to_thread(engine.stop)


async def test_an_item_that_expired_in_the_queue_says_how_long_it_waited(repository: Path) -> None:
    waits: list[int] = []

    class Watching(Observer, ModelObserver):
        def of(self, facts: ModelFacts) -> ModelObserver:
            return self

        def item_answered(self, queue_us: int) -> None:
            waits.append(queue_us)

    frontend_link, engine_link = link_pair()
    client = Client(frontend_link, Watching())
    engine = Engine(repository, replace(SETTINGS, instances=1, cores=1, max_batch_size=1), 0, {0: engine_link})
    engine.start()
    await client.loaded.wait()
    busy = asyncio.create_task(check(client, "slow", [1]))
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded):
        await ask(client, "slow", [2], lifetime_s=0.001)
    await busy
    await settled(client)
    assert waits[-1] >= 1000
    client.close()
    await asyncio.to_thread(engine.stop)
