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
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from service.batching.link import ANSWER, Kind, Link, LinkClosed, ModelFailed, ModelReady, ModelsLoaded
from service.batching.policy import Limits, WaitingItem, WaitingQueue
from service.engine.instance import Instance
from service.engine.loader import load_all
from service.engine.repository import LoadedVersion, ModelSettings
from service.engine.run import Result, expire, run_batch

log = logging.getLogger(__name__)

_STOP_SECONDS = 10.0


@dataclass
class _Model:
    """A ready version. `idle` are the instances that nobody runs."""

    index: int
    limits: Limits
    idle: list[Instance]
    waiting: WaitingQueue = field(default_factory=WaitingQueue)


class _Work(NamedTuple):
    """A batch with the instance that will run it, and expired items to answer on the way."""

    model: _Model
    instance: Instance | None
    batch: list[WaitingItem]
    expired: list[WaitingItem]


class Engine:
    """Serves the models of one repository on one device to the frontends at the other ends of `links`."""

    def __init__(self, repository: Path, settings: ModelSettings, max_queue_delay_us: int, links: list[Link]) -> None:
        self._repository = repository
        self._settings = settings
        self._max_queue_delay_us = max_queue_delay_us
        self._n_frontends = len(links)
        self._links = dict(enumerate(links))
        self._sending = {frontend: threading.Lock() for frontend in self._links}
        self._models: dict[int, _Model] = {}
        self._mutex = threading.Lock()  # guards everything below and the receiving side of the links
        self._arrivals = 0
        self._idle_executors = 0
        self._next_model = 0
        self._stopping = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN | select.EPOLLET)
        for link in links:
            self._epoll.register(link.fileno(), select.EPOLLIN | select.EPOLLET)
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in [
                ("shoal-loader", self._load_all),
                *((f"shoal-executor-{i}", self._execute) for i in range(max(settings.cores, settings.instances or 1))),
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
            results = expire(work.expired)
            if work.instance is not None:
                results += run_batch(work.instance, work.batch)
            self._answer(work.model, results)
            finished = work
        self._ring()  # the next one, so that all see the end

    def _next_work(self, finished: _Work | None) -> _Work | None:
        """Give back the instance of what is finished, and wait for something to do. None: stop."""
        with self._mutex:
            if finished is not None and finished.instance is not None:
                finished.model.idle.append(finished.instance)
            while True:
                self._read_links()
                if self._stopping or not self._links:
                    return None
                now = time.monotonic_ns()
                work, retry_at = self._take(now)
                if work is not None:
                    if self._idle_executors and any(
                        len(model.waiting) and model.idle for model in self._models.values()
                    ):
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
        """Work for one executor, models in turn; or else when to look again."""
        retry_at: int | None = None
        indices = list(self._models)
        for i in range(len(indices)):
            turn = (self._next_model + i) % len(indices)
            model = self._models[indices[turn]]
            if not (len(model.waiting) and model.idle):
                continue
            idle = min(len(model.idle), self._idle_executors + 1)
            batch, expired, model_retry_at = model.waiting.take(now, idle, model.limits)
            if batch or expired:
                self._next_model = turn + 1
                return _Work(model, model.idle.pop() if batch else None, batch, expired), None
            if model_retry_at is not None:
                retry_at = min(retry_at or model_retry_at, model_retry_at)
        return None, retry_at

    def _read_links(self) -> None:
        for frontend, link in list(self._links.items()):
            try:
                if link.wants_write:
                    self._flush(frontend, link)
                more = True
                while more:
                    commits, more = link.receive_commits()
                    for _, priority, model, slot, committed_at, deadline in commits:
                        self._arrivals += 1
                        item = WaitingItem(priority, deadline, self._arrivals, slot, frontend, committed_at)
                        self._models[model].waiting.push(item)
            except LinkClosed:
                self._drop_frontend(frontend)

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

    def _answer(self, model: _Model, results: list[Result]) -> None:
        by_frontend: dict[int, list[bytes]] = {}
        for item, status, queue_us, compute_us, batch, first in results:
            record = ANSWER.pack(Kind.ANSWER, status, model.index, item.slot, queue_us, compute_us, batch, first, 0)
            by_frontend.setdefault(item.frontend, []).append(record)
        for frontend, records in by_frontend.items():
            self._send(frontend, partial(Link.send, records=b"".join(records)))

    def _send(self, frontend: int, send: Callable[[Link], None]) -> None:
        """Send to a frontend; what its socket does not take goes out when it is writable again."""
        if (link := self._links.get(frontend)) is None:
            return
        try:
            with self._sending[frontend]:
                send(link)
                if link.wants_write:
                    self._epoll.modify(link.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        except LinkClosed:
            with self._mutex:
                self._drop_frontend(frontend)

    def _flush(self, frontend: int, link: Link) -> None:
        with self._sending[frontend]:
            link.flush()
            if not link.wants_write:
                self._epoll.modify(link.fileno(), select.EPOLLIN | select.EPOLLET)

    def _drop_frontend(self, frontend: int) -> None:
        """Forget a frontend that is gone. Called with the mutex held; twice does no harm."""
        link = self._links.pop(frontend, None)
        if link is None:
            return
        with self._sending[frontend]:
            self._epoll.unregister(link.fileno())
            link.close()
        for model in self._models.values():
            model.waiting.drop_frontend(frontend)

    # ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _load_all(self) -> None:
        for loaded in load_all(self._repository, self._settings):
            if self._stopping:
                return
            if isinstance(loaded, ModelFailed):
                self._tell_all(loaded)
            else:
                self._serve(loaded)
        self._tell_all(ModelsLoaded())

    def _serve(self, loaded: LoadedVersion) -> None:
        """Take the version in, and give every frontend its share of the slots."""
        with self._mutex:
            index = len(self._models)
            delay_us = loaded.max_queue_delay_us
            limits = Limits(loaded.setup.max_batch_size, self._max_queue_delay_us if delay_us is None else delay_us)
            self._models[index] = _Model(index, limits, list(loaded.setup.instances))
        share = loaded.facts.capacity // self._n_frontends
        for frontend in range(self._n_frontends):
            ready = ModelReady(index, (frontend * share, (frontend + 1) * share), loaded.facts)
            self._send(frontend, partial(Link.send_event, event=ready, descriptor=loaded.arena_fd))
        os.close(loaded.arena_fd)

    def _tell_all(self, event: ModelFailed | ModelsLoaded) -> None:
        for frontend in range(self._n_frontends):
            self._send(frontend, partial(Link.send_event, event=event))

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception:
            log.exception("bug: %s ended", threading.current_thread().name)
            with self._mutex:
                self._stopping = True
                for frontend in list(self._links):
                    self._drop_frontend(frontend)
            self._ring()

    def _leave(self) -> None:
        with self._mutex:
            for frontend in list(self._links):
                self._drop_frontend(frontend)
        self._epoll.close()
        os.close(self._bell)
