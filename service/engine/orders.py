"""What the controller orders an engine to do: load a version, retire one. On the engine's loading thread, in turn.

A controller that goes away is connected to again, and hears what is served. A version that takes the place of another
copy of it is announced before the other is retired, so no request finds neither.
"""

import ctypes
import logging
import socket
import time
from dataclasses import replace
from pathlib import Path

from service.engine.loader import load
from service.engine.loop import Engine
from service.engine.repository import ModelSettings, plan_of
from service.lifecycle.catalogue import FoundVersion
from service.lifecycle.frames import Closed, Place, frame, receive_blocking
from service.lifecycle.messages import (
    AllLoaded,
    FromController,
    Hello,
    Load,
    Loaded,
    Plan,
    Refused,
    Serving,
    SetLog,
    Unload,
    Unloaded,
)
from service.log import set_level

log = logging.getLogger(__name__)

_AGAIN_S = 0.05


class Orders:
    """Called with the engine on its loading thread, until the engine ends."""

    def __init__(self, place: Place, number: int, settings: ModelSettings) -> None:
        self._place = place
        self._number = number
        self._settings = settings
        self._served: dict[tuple[str, str], tuple[int, Plan]] = {}
        self._connection: socket.socket | None = None

    def __call__(self, engine: Engine) -> None:
        engine.on_stop = self._hang_up
        while not engine.stopping:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(self._place.address)
                self._connection = connection
                connection.sendall(frame(self._hello()))
                while not engine.stopping:
                    self._obey(engine, connection, receive_blocking(connection, FromController))  # type: ignore[arg-type]
            except (OSError, Closed):
                time.sleep(_AGAIN_S)  # it is being replaced
            finally:
                connection.close()

    def _hello(self) -> Hello:
        serving = tuple(Serving(*key, plan) for key, (_, plan) in self._served.items())
        return Hello(self._place.secret, "engine", self._number, serving)

    def _hang_up(self) -> None:
        """From another thread: what waits for an order returns."""
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is gone already

    def _obey(self, engine: Engine, connection: socket.socket, order: FromController) -> None:
        match order:
            case Load():
                connection.sendall(frame(self._load(engine, order)))
            case Unload(id=number, name=name, version=version):
                if (served := self._served.pop((name, version), None)) is not None:
                    engine.retire(served[0])
                    give_memory_back()
                connection.sendall(frame(Unloaded(number)))
            case AllLoaded():
                engine.all_loaded()
            case SetLog(level=level):
                set_level(level)

    def _load(self, engine: Engine, order: Load) -> Loaded | Refused:
        settings = replace(self._settings, tune_budget_s=order.budget_s)
        found = FoundVersion(order.name, order.version, Path(order.path), order.overrides)
        loaded = load(found, settings, order.plan)
        if isinstance(loaded, str):
            return Refused(order.id, loaded)
        plan = plan_of(loaded)
        before = self._served.get((order.name, order.version))
        self._served[order.name, order.version] = engine.serve(loaded), plan
        del loaded
        if before is not None:
            engine.retire(before[0])
            give_memory_back()
        return Loaded(order.id, plan)


def give_memory_back() -> None:
    """What the C library keeps of freed sessions and buffers. glibc alone has a name for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
