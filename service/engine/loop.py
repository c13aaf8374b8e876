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

import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from service.batching.claim import BACKGROUND_PRIORITY
from service.batching.link import Kind, Link, ModelFailed, ModelsLoaded
from service.batching.policy import Limits, WaitingItem, WaitingQueue
from service.engine.instance import Instance
from service.engine.links import Links
from service.engine.loader import load_all
from service.engine.repository import LoadedVersion, ModelSettings
from service.engine.run import Answered, expire, run_batch

log = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
_RELEASE = int(Kind.RELEASE)
_REST = 3  # a shadow's batch is followed by that many times its length without one
_LOOK_AGAIN_S = 0.5  # whether the engine ends meanwhile


@dataclass
class _Model:
    """A ready version. `idle` are the instances that nobody runs; `key_of` a slot, where items differ in shape."""

    index: int
    limits: Limits
    idle: list[Instance]
    key_of: Callable[[int], Hashable] | None
    waiting: WaitingQueue = field(default_factory=WaitingQueue)
    users: set[int] = field(default_factory=set)  # frontends that may still use it, once it is retired
    freed: threading.Event = field(default_factory=threading.Event)

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
    taken_at: int


class Engine:
    """Serves models on one device to the frontends at the other ends of `links`.

    load      what the engine serves: called on a thread of its own, it calls `serve` and `retire`, one at a time, and
              `all_loaded` once. A path: the newest version of every model there
    on_stop   called when the engine ends, so that `load` may return
    """

    def __init__(
        self,
        load: "Path | Callable[[Engine], None]",
        settings: ModelSettings,
        max_queue_delay_us: int,
        links: dict[int, Link],
        n_frontends: int = 1,
        expects_frontends: bool = False,
    ) -> None:
        """`links` by number of the frontend; each of `n_frontends` has its share of every model's slots.

        expects_frontends   go on without any, as others may be attached; else the last to leave ends the engine
        """
        self._load = partial(_load_all, load) if isinstance(load, Path) else load
        self.settings = settings
        self._max_queue_delay_us = max_queue_delay_us
        self._n_frontends = n_frontends
        self.on_bug: Callable[[], None] = lambda: None
        self.on_stop: Callable[[], None] = lambda: None
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
        self._background_from = 0  # monotonic ns
        self._stopping = False
        self._all_loaded = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll = self._links.epoll
        self._epoll.register(self._bell, select.EPOLLIN | select.EPOLLET)
        self._n_executors = max(settings.cores, settings.instances or 1)
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in [
                ("shoal-loader", lambda: self._load(self)),
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
        self.on_stop()
        give_up_at = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))
        if running := [thread.name for thread in self._threads if thread.is_alive()]:
            log.warning("%s still busy after %g s; the process ends without it", ", ".join(running), _STOP_SECONDS)
        else:
            self._leave()

    # ── executors ────────────────────────────────────────────────────────────────────────────────────────────────

    def _execute(self) -> None:
        finished: list[_Work] = []  # taken out of it by the call: an executor that waits keeps no session alive
        while (work := self._next_work(finished)) is not None:
            answers = expire(work.expired, work.model.index) if work.expired else []
            if work.instance is not None:
                answers += run_batch(work.instance, work.batch, work.model.index)
            self._answer(answers)
            finished.append(work)
            del work
        self._ring()  # the next one, so that all see the end

    def _next_work(self, finished: list[_Work]) -> _Work | None:
        """Give back the instance of what is finished, and wait for something to do. None: stop."""
        with self._mutex:
            if finished:
                number, model, instance, batch, _, taken_at = finished.pop()
                if batch and batch[0].priority == BACKGROUND_PRIORITY:
                    ended_at = time.monotonic_ns()
                    self._background_from = ended_at + _REST * (ended_at - taken_at)
                self._running.discard(number)
                if instance is not None:
                    model.idle.append(instance)
                del model, instance
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

        A shadow's only where no client's can run and another executor is idle, which takes what comes meanwhile; and
        not before the rest after the last is over: idle executors do not mean that the cores are.
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
            if background and now < self._background_from:
                return None, self._background_from
            idle = min(len(model.idle), self._idle_executors + 1)
            batch, expired, model_retry_at = model.waiting.take(now, idle, model.limits)
            if batch or expired:
                self._next_model = turn + 1
                self._batches += 1
                self._running.add(self._batches)
                return _Work(self._batches, model, model.idle.pop() if batch else None, batch, expired, now), None
            if model_retry_at is not None:
                retry_at = min(retry_at or model_retry_at, model_retry_at)
        return None, retry_at

    def _read_links(self) -> None:
        new = tuple.__new__
        for frontend, commits in self._links.receive():
            for kind, priority, model, slot, committed_at, deadline in commits:
                if kind == _RELEASE:
                    self._released(model, frontend)
                    continue
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
        self.on_stop()
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
        for index, model in list(self._models.items()):
            model.waiting.drop_frontend(frontend)
            self._released(index, frontend)

    # ── models ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def stopping(self) -> bool:
        return self._stopping

    def serve(self, loaded: LoadedVersion) -> int:
        """Announce a version; frontends use it from now on. Its index, for `retire`."""
        with self._mutex:
            index = next(index for index in itertools.count() if index not in self._models)
            setup = loaded.setup
            delay_us = self._max_queue_delay_us if loaded.max_queue_delay_us is None else loaded.max_queue_delay_us
            limits = Limits(setup.max_batch_size, delay_us, setup.smallest_share)
            self._models[index] = _Model(index, limits, list(loaded.setup.instances), loaded.key_of)
        self._links.tell_ready(index, loaded.facts, loaded.arena_fd)
        return index

    def retire(self, index: int) -> None:
        """Until every frontend has had the answers of what it sent, and the version's memory is free."""
        with self._mutex:
            model = self._models[index]
            frontends = self._links.forget_ready(index)
            model.users = set(frontends)
            if not frontends:
                self._free(model)
        self._links.tell_gone(index, frontends)
        while not model.freed.wait(_LOOK_AGAIN_S) and not self._stopping:
            pass

    def refused(self, failed: ModelFailed) -> None:
        """Tell the frontends of a version that is not served."""
        self._links.tell(failed)

    def all_loaded(self) -> None:
        """Tell the frontends that what was there at the start is loaded or refused. Once is enough."""
        if not self._all_loaded:
            self._all_loaded = True
            self._links.tell(ModelsLoaded())

    def _released(self, index: int, frontend: int) -> None:
        """Under the mutex. The frontend has none of the model's slots any more; who never had does no harm."""
        model = self._models[index]
        if frontend in model.users:
            model.users.discard(frontend)
            if not model.users:
                self._free(model)

    def _free(self, model: _Model) -> None:
        del self._models[model.index]
        model.idle.clear()
        model.freed.set()

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


def _load_all(repository: Path, engine: Engine) -> None:
    for loaded in load_all(repository, engine.settings):
        if engine.stopping:
            return
        if isinstance(loaded, ModelFailed):
            engine.refused(loaded)
        else:
            engine.serve(loaded)
    engine.all_loaded()
