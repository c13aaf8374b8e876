"""The engine's loop: executors take turns at the links, take a batch, run it and answer.

    idle executors wait on one epoll    the kernel wakes one of them for what arrives (edge-triggered)
    the woken one, under the mutex      reads the links, moves commits to the queues, takes a batch by policy,
                                        and, if that leaves work for another idle executor, wakes it (eventfd)
    without the mutex                   gathers, runs, scatters, and sends the answers itself

There is no thread between the links and the executors: a request passes from the frontend to the thread that runs it
and back, two hand-overs in all (docs/adr/0010). There are as many executors as cores and none is tied to a model, so
several models together never run more than the machine has.

While all executors run, commits wait in the socket, for one batch at most; the frontend keeps its own eye on deadlines.

Engines never block on frontends: sends that a link does not take are kept. A frontend's end of file drops its items.
An error in a run fails the items that cause it, found by halving the batch, and no other. Anything else that raises
here is a bug: the engine logs it and leaves its links, and every frontend answers 503.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from service.batching.claim import BACKGROUND_PRIORITY
from service.batching.link import Link, ModelFailed, ModelsLoaded
from service.batching.policy import Limits, WaitingItem, WaitingQueue
from service.engine.instance import Instance
from service.engine.links import Links
from service.engine.loader import load_all
from service.engine.repository import LoadedVersion, ModelSettings
from service.engine.run import Answered, expire, run_batch

log = logging.getLogger(__name__)

_STOP_SECONDS = 10.0


@dataclass
class _Model:
    """A ready version. `idle` are the instances that nobody runs; `key_of` a slot, where items differ in shape."""

    index: int
    limits: Limits
    idle: list[Instance]
    key_of: Callable[[int], Hashable] | None
    waiting: WaitingQueue = field(default_factory=WaitingQueue)

    @property
    def in_background(self) -> bool:
        """Nothing waits but what a shadow repeats; something does."""
        return self.waiting.priority == BACKGROUND_PRIORITY


class _Work(NamedTuple):
    """A batch with the instance that will run it, and expired items to answer on the way."""

    number: int
    model: _Model
    instance: Instance | None
    batch: list[WaitingItem]
    expired: list[WaitingItem]


class Engine:
    """Serves the models of one repository on one device to the frontends at the other ends of `links`."""

    def __init__(
        self,
        repository: Path,
        settings: ModelSettings,
        max_queue_delay_us: int,
        links: dict[int, Link],
        n_frontends: int = 1,
        expects_frontends: bool = False,
    ) -> None:
        """`links` by number of the frontend; each of `n_frontends` has its share of every model's slots.

        expects_frontends   go on without any, as others may be attached; else the last to leave ends the engine
        """
        self._repository = repository
        self._settings = settings
        self._max_queue_delay_us = max_queue_delay_us
        self._n_frontends = n_frontends
        self.on_bug: Callable[[], None] = lambda: None
        self._models: dict[int, _Model] = {}
        self._mutex = threading.Lock()  # guards everything below and the receiving side of the links
        self._links = Links(links, n_frontends, self._mutex, self._forget)
        self._expects_frontends = expects_frontends
        self._joining: list[tuple[int, Link, set[int]]] = []  # with the batches that ran when they came
        self._running: set[int] = set()
        self._batches = 0
        self._arrivals = 0
        self._idle_executors = 0
        self._next_model = 0
        self._stopping = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll = self._links.epoll
        self._epoll.register(self._bell, select.EPOLLIN | select.EPOLLET)
        self._n_executors = max(settings.cores, settings.instances or 1)
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in [
                ("shoal-loader", self._load_all),
                *((f"shoal-executor-{i}", self._execute) for i in range(self._n_executors)),
            ]
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the batches that run now. Items still waiting are not answered; their frontends see end of file.

        A run or a load that does not end within `_STOP_SECONDS` is left behind: its thread does not hold the process.
        """
        with self._mutex:
            self._stopping = True
        self._ring()
        give_up_at = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))
        if running := [thread.name for thread in self._threads if thread.is_alive()]:
            log.warning("%s still busy after %g s; the process ends without it", ", ".join(running), _STOP_SECONDS)
        else:
            self._leave()

    # ── executors ────────────────────────────────────────────────────────────────────────────────────────────────

    def _execute(self) -> None:
        finished: _Work | None = None
        while (work := self._next_work(finished)) is not None:
            answers = expire(work.expired, work.model.index) if work.expired else []
            if work.instance is not None:
                answers += run_batch(work.instance, work.batch, work.model.index)
            self._answer(answers)
            finished = work
        self._ring()  # the next one, so that all see the end

    def _next_work(self, finished: _Work | None) -> _Work | None:
        """Give back the instance of what is finished, and wait for something to do. None: stop."""
        with self._mutex:
            if finished is not None:
                self._running.discard(finished.number)
                if finished.instance is not None:
                    finished.model.idle.append(finished.instance)
            while True:
                if self._joining:
                    self._let_in()
                self._read_links()
                if self._stopping or not (self._links or self._joining or self._expects_frontends):
                    return None
                now = time.monotonic_ns()
                work, retry_at = self._take(now)
                if work is not None:
                    if self._idle_executors and self._more_to_take():
                        self._ring()
                    return work
                self._idle_executors += 1
                self._mutex.release()
                try:
                    self._wait(None if retry_at is None else (retry_at - now) / 1e9)
                finally:
                    self._mutex.acquire()
                    self._idle_executors -= 1

    def _take(self, now: int) -> tuple[_Work | None, int | None]:
        """Work for one executor; or else when to look again.

        A shadow's only where no client's can run, and another executor is idle: whatever comes meanwhile is taken at
        once, and this one looks again when it is idle itself.
        """
        work, retry_at = self._take_in_turn(now, background=False)
        if work is None and (self._idle_executors or self._n_executors == 1):
            work, later = self._take_in_turn(now, background=True)
            retry_at = min((at for at in (retry_at, later) if at is not None), default=None)
        return work, retry_at

    def _more_to_take(self) -> bool:
        """By one of the idle executors."""
        return any(
            len(model.waiting) and model.idle and (self._idle_executors > 1 or not model.in_background)
            for model in self._models.values()
        )

    def _take_in_turn(self, now: int, background: bool) -> tuple[_Work | None, int | None]:
        retry_at: int | None = None
        indices = list(self._models)
        for i in range(len(indices)):
            turn = (self._next_model + i) % len(indices)
            model = self._models[indices[turn]]
            if not (len(model.waiting) and model.idle) or model.in_background is not background:
                continue
            idle = min(len(model.idle), self._idle_executors + 1)
            batch, expired, model_retry_at = model.waiting.take(now, idle, model.limits)
            if batch or expired:
                self._next_model = turn + 1
                self._batches += 1
                self._running.add(self._batches)
                return _Work(self._batches, model, model.idle.pop() if batch else None, batch, expired), None
            if model_retry_at is not None:
                retry_at = min(retry_at or model_retry_at, model_retry_at)
        return None, retry_at

    def _read_links(self) -> None:
        new = tuple.__new__
        for frontend, commits in self._links.receive():
            for _, priority, model, slot, committed_at, deadline in commits:
                self._arrivals += 1
                ready = self._models[model]
                key = ready.key_of(slot) if ready.key_of else ()
                if priority == BACKGROUND_PRIORITY:
                    key = (priority, key)
                # What WaitingItem(...) does, without a call of a function in Python.
                ready.waiting.push(
                    new(WaitingItem, (priority, deadline, self._arrivals, slot, frontend, committed_at, key))
                )

    def _wait(self, seconds: float | None) -> None:
        """Until something arrives, a bell rings, or the time is over; the kernel wakes one waiter for each event."""
        if seconds is None:
            self._epoll.poll()
        elif seconds > 0:
            # epoll's own timeout counts milliseconds, a queue delay microseconds.
            select.select([self._epoll], [], [], seconds)
            self._epoll.poll(0)

    def _ring(self) -> None:
        """Wake one executor. The counter is never read: each write is a new edge, and 2^64 of them do not come."""
        os.eventfd_write(self._bell, 1)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, answers: list[Answered]) -> None:
        if self._n_frontends == 1:
            self._links.send(0, b"".join([record for _, record in answers]))
            return
        by_frontend: dict[int, list[bytes]] = {}
        for frontend, record in answers:
            by_frontend.setdefault(frontend, []).append(record)
        for frontend, records in by_frontend.items():
            self._links.send(frontend, b"".join(records))

    # ── frontends ────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, frontend: int, link: Link) -> None:
        """A frontend in the place of one that is gone. It is let in once no batch holds a row of its predecessor's."""
        with self._mutex:
            self._links.drop(frontend)
            self._joining.append((frontend, link, set(self._running)))
            self._let_in()
        self._ring()

    def stop_with_last_frontend(self) -> None:
        """No more frontends come: return when the last has left, and everything has ended."""
        with self._mutex:
            self._expects_frontends = False
        self._ring()
        loader, *executors = self._threads
        for executor in executors:  # they end with the last frontend
            executor.join()
        with self._mutex:
            self._stopping = True  # what is not loaded yet, nobody needs any more
        loader.join()
        self._leave()

    def _let_in(self) -> None:
        still: list[tuple[int, Link, set[int]]] = []
        for frontend, link, running in self._joining:
            running &= self._running
            if running:
                still.append((frontend, link, running))
            else:
                self._links.attach(frontend, link)
        self._joining = still

    def _forget(self, frontend: int) -> None:
        for model in self._models.values():
            model.waiting.drop_frontend(frontend)

    # ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _load_all(self) -> None:
        for loaded in load_all(self._repository, self._settings):
            if self._stopping:
                return
            if isinstance(loaded, ModelFailed):
                self._links.tell(loaded)
            else:
                self._serve(loaded)
        self._links.tell(ModelsLoaded())

    def _serve(self, loaded: LoadedVersion) -> None:
        with self._mutex:
            index = len(self._models)
            setup = loaded.setup
            delay_us = self._max_queue_delay_us if loaded.max_queue_delay_us is None else loaded.max_queue_delay_us
            limits = Limits(setup.max_batch_size, delay_us, setup.smallest_share)
            self._models[index] = _Model(index, limits, list(loaded.setup.instances), loaded.key_of)
        self._links.tell_ready(index, loaded.facts, loaded.arena_fd)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception:
            log.exception("bug: %s ended", threading.current_thread().name)
            with self._mutex:
                self._stopping = True
                for frontend in range(self._n_frontends):
                    self._links.drop(frontend)
            self._ring()
            self.on_bug()

    def _leave(self) -> None:
        self._links.close()
        self._models.clear()  # and with them their arenas' mappings
        os.close(self._bell)
