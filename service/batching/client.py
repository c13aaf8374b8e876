"""A frontend's side of the arena and the link: claim slots, write rows, commit, await the answers, release.

    with client.claim(model, n_items) as claim:         Overloaded when there are not n free slots
        claim.write(name, rows)
        timings = await claim.run(deadline)             DeadlineExceeded · EngineError · EngineDied
        claim.read(name)
    the slots are free again: at once, or, where the wait was given up, when the engine has answered them

Runs in the event loop's thread alone, so there are no locks. One send per turn of the loop, however many items it
carries. Futures are registered before slots are sent: the answer can be there before `send` returns.
Checked by tests/property/test_slots.py and tests/integration/test_batching.py.
"""

import asyncio
import logging
import os
import time

from service.batching.arena import Arena
from service.batching.claim import Claim, ServedModel, Timings
from service.batching.link import (
    COMMIT,
    Answer,
    Event,
    Kind,
    Link,
    LinkClosed,
    ModelFacts,
    ModelFailed,
    ModelReady,
    ModelsLoaded,
)
from service.errors import (
    DeadlineExceeded,
    EngineDied,
    ModelNotReady,
    Overloaded,
    UnknownModel,
    WrongTensor,
)

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 0.05  # how late an answer to an expired request may be while the engine is busy


class Observer:
    """What a frontend may want to know of answers and batches; metrics override it."""

    def batch_answered(self, model: ModelFacts, batch_size: int, compute_us: int) -> None:
        """Once for each batch."""

    def item_answered(self, model: ModelFacts, queue_us: int) -> None:
        """Once for each item."""


class Client:
    """Of one frontend to one engine. Models appear and go as the engine says."""

    def __init__(self, link: Link, observer: Observer | None = None) -> None:
        self._link = link
        self._observer = observer or Observer()
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._by_index: dict[int, ServedModel] = {}
        self.failures: dict[tuple[str, str], str] = {}
        self.loaded = asyncio.Event()
        self.lost = asyncio.Event()
        self.alive = True
        self._outgoing: list[bytes] = []
        self._in_flight: dict[Claim, None] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(link.fileno(), self._receive)

    def close(self) -> None:
        """Leave the link; the engine sees its end of file."""
        if self.alive:
            self._lose_engine("the frontend is shutting down")

    @property
    def in_flight(self) -> int:
        """Slots that are not free, over all models."""
        return sum(model.in_flight for model in self._by_index.values())

    def models(self) -> list[ServedModel]:
        return list(self._by_index.values())

    def versions(self, name: str) -> list[str]:
        """Ready versions, in ascending order."""
        return sorted(self._models.get(name, ()), key=_version_key)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The version, or the newest. Raises UnknownModel, ModelNotReady."""
        if (model := self.known(name, version)) is None:
            raise self._absent(name, version)
        return model

    def known(self, name: str, version: str | None = None) -> ServedModel | None:
        versions = self._models.get(name)
        if not versions:
            return None
        return versions[next(reversed(versions))] if version is None else versions.get(version)

    def claim(self, model: ServedModel, n_items: int) -> Claim:
        """Raises WrongTensor when the model could never hold that many, Overloaded when it cannot now."""
        free = model.free
        if n_items == 1 and free:
            return Claim(model, [free.pop()], self._commit)
        if not 0 < n_items <= model.capacity:
            raise WrongTensor(f"{n_items} items in one request; expected 1 to {model.capacity}")
        if n_items > len(free):
            raise Overloaded(
                f"model {model.facts.name!r} is overloaded: {model.in_flight} items in flight, "
                f"room for {model.capacity}"
            )
        return Claim(model, [free.pop() for _ in range(n_items)], self._commit)

    def _commit(self, claim: Claim, priority: int) -> "asyncio.Future[Timings]":
        future: asyncio.Future[Timings] = self._loop.create_future()
        if not self.alive:
            claim.unanswered = 0
            future.set_exception(EngineDied("the engine is gone"))
            return future
        model = claim.model
        index = model.index
        now = time.monotonic_ns()
        for slot in claim.slots:
            model.owners[slot] = claim
            self._outgoing.append(COMMIT.pack(Kind.COMMIT, priority, index, slot, now, claim.deadline))
        self._in_flight[claim] = None
        if len(self._outgoing) == len(claim.slots):  # the first of this turn
            self._loop.call_soon(self._send)
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        return future

    def _send(self) -> None:
        records, self._outgoing = b"".join(self._outgoing), []
        try:
            self._link.send(records)
        except LinkClosed:
            self._engine_died()
            return
        if self._link.wants_write:
            self._loop.add_writer(self._link.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            self._link.flush()
        except LinkClosed:
            self._engine_died()
            return
        if not self._link.wants_write:
            self._loop.remove_writer(self._link.fileno())

    def _receive(self) -> None:
        try:
            for arrival in self._link.receive():
                if isinstance(arrival, Answer):
                    self._answered(arrival)
                else:
                    self._apply(*arrival)
        except LinkClosed:
            self._engine_died()

    def _answered(self, answer: Answer) -> None:
        model = self._by_index[answer.model]
        claim = model.owners.pop(answer.slot)
        claim.answered(answer)
        if not claim.unanswered:
            self._in_flight.pop(claim, None)
        self._observer.item_answered(model.facts, answer.queue_us)
        if answer.first:
            self._observer.batch_answered(model.facts, answer.batch_size, answer.compute_us)

    def _apply(self, event: Event, descriptor: int | None) -> None:
        match event:
            case ModelReady():
                assert descriptor is not None, "bug: a ready model without its arena"
                facts = event.facts
                arena = Arena(descriptor, facts.inputs, facts.outputs, facts.capacity)
                os.close(descriptor)
                model = ServedModel(facts, event.index, event.slots, arena)
                self._by_index[event.index] = model
                versions = self._models.get(facts.name, {}) | {facts.version: model}
                self._models[facts.name] = dict(sorted(versions.items(), key=lambda item: _version_key(item[0])))
            case ModelFailed():
                self.failures[event.name, event.version] = event.reason
            case ModelsLoaded():
                self.loaded.set()

    def _sweep(self) -> None:
        """Answer the requests whose deadline passed while the engine was busy with others."""
        now = time.monotonic_ns()
        for claim in self._in_flight:
            if claim.deadline <= now:
                claim.fail(DeadlineExceeded("the deadline passed before the model answered"))
        self._sweep_timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep) if self._in_flight else None

    def _engine_died(self) -> None:
        if self.alive:
            log.error("the engine died with %d items in flight", self.in_flight)
            self._lose_engine("the engine died")
            self.lost.set()

    def _lose_engine(self, reason: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._link.fileno())
        self._loop.remove_writer(self._link.fileno())
        self._link.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for claim in self._in_flight:
            claim.fail(EngineDied(f"{reason}; the request may be sent again"))
            claim.unanswered = 0
        self._in_flight.clear()
        self._models.clear()
        self._by_index.clear()

    def _absent(self, name: str, version: str | None) -> UnknownModel | ModelNotReady:
        """Say why there is no such model: loading, refused, or never heard of."""
        for (failed_name, failed_version), reason in self.failures.items():
            if failed_name == name and version in (None, failed_version):
                return ModelNotReady(f"model {name!r} version {failed_version} is not served: {reason}")
        if not self.alive:
            return ModelNotReady(f"model {name!r} is not ready: the engine is gone")
        if not self.loaded.is_set():
            return ModelNotReady(f"model {name!r} is not ready: models are loading")
        if name in self._models:
            return UnknownModel(f"model {name!r} has no version {version!r}; ready: {', '.join(self.versions(name))}")
        return UnknownModel(f"no model {name!r}; ready: {', '.join(sorted(self._models)) or 'none'}")


def _version_key(version: str) -> tuple[bool, int, str]:
    """Numbers in numeric order, then everything else as text."""
    return (not version.isdecimal(), int(version) if version.isdecimal() else 0, version)
