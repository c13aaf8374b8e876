"""A request is repeated on another version once it is answered: two models of a real engine stand for two versions."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from service.batching.claim import BACKGROUND_PRIORITY, Claim, ModelObserver, ServedModel
from service.batching.client import Client
from service.batching.engines import Engines
from service.errors import EngineError
from service.frontend import shadow as module
from service.frontend.app import Frontend
from service.frontend.http import Answer, Request
from service.frontend.prepared import Prepared, claim_rows
from service.frontend.shadow import Shadows
from service.lifecycle.controls import Controls
from service.lifecycle.messages import Table
from service.lifecycle.routing import Routing, Shadow
from service.metrics import RequestMetrics, SharedCounts
from service.settings import Settings
from tests.integration.conftest import Start
from tests.support.claims import answered, deadline_in


class TwoVersions:
    """`primary`, and another model as its version 2, the alias `canary`."""

    def __init__(self, primary: ServedModel, other: ServedModel, sample: float = 1.0) -> None:
        self.name = primary.facts.name
        self.ready = {"1": primary, "2": other}
        self.watchers: list[Callable[[], None]] = []
        routing = Routing(aliases={"canary": "2"}, shadow=Shadow("canary", sample))
        self.table = Table(routing={primary.facts.name: routing})

    def known(self, name: str, version: str | None = None) -> ServedModel | None:
        assert name == self.name
        return self.ready.get(cast(str, version))


class Recording(ModelObserver):
    """What is said of a shadow, in order."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def shadow_compared(self, items: int, disagreed: int, differences: list[float]) -> None:
        self.said.put_nowait((items, disagreed, differences))

    def shadow_skipped(self, reason: str, items: int) -> None:
        self.said.put_nowait((reason, items))


class Pair:
    """Two versions, the shadows of a frontend, and what is said of the second."""

    def __init__(self, client: Client, primary: str, other: str, sample: float = 1.0) -> None:
        self.primary, self.other = (cast(ServedModel, client.known(name)) for name in (primary, other))
        self.engines = TwoVersions(self.primary, self.other, sample)
        self.shadows = Shadows(cast(Engines, self.engines))
        self.shadows.refresh()
        self._recording = self.other.observer = Recording()

    async def ask(self, *x: int) -> Claim:
        claim = claim_rows(self.primary, len(x), {"x": np.array(x).tobytes()}, deadline_in(30))
        await answered(claim, deadline_in(30))
        return claim

    async def repeated(self, *x: int) -> tuple[Any, ...]:
        """What is said of the shadow after a request of these values."""
        with await self.ask(*x) as claim:
            copy = self.shadows.copy(claim)
        if copy is not None:
            self.shadows.repeat_soon(copy)
        return await self.said()

    async def said(self) -> tuple[Any, ...]:
        return await asyncio.wait_for(self._recording.said.get(), 30)

    @property
    def nothing_is_said(self) -> bool:
        return self._recording.said.empty()


@pytest.fixture
def pair(start: Start) -> Callable[..., Any]:
    @asynccontextmanager
    async def paired(primary: str, other: str, sample: float = 1.0, **changes: object) -> AsyncIterator[Pair]:
        async with start(**changes) as (_, client):
            pair = Pair(client, primary, other, sample)
            yield pair
            assert pair.primary.in_flight == pair.other.in_flight == 0, "every slot comes back"

    return paired


async def test_every_item_is_compared_with_the_answer_to_itself(pair: Callable[..., Any]) -> None:
    async with pair("picky", "slow") as versions:  # both answer x
        assert await versions.repeated(1, 2, 3) == (3, 0, [])
    async with pair("tenfold", "negative") as versions:
        assert await versions.repeated(5) == (1, 1, [])
        assert await versions.repeated(0, 1, 0, 2, 0) == (5, 2, [])


async def test_rows_are_repeated_although_their_slots_have_others_by_then(pair: Callable[..., Any]) -> None:
    async with pair("picky", "slow") as versions:
        with await versions.ask(7) as claim:
            copy = versions.shadows.copy(claim)
        with await versions.ask(9) as next_claim:
            assert next_claim.slots == claim.slots
            versions.shadows.repeat_soon(copy)
            assert await versions.said() == (1, 0, [])


async def test_a_shadow_that_fails_where_the_other_answered_disagrees(pair: Callable[..., Any]) -> None:
    async with pair("slow", "picky") as versions:
        assert await versions.repeated(99) == (1, 0, [])
        assert await versions.repeated(100) == (1, 1, [])


async def test_large_outputs_are_compared_in_a_thread(
    pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INLINE_BYTES", 7)
    async with pair("tenfold", "negative") as versions:
        assert await versions.repeated(0, 1) == (2, 1, [])


@pytest.mark.parametrize(
    ("sample", "target"),
    [(0.0, "2"), (1.0, "1"), (1.0, "7")],
    ids=["none is sampled", "the version itself", "a version that is not there"],
)
async def test_what_is_not_to_be_repeated_is_not_even_copied(
    pair: Callable[..., Any], sample: float, target: str
) -> None:
    async with pair("tenfold", "negative") as versions:
        routing = Routing(aliases={"canary": target}, shadow=Shadow("canary", sample))
        versions.engines.table = Table(routing={"tenfold": routing})
        for changed in versions.engines.watchers:
            changed()
        with await versions.ask(1) as claim:
            assert versions.shadows.copy(claim) is None
        assert versions.nothing_is_said


async def test_half_of_the_slots_are_left_to_the_clients_of_the_shadow_version(pair: Callable[..., Any]) -> None:
    async with pair("tenfold", "negative") as versions:
        half = versions.other.capacity // 2
        with versions.other.claim(half - 1):
            assert await versions.repeated(0, 0) == ("slots", 2)
            assert await versions.repeated(0) == (1, 0, [])
        with versions.other.claim(half):
            assert await versions.repeated(0) == ("slots", 1)


async def test_only_so_many_are_under_way(pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_UNDER_WAY", 1)
    async with pair("picky", "slow") as versions:
        copies = []
        for x in (1, 2):
            with await versions.ask(x) as claim:
                copies.append(versions.shadows.copy(claim))
        for copy in copies:
            versions.shadows.repeat_soon(copy)
        assert await versions.said() == ("under_way", 1)
        assert await versions.said() == (1, 0, [])
        assert await versions.repeated(3) == (1, 0, []), "there is room again"


async def test_versions_of_other_tensors_are_not_compared_and_logged_once(
    pair: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with pair("tenfold", "negative") as versions:
        outputs = tuple(msgspec.structs.replace(spec, datatype="UINT64") for spec in versions.other.facts.outputs)
        versions.other.facts = msgspec.structs.replace(versions.other.facts, outputs=outputs)
        for _ in range(3):
            assert await versions.repeated(1) == ("incomparable", 1)
    assert caplog.text.count("have other tensors") == 1


async def test_a_shadow_that_gets_no_answer_in_time_is_skipped(
    pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_NS", 0)
    async with pair("tenfold", "negative") as versions:
        assert await versions.repeated(1) == ("unanswered", 1)


async def test_a_version_that_has_gone_since_is_left_alone(pair: Callable[..., Any]) -> None:
    async with pair("tenfold", "negative") as versions:
        with await versions.ask(1) as claim:
            copy = versions.shadows.copy(claim)
        del versions.engines.ready["2"]
        versions.shadows.repeat_soon(copy)
        versions.shadows._repeat_all()
        await asyncio.sleep(0)  # the turn in which it begins
        assert not versions.shadows._to_do
        assert versions.other.in_flight == 0
        assert versions.nothing_is_said


@pytest.mark.parametrize("outcome", [Answer(b""), EngineError("compressing was ended")], ids=["200", "500"])
async def test_nothing_begins_before_the_client_is_answered_nor_without_200(
    pair: Callable[..., Any], outcome: Answer | Exception
) -> None:
    async with pair("tenfold", "negative") as versions:
        metrics = RequestMetrics(SharedCounts(1), 0)
        frontend = Frontend(cast(Engines, versions.engines), Settings(), metrics, Controls())
        versions.engines.watchers[-1]()
        request = Request({}, b"")
        frontend.encode(Prepared(await versions.ask(1), lambda _: Answer(b"")), request)
        assert not frontend._shadows._waiting, "it is copied and no more"
        frontend.finish(request, outcome)
        assert len(frontend._shadows._waiting) == isinstance(outcome, Answer)
        assert versions.other.in_flight == 0, "the answer is written in this turn"
        if isinstance(outcome, Answer):
            assert await versions.said() == (1, 1, [])


async def test_what_a_shadow_repeats_runs_behind_whatever_clients_wait_for(start: Start) -> None:
    async with start(cores=1, instances=1) as (_, client):
        order: list[str] = []

        def commit(name: str, label: str, priority: int) -> None:
            model = cast(ServedModel, client.known(name))
            claim = claim_rows(model, 1, {"x": np.array([1]).tobytes()}, deadline_in(30))
            claim.priority = priority

            def done(claim: Claim) -> None:
                claim.release()
                order.append(label)
                if len(order) == 5:
                    all_done.set()

            claim.run(done)

        all_done = asyncio.Event()
        for name in ("negative", "picky", "tenfold"):
            commit(name, f"shadow on {name}", BACKGROUND_PRIORITY)
        commit("slow", "client of slow", 254)
        commit("tenfold", "client of tenfold", 1)
        await asyncio.wait_for(all_done.wait(), 30)
        assert set(order[:2]) == {"client of slow", "client of tenfold"}


async def test_a_clients_batch_has_no_item_of_a_shadow(start: Start) -> None:
    async with start(cores=1, instances=1) as (_, client):
        busy = cast(ServedModel, client.known("slow"))
        model = cast(ServedModel, client.known("tenfold"))
        with busy.claim(1) as one, model.claim(3) as background, model.claim(2) as clients:
            for claim in (one, background, clients):
                claim.write("x", np.arange(len(claim.slots)).tobytes())
            waiting = [
                asyncio.create_task(answered(one, deadline_in(30))),
                asyncio.create_task(answered(background, deadline_in(30), BACKGROUND_PRIORITY)),
                asyncio.create_task(answered(clients, deadline_in(30))),
            ]
            timings = await asyncio.gather(*waiting)
            assert [each.batch_size for each in timings] == [1, 3, 2]
            assert timings[1].queue_us >= timings[2].queue_us


async def test_the_engine_rests_from_shadows_after_each_of_their_batches(start: Start) -> None:
    async with start(cores=1, instances=1, max_batch_size=1) as (_, client):
        model = cast(ServedModel, client.known("slow"))
        with model.claim(1) as one, model.claim(1) as other:
            for claim in (one, other):
                claim.write("x", np.array([1]).tobytes())
            timings = await asyncio.gather(
                *(answered(claim, deadline_in(30), BACKGROUND_PRIORITY) for claim in (one, other))
            )
            first, second = sorted(timings)
            assert second.queue_us - first.queue_us > 4 * first.compute_us, "its length, and three times that"
