"""A thread that owns a GPU session, and the rule that nothing else calls CUDA while a graph is captured.

onnxruntime keeps captured CUDA graphs by the thread that captured them: another thread that runs the session has none,
and captures its own. Executors are not tied to models, so each GPU session has a thread of its own instead, on which it
is opened, captured and run. Handing over a run and waiting for it takes two wake-ups (docs/adr/0017).

A capture fails when another thread of the process calls CUDA meanwhile (cudaStreamCaptureModeGlobal), so captures run
alone, and everything else, opening sessions included, together. Checked by tests/unit/test_lane.py.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """Runs what it is given on its one thread, in turn. The thread ends with the lane, and never holds the process."""

    def __init__(self, name: str) -> None:
        work: SimpleQueue[_Call | None] = SimpleQueue()
        self._work = work
        self._thread = threading.Thread(target=_serve, args=(work,), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, work.put, None)

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises. On the lane's own thread it runs at once."""
        if threading.current_thread() is self._thread:
            return function()
        call = _Call(function)
        self._work.put(call)
        call.done.acquire()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[no-any-return]


class Turns:
    """Of one process: `together` for whatever calls CUDA, `alone` for a capture, which waits for the others to end.

    Who comes while a capture waits lets it go first.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: not self._together)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:  # Any: whatever the caller wants back
        self.function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


def _serve(work: "SimpleQueue[_Call | None]") -> None:
    while (call := work.get()) is not None:
        try:
            call.result = call.function()
        except BaseException as error:  # noqa: BLE001 it is raised where the call came from
            call.error = error
        call.done.release()
        del call  # a lane that waits keeps nothing of the last call alive
