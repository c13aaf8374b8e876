"""A frontend's side of the arena and the link: claim slots, write rows, commit, await the answers, release.

    with model.claim(n_items) as claim:                 Overloaded when there are not n free slots
        claim.write(name, rows)
        claim.run(done)                                 done: claim.error, or claim.timings and outputs to read
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
from collections.abc import Callable

from service.batching.arena import Arena
from service.batching.claim import Claim, ModelObserver, ServedModel
from service.batching.link import (
    COMMIT,
    Answer,
    Event,
    Kind,
    Link,
    LinkClosed,
    ModelFacts,
    ModelFailed,
    ModelGone,
    ModelReady,
    ModelsLoaded,
)
from service.errors import DeadlineExceeded, EngineDied

log = logging.getLogger(__name__)

_SEND_AT = 8  # commits: the engine runs them while this turn of the event loop decodes more
_COMMIT, _pack = int(Kind.COMMIT), COMMIT.pack
_RELEASE = int(Kind.RELEASE)
_SWEEP_SECONDS = 0.05  # how late an answer to an expired request may be while the engine is busy


class Observer:
    """Gives each version that appears somebody to watch it."""

    def of(self, facts: ModelFacts) -> ModelObserver:
        return ModelObserver()

    def gone(self, facts: ModelFacts) -> None:
        """No request of this copy of the version is left, and none will come."""


class Client:
    """Of one frontend to one engine. Models appear and go as the engine says.

    changed   called when a model appears, when all are loaded, and when the engine is lost
    """

    def __init__(
        self, link: Link, observer: Observer | None = None, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._link = link
        self._observer = observer or Observer()
        self._changed = changed
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._by_index: dict[int, ServedModel] = {}
        self.failures: dict[tuple[str, str], str] = {}
        self.loaded = asyncio.Event()
        self.lost = asyncio.Event()
        self.alive = True
        self._outgoing: list[bytes] = []
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
        return sorted(self._models.get(name, ()), key=version_key)

    def known(self, name: str, version: str | None = None) -> ServedModel | None:
        """The version, or the newest."""
        versions = self._models.get(name)
        if not versions:
            return None
        return versions[next(reversed(versions))] if version is None else versions.get(version)

    def _commit(self, claim: Claim) -> None:
        if not self.alive:
            claim.unanswered = 0
            claim.fail(EngineDied("the engine is gone"))
            return
        model = claim.model
        now = time.monotonic_ns()
        for slot in claim.slots:
            model.owners[slot] = claim
            self._outgoing.append(_pack(_COMMIT, claim.priority, model.index, slot, now, claim.deadline))
        if len(self._outgoing) == len(claim.slots):  # the first of this turn
            self._loop.call_soon(self._send)
        elif len(self._outgoing) >= _SEND_AT:
            self._send()
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _send(self) -> None:
        if not self._outgoing:
            return
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
                if isinstance(arrival, list):
                    self._answered(arrival)
                else:
                    self._apply(*arrival)
        except LinkClosed:
            self._engine_died()

    def _answered(self, answers: list[Answer]) -> None:
        by_index = self._by_index
        for _, status, index, slot, queue_us, compute_us, batch_size, first, _ in answers:
            model = by_index[index]
            model.observer.item_answered(queue_us)
            if first:
                model.observer.batch_answered(batch_size, compute_us)
            model.owners.pop(slot).answered(status, queue_us, compute_us, batch_size)

    def _apply(self, event: Event, descriptor: int | None) -> None:
        match event:
            case ModelReady():
                assert descriptor is not None, "bug: a ready model without its arena"
                facts = event.facts
                rules = facts.batch_axis, facts.max_row_bytes
                arena = Arena(descriptor, facts.inputs, facts.outputs, facts.capacity, *rules)
                os.close(descriptor)
                model = ServedModel(facts, event.index, event.slots, arena, self._commit, self._observer.of(facts))
                self._by_index[event.index] = model
                versions = self._models.get(facts.name, {}) | {facts.version: model}
                self._models[facts.name] = dict(sorted(versions.items(), key=lambda item: version_key(item[0])))
                self._changed()
            case ModelGone():
                if event.index in self._by_index:  # else it went before this frontend came
                    self._retire(self._by_index[event.index])
            case ModelFailed():
                self.failures[event.name, event.version] = event.reason
            case ModelsLoaded():
                self.loaded.set()
                self._changed()

    def _retire(self, model: ServedModel) -> None:
        """No new request finds it. Those that have it are answered; then its engine hears that it is free."""
        facts = model.facts
        versions = self._models.get(facts.name, {})
        if versions.get(facts.version) is model:  # else another copy has taken its place
            del versions[facts.version]
            if not versions:
                del self._models[facts.name]
        self._changed()
        model.retired = lambda: self._release_if_free(model)
        model.retired()

    def _release_if_free(self, model: ServedModel) -> None:
        if model.in_flight or self._by_index.get(model.index) is not model:
            return
        del self._by_index[model.index]
        model.free.clear()  # its rows are another's from now on
        model.observer.in_flight(0)
        if model.facts.version not in self._models.get(model.facts.name, {}):  # else another copy goes on
            self._observer.gone(model.facts)
        self._outgoing.append(_pack(_RELEASE, 0, model.index, 0, 0, 0))
        self._send()

    def _sweep(self) -> None:
        """Answer the requests whose deadline passed while the engine was busy with others."""
        now = time.monotonic_ns()
        waiting = False
        for model in self._by_index.values():
            for claim in list(model.owners.values()):
                if claim.deadline <= now:
                    claim.fail(DeadlineExceeded("the deadline passed before the model answered"))
            waiting = waiting or bool(model.owners)
            model.observer.in_flight(model.in_flight)
        self._sweep_timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep) if waiting else None

    def _engine_died(self) -> None:
        if self.alive:
            log.error("the engine died with %d items in flight", self.in_flight)
            self._lose_engine("the engine died")
            self.lost.set()
            self._changed()

    def _lose_engine(self, reason: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._link.fileno())
        self._loop.remove_writer(self._link.fileno())
        self._link.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for model in self._by_index.values():
            model.observer.in_flight(0)
            self._observer.gone(model.facts)
            for claim in list(model.owners.values()):
                claim.unanswered = 0
                claim.fail(EngineDied(f"{reason}; the request may be sent again"))
        self._models.clear()
        self._by_index.clear()
        self._outgoing.clear()


def version_key(version: str) -> tuple[bool, int, str]:
    """Numbers in numeric order, then everything else as text."""
    return (not version.isdecimal(), int(version) if version.isdecimal() else 0, version)
