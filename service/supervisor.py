"""Starts the controller, engines and frontends, replaces those that die, and drains on SIGTERM.

    frontends 0    HTTP, one engine and the controller share this process: the same code as between processes
    frontends n    n HTTP processes, an engine process for each device and the controller, forked here; this process
                   only watches

    SIGTERM, SIGINT ─► the frontends leave (frontend/serve.py) ─► the engines end ─► exit 0
    a frontend dies ─► its connections are lost with it; another takes its socket and its slots
    an engine dies  ─► its requests in flight are answered 503; another loads the models and is connected
    the controller  ─► requests are answered as before; another learns from the others how things stand
    deaths go on    ─► exit 1: whoever runs us must see it

Between the supervisor and a child runs one socket (control.py). Its end of file tells a frontend that the supervisor is
gone, and an engine that no more frontends come. Children are forked, not started afresh: what is imported here is
shared. This process therefore never starts a thread. Decisions: docs/adr/0009, 0013.
"""

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

from service.batching.link import Link, link_pair
from service.control import control_pair, send_leave, send_link
from service.lifecycle.frames import make_place
from service.lifecycle.remote_source import RemoteError
from service.lifecycle.remote_start import settled_repository
from service.listening import StartError, listen, listen_for_admin, require_device, require_grpc, settled_grpc_port
from service.log import configure_logging
from service.machine import available_cores, cuda_devices
from service.metrics import SharedCounts
from service.settings import Settings
from service.trust import trusted_keys

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MOST_DEATHS = 5  # of all children together
_DEATHS_WITHIN_S = 60.0
_ENGINE_END_S = 15.0
_FRONTENDS_PER_ENGINE = 4

Role = Literal["controller", "engine", "frontend"]


def serve(settings: Settings, say: Callable[[str], None]) -> int:
    """Run until a signal ends it; the exit status. `say` prints where to look. Raises StartError, SettingsError."""
    configure_logging(settings.logging)
    try:
        settings = settled_repository(settings)
    except RemoteError as error:
        raise StartError(str(error)) from error
    if not settings.repository.is_dir():
        raise StartError(f"model repository {settings.repository} is not a folder; choose one with --repository")
    require_device(settings)
    require_grpc(settings)
    trusted_keys(settings.control.require_signature)  # read before anybody is forked
    with settled_grpc_port(settings) as settings:
        n_frontends = frontend_count(settings)
        listeners = listen(settings.server.host, settings.server.port, max(1, n_frontends))
        admin, settings = listen_for_admin(settings, max(1, n_frontends))
        if n_frontends == 0:
            return _serve_in_one_process(settings, [*listeners, *admin], say)
        return Supervisor(settings, listeners, admin, say).run()


def frontend_count(settings: Settings) -> int:
    """As set, or what the cores suggest."""
    if settings.server.frontends != "auto":
        return settings.server.frontends
    cores = settings.engine.cores or available_cores()
    return 0 if cores == 1 else max(1, min(_FRONTENDS_PER_ENGINE, cores // 2, settings.batching.max_queue_items))


def engine_count(settings: Settings) -> int:
    """As set, or one for each GPU, or one."""
    if settings.engine.engines is not None:
        return settings.engine.engines
    return 1 if settings.engine.device == "cpu" else max(1, len(cuda_devices()))


@dataclass
class _Child:
    role: Role
    number: int
    pid: int
    pidfd: int
    control: socket.socket


class Supervisor:
    def __init__(
        self,
        settings: Settings,
        listeners: list[socket.socket],
        admin: list[socket.socket],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._admin = admin  # one for each frontend too, or none
        self._say: Callable[[str], None] | None = say
        self._n_engines = engine_count(settings)
        self._counts = SharedCounts(len(listeners))
        self._children: dict[tuple[Role, int], _Child] = {}
        self._links: dict[tuple[int, int], tuple[Link, Link]] = {}  # (engine, frontend): its ends, until handed over
        self._deaths: list[float] = []
        self._draining = False
        self._failed = False
        self._place = make_place()

    def run(self) -> int:
        """Until every child has ended; the exit status."""
        gc.freeze()  # what the children share stays shared: no collection writes to it
        wakeup, signalled = socket.socketpair()
        for end in (wakeup, signalled):
            end.setblocking(False)
        signal.set_wakeup_fd(signalled.fileno())
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        self._signal_sockets = wakeup, signalled
        n_engines, n_frontends = self._n_engines, len(self._listeners)
        self._links = {(e, f): link_pair() for e in range(n_engines) for f in range(n_frontends)}
        for engine in range(n_engines):
            self._start_engine(engine)
        for frontend in range(n_frontends):
            self._start_frontend(frontend)
        self._start_controller()
        while self._children:
            self._watch(wakeup)
        return 1 if self._failed else 0

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self, wakeup: socket.socket) -> None:
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        children = {child.pidfd: child for child in self._children.values()}
        for pidfd in children:
            poll.register(pidfd, select.POLLIN)
        for descriptor, _ in poll.poll():
            if descriptor == wakeup.fileno():
                for _ in wakeup.recv(64):
                    self._drain()
            elif (child := children[descriptor]) in self._children.values():  # else reaped with one before it
                self._ended(child)

    def _drain(self) -> None:
        """One step towards the end: the frontends leave, a second time at once, a third time without waiting."""
        self._draining = True
        for listener in (*self._listeners, *self._admin):  # while one of us has it open, the kernel goes on accepting
            listener.close()
        frontends = [child for child in self._children.values() if child.role == "frontend"]
        for child in frontends:
            with contextlib.suppress(OSError):  # it has ended, and we will see it
                send_leave(child.control)

    def _reap(self, child: _Child) -> int:
        """Its exit code, negative the signal that ended it."""
        _, status = os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        child.control.close()
        del self._children[child.role, child.number]
        return os.waitstatus_to_exitcode(status)

    def _ended(self, child: _Child) -> None:
        code = self._reap(child)
        if not self._draining:
            self._replace(child, code)
        if not any(other.role == "frontend" for other in self._children.values()):
            self._end_engines()

    def _replace(self, child: _Child, code: int) -> None:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        log.error("%s %d ended %s; it is replaced", child.role, child.number, how)
        now = time.monotonic()
        self._deaths = [died_at for died_at in self._deaths if now - died_at < _DEATHS_WITHIN_S] + [now]
        if len(self._deaths) > _MOST_DEATHS:
            log.error("%d deaths within %g s; the service ends", len(self._deaths), _DEATHS_WITHIN_S)
            self._failed = True
            self._drain()
            return
        if child.role == "controller":
            self._start_controller()
        elif child.role == "engine":
            frontends = range(len(self._listeners))
            self._links = {(child.number, frontend): link_pair() for frontend in frontends}
            ends = {frontend: self._links[child.number, frontend][0] for frontend in frontends}
            self._start_engine(child.number)
            self._hand_over("frontend", child.number, ends)
        else:
            engines = range(self._n_engines)
            self._links = {(engine, child.number): link_pair() for engine in engines}
            ends = {engine: self._links[engine, child.number][1] for engine in engines}
            self._hand_over("engine", child.number, ends)
            self._start_frontend(child.number)

    def _hand_over(self, role: Role, number: int, ends: dict[int, Link]) -> None:
        """Give each of the others its end of the link to the child that is new, whose number goes with it."""
        for other, link in ends.items():
            if (child := self._children.get((role, other))) is not None:
                with contextlib.suppress(OSError):  # it has just died, and will be replaced
                    send_link(child.control, number, link)
            link.close()

    def _end_engines(self) -> None:
        """End of file on its control tells an engine to leave once its frontends have, and the controller at once."""
        for child in self._children.values():
            child.control.close()
        give_up_at = time.monotonic() + _ENGINE_END_S
        for child in list(self._children.values()):
            poll = select.poll()
            poll.register(child.pidfd, select.POLLIN)
            if not poll.poll(max(0.0, give_up_at - time.monotonic()) * 1000):
                log.warning("%s %d does not end; it is killed", child.role, child.number)
                os.kill(child.pid, signal.SIGKILL)
            self._reap(child)

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_controller(self) -> None:
        def body(control: socket.socket) -> int:
            from service.controller.process import run_controller

            return run_controller(self._settings, self._n_engines, self._place, self._counts, control)

        self._fork("controller", 0, body, {self._place.listener})

    def _start_engine(self, number: int) -> None:
        links = {frontend: ends[1] for (engine, frontend), ends in self._links.items() if engine == number}

        def body(control: socket.socket) -> int:
            from service.engine.serve import run_engine  # the engine's imports are its own

            return run_engine(self._settings, number, len(self._listeners), links, control, self._place)

        self._fork("engine", number, body, set(links.values()))

    def _start_frontend(self, number: int) -> None:
        links = [ends[0] for (_, frontend), ends in sorted(self._links.items()) if frontend == number]
        listeners = [self._listeners[number], *self._admin[number : number + 1]]
        say, self._say = (self._say, None) if number == 0 else (None, self._say)

        def body(control: socket.socket) -> int:
            from service.frontend.process import run_frontend

            return run_frontend(
                *(self._settings, number, listeners, links, self._counts, control, say),
                succeeds=bool(self._deaths),
                place=self._place,
            )

        self._fork("frontend", number, body, {*links, *listeners})

    def _fork(
        self, role: Role, number: int, body: Callable[[socket.socket], int], mine: set[Link | socket.socket]
    ) -> None:
        """Start a child. Of what is open here it keeps `mine`: an end of file is only one when nobody holds the end."""
        ours, theirs = control_pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._be_child(f"{role} {number}", lambda: body(theirs), mine)
        theirs.close()
        for link in mine - {*self._listeners, *self._admin, self._place.listener}:
            link.close()
        self._children[role, number] = _Child(role, number, pid, os.pidfd_open(pid), ours)

    def _be_child(self, name: str, body: Callable[[], int], mine: set[Link | socket.socket]) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:  # a terminal sends them to all its processes; the supervisor decides
                signal.signal(number, signal.SIG_IGN)
            others: list[Link | socket.socket] = [end for ends in self._links.values() for end in ends]
            others += [*self._signal_sockets, *self._listeners, *self._admin, self._place.listener]
            others += [child.control for child in self._children.values()]
            for end in others:
                if end not in mine:
                    end.close()
            for child in self._children.values():
                os.close(child.pidfd)
            code = body()
        except BaseException:
            log.exception("bug: %s ended", name)
        finally:
            logging.shutdown()
            os._exit(code)


# ── one process ──────────────────────────────────────────────────────────────────────────────────────────────────


def _serve_in_one_process(settings: Settings, listeners: list[socket.socket], say: Callable[[str], None]) -> int:
    import uvloop

    from service.controller.controller import Controller
    from service.engine.serve import make_engine
    from service.frontend.serve import HttpServer

    async def run() -> bool:
        frontend_end, engine_end = link_pair()
        place, counts = make_place(), SharedCounts(1)
        server = HttpServer(settings, [frontend_end], counts, 0, place)
        engine = make_engine(settings, 0, 1, {0: engine_end}, place)
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, server.leave)
        engine.start()
        controller = asyncio.create_task(Controller(settings, 1, place, counts).run())
        try:
            return await server.run(listeners, say, end_with_engines=True)
        finally:
            controller.cancel()
            await asyncio.to_thread(engine.stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return 0 if runner.run(run()) else 1
