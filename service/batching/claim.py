"""One request's hold on slots, from claim to release, and the model whose slots they are.

    claimed ──run──► committed ──answered──► all answered ──exit──► free
       └──exit──► free    └──exit──► abandoned ──all answered──► free       the engine may still write those rows

Touched by the event loop's thread alone. `client.py` makes claims and tells them what the engine answered.
Checked by tests/property/test_slots.py.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy.typing as npt

from service.batching.arena import Arena, Rows, ShapedRow, SlotIndex
from service.batching.link import ModelFacts, Status
from service.errors import DeadlineExceeded, EngineError, ModelNotReady, Overloaded, WrongTensor

DEFAULT_PRIORITY = 1  # the protocol: 1 is the highest, 0 asks for the default
LOWEST_PRIORITY = 254  # of a client's request
BACKGROUND_PRIORITY = 255  # a byte on the link; a shadow's

Commit = Callable[["Claim"], None]
"""Register the claim's slots and send their numbers."""


Timings = tuple[int, int, int]
"""Of the slowest of a request's items: queue_us, compute_us, and how many ran together, or FROM_CACHE."""

FROM_CACHE = -1  # nothing ran; queue_us is how long it waited for the run of another

_NO_TIMINGS: Timings = (0, 0, 0)

SkipReason = Literal["slots", "under_way", "incomparable", "unanswered"]
"""Why a shadow did not repeat a request: no slot to spare, too many under way, other tensors, no answer in time."""

SKIP_REASONS: tuple[SkipReason, ...] = get_args(SkipReason)


class ModelObserver:
    """What a frontend may want to know of one version's answers; metrics override it."""

    def item_answered(self, queue_us: int) -> None:
        """Once for each item."""

    def batch_answered(self, batch_size: int, compute_us: int) -> None:
        """Once for each batch."""

    def request_answered(
        self, status: int, microseconds: int, timings: Timings | None, decode_ns: int = 0, encode_ns: int = 0
    ) -> None:
        """Once for each request, in the whole of its life. `timings`: None where the model was not run for it."""

    def in_flight(self, items: int) -> None:
        """Now and then, and once none are."""

    def shadow_compared(self, items: int, disagreed: int, differences: list[float]) -> None:
        """Once for each request that this version repeated. `differences`: of the items' floats, where it has any."""

    def shadow_skipped(self, reason: SkipReason, items: int) -> None:
        """Items that this version would have repeated."""

    def cache_hit(self, ns: int) -> None:
        """Once for each request that needed no run of its own: to look it up and to copy its outputs took `ns`."""

    def cache_missed(self, ns: int) -> None:
        """Once for each run whose request was looked up: that, and to keep its outputs, took `ns`."""

    def cache_changed(self, size_bytes: int, evicted: int) -> None:
        """Of the cache as a whole: what it takes now, and how many answers went to make room."""


class ServedModel:
    """A ready version as this frontend sees it: what it is, its rows, and which of its slots are free."""

    def __init__(
        self,
        facts: ModelFacts,
        index: int,
        slots: tuple[int, int],
        arena: Arena,
        commit: "Commit",
        observer: ModelObserver,
    ) -> None:
        self.facts = facts
        self.observer = observer
        self.commit = commit
        self.index = index
        self.inputs = arena.inputs
        self.outputs = arena.outputs
        self.shaped_inputs = arena.shaped_inputs
        self.shaped_outputs = arena.shaped_outputs
        first, end = slots
        self.capacity = end - first
        self.plans: dict[str, Any] = {}  # what handlers work out once for each version
        self.free = [SlotIndex(slot) for slot in reversed(range(first, end))]  # a stack: warm rows are used again
        self.owners: dict[int, Claim] = {}
        self.retired: Callable[[], None] | None = None  # once the version is gone: called when slots come free

    @property
    def in_flight(self) -> int:
        return self.capacity - len(self.free)

    def deadline(self, received_at: int, timeout_ns: int) -> int:
        """Of a request: by the service's time-out, or the model's own where that is shorter."""
        own_ms = self.facts.timeout_ms
        return received_at + (timeout_ns if own_ms is None else min(timeout_ns, own_ms * 1_000_000))

    def claim(self, n_items: int) -> "Claim":
        """Raises WrongTensor when the model could never hold that many, Overloaded when it cannot now."""
        free = self.free
        if n_items == 1 and free:
            return Claim(self, [free.pop()])
        if n_items == 0:
            return NoItems(self, [])
        if not 0 < n_items <= self.capacity:
            raise WrongTensor(f"{n_items} items in one request; expected at most {self.capacity}")
        if n_items > len(free):
            if self.retired is not None:
                raise ModelNotReady(f"version {self.facts.version} of {self.facts.name!r} has just gone; send it again")
            raise Overloaded(
                f"model {self.facts.name!r} is overloaded: {self.in_flight} items in flight, room for {self.capacity}"
            )
        return Claim(self, [free.pop() for _ in range(n_items)])


class Claim:
    """Slots of one request, from claim to release. As a context manager it is released at the end.

    deadline   monotonic ns; items still waiting then are not run. Set before `run`, as is `priority`
    error      what became of it, once done: DeadlineExceeded, EngineError or EngineDied; None: the outputs can be read
    timings    as `Timings` has them
    """

    __slots__ = ("_done", "_released", "deadline", "error", "model", "priority", "slots", "timings", "unanswered")

    def __init__(self, model: ServedModel, slots: list[SlotIndex]) -> None:
        self.model = model
        self.slots = slots
        self.priority = DEFAULT_PRIORITY
        self.deadline = 0
        self.unanswered = -1  # not committed
        self.error: Exception | None = None
        self.timings: Timings = _NO_TIMINGS
        self._released = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def write(self, name: str, rows: Rows) -> None:
        """The input's items in the order of the slots; a list where they differ in size."""
        if isinstance(rows, list):
            region = self.model.shaped_inputs[name]
            for slot, row in zip(self.slots, rows, strict=True):
                region.write(slot, row)
        else:
            self.model.inputs[name].write(self.slots, rows)

    def read(self, name: str) -> npt.NDArray[Any]:  # Any: the element type is the tensor's
        """The output's items, [n, elements of an item]; valid until release."""
        if len(self.slots) == 1:
            slot = self.slots[0]
            return self.model.outputs[name].array[slot : slot + 1]
        return self.model.outputs[name].array[self.slots]

    def read_shaped(self, name: str) -> list[ShapedRow]:
        """As `read`, for an output whose items differ in size."""
        region = self.model.shaped_outputs[name]
        return [ShapedRow(region.shape(slot), region.data(slot)) for slot in self.slots]

    def run(self, done: Callable[["Claim"], None]) -> None:
        """Commit the rows. `done` is called once: when every item is answered, or the wait for them given up."""
        assert self.unanswered < 0, "bug: a claim is committed once"
        self.unanswered = len(self.slots)
        self._done: Callable[[Claim], None] | None = done
        self.model.commit(self)

    def release(self) -> None:
        """The slots are free: now, or, where the engine still holds some, once it has answered them. Nobody waits."""
        self._released = True
        self._done = None
        if self.unanswered <= 0:
            model = self.model
            model.free.extend(reversed(self.slots))
            if model.retired is not None:
                model.retired()

    def answered(self, status: int, queue_us: int, compute_us: int, batch_size: int) -> None:
        self.unanswered -= 1
        if queue_us >= self.timings[0]:
            self.timings = (queue_us, compute_us, batch_size)
        if self._released:
            if not self.unanswered:
                self.release()
        elif status != Status.OK:
            self.fail(_ERRORS[status]())
        elif not self.unanswered:
            self._settle()

    def fail(self, error: Exception) -> None:
        """Give up waiting; slots that the engine still holds stay held."""
        if self.error is None:
            self.error = error
            self._settle()

    def _settle(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(self)


class NoItems(Claim):
    """Of a request whose tensors have no row: there is nothing to run, so it is done at once, with timings of 0.

    `read` gives [0, elements of an item], `read_shaped` nothing.
    """

    __slots__ = ()

    def run(self, done: Callable[[Claim], None]) -> None:
        done(self)


_ERRORS: dict[int, Callable[[], Exception]] = {
    Status.FAILED: lambda: EngineError("the model failed on this input"),
    Status.TOO_LARGE: lambda: EngineError("an output of this item is larger than batching.max_row_bytes allows"),
    Status.EXPIRED: lambda: DeadlineExceeded("the deadline passed while the request waited for its turn"),
}
