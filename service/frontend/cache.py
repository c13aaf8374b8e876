"""The response cache of one frontend: answers that are kept, and one run for identical requests in flight.

    run ─┬─ known ─────────► outputs copied into the claim's own rows ─► done
         ├─ on its way ────► waits ─┬─ answered ───────────────────────► the same
         │                          ├─ its deadline, its client gone ──► done with that error; nothing
         │                          └─ that run's deadline ────────────► its own rows are committed, the others wait
         └─ neither ───────► its rows are committed ─► outputs kept ───► done

It sits between the handlers and the commit, so a request is what its rows are: JSON, binary, gRPC and an image of the
same pixels are one, and which outputs it asks for, its id and its headers do not matter. The key is a digest of the
rows of the whole request, with the shapes of items that differ in size, and of the loaded copy of the version, whose
datatypes are fixed. So after a reload nothing old is found; as nobody asks for it, it is what goes first.
Outputs are copied into the claim's rows in the arena, which it owns until it is committed, and encoded from there as
always. A request that waits holds its slots, so that it can take over.
Only outputs are kept, never an error. In the event loop's thread, as claims are.
Checked by tests/property/test_cache.py, tests/unit/test_cache.py and tests/http/test_cache.py.
"""

import asyncio
import hashlib
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from service.batching.arena import Region, ShapedRegion
from service.batching.claim import FROM_CACHE, Claim, ModelObserver, ServedModel
from service.errors import DeadlineExceeded

_LARGEST_PART = 8  # an answer of more than an eighth of the whole would push out too many others
_ENTRY_BYTES = 256  # of Python, for key, outputs and their place; tests/unit/test_cache.py measures it

_copies = itertools.count()

Done = Callable[[Claim], None]
Outputs = bytes
"""Rows one after another: output by output as the version has them, item by item.

One object, and none that Python's garbage collector walks: of a hundred thousand answers that would take long.
"""


class Answers:
    """Outputs by key within `max_bytes`, keys and bookkeeping counted; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Outputs] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Outputs | None:
        outputs = self._kept.get(key)
        if outputs is not None:
            self._kept.move_to_end(key)
        return outputs

    def keep(self, key: bytes, outputs: Outputs) -> int:
        """How many others had to go. What is too large is not kept."""
        size = size_bytes(key, outputs)
        if size > self._max_bytes // _LARGEST_PART:
            return 0
        if (before := self._kept.pop(key, None)) is not None:
            self.size_bytes -= size_bytes(key, before)
        self._kept[key] = outputs
        self.size_bytes += size
        evicted = 0
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= size_bytes(*self._kept.popitem(last=False))
            evicted += 1
        return evicted


def size_bytes(key: bytes, outputs: Outputs) -> int:
    """What keeping them takes."""
    return _ENTRY_BYTES + len(key) + len(outputs)


class _Plan(NamedTuple):
    """Of one loaded copy. `digest`: begun with a number that no other has"""

    digest: "hashlib._Hash"
    inputs: tuple[Region | ShapedRegion, ...]
    outputs: tuple[Region | ShapedRegion, ...]


class _Waiter(NamedTuple):
    """since   monotonic ns; `looked_ns`: how long finding out took"""

    done: Done
    since: int
    looked_ns: int
    timer: asyncio.TimerHandle


class _Flight:
    """One run, and who waits for its outputs, in the order they came.

    leader   whose rows are committed
    done     the leader's; None: its client is gone, and the run goes on for those who wait, and to be kept
    """

    __slots__ = ("done", "key", "leader", "looked_ns", "waiting")

    def __init__(self, key: bytes, leader: Claim, done: Done, looked_ns: int) -> None:
        self.key = key
        self.leader = leader
        self.done: Done | None = done
        self.looked_ns = looked_ns
        self.waiting: dict[Claim, _Waiter] = {}


class ResponseCache:
    """`observer` is told what is kept of all versions together; each version's own, what was found and what was not."""

    def __init__(self, max_bytes: int, observer: ModelObserver) -> None:
        self._answers = Answers(max_bytes)
        self._flights: dict[bytes, _Flight] = {}  # those that can be joined
        self._flight_of: dict[Claim, _Flight] = {}  # of every claim that is not done
        self._observer = observer
        observer.cache_changed(0, 0)  # whoever had this place before took its own with it

    def run(self, claim: Claim, done: Done) -> None:
        """As `Claim.run`, perhaps without a run of its own. The claim's deadline and priority are set."""
        if not claim.slots:
            claim.run(done)
            return
        began = time.monotonic_ns()
        key = self._key(claim)
        if (outputs := self._answers.get(key)) is not None:
            _hit(claim, outputs, 0, began)
            done(claim)
            return
        flight = self._flights.get(key)
        looked_ns = time.monotonic_ns() - began
        # One that is more urgent does not wait for one that may be overtaken by everything.
        if flight is not None and flight.leader.priority <= claim.priority:
            timer = asyncio.get_running_loop().call_later((claim.deadline - began) / 1e9, self._late, claim)
            flight.waiting[claim] = _Waiter(done, began, looked_ns, timer)
            self._flight_of[claim] = flight
            return
        flight = self._flights[key] = self._flight_of[claim] = _Flight(key, claim, done, looked_ns)
        claim.run(partial(self._ran, flight))

    def give_up(self, claim: Claim) -> None:
        """As `Claim.release`, of one that may not be done."""
        flight = self._flight_of.pop(claim, None)
        if flight is not None and flight.leader is claim:
            flight.done = None  # released once it has run: the engine holds its slots until then anyway
            return
        if flight is not None:
            flight.waiting.pop(claim).timer.cancel()
        claim.release()

    def _key(self, claim: Claim) -> bytes:
        """SHA-256: where the processor has instructions for it, faster than BLAKE2."""
        plan = _plan(claim.model)
        digest = plan.digest.copy()
        digest.update(b"%d:" % len(claim.slots))
        for region in plan.inputs:
            for slot in claim.slots:
                for part in region.packed(slot):
                    digest.update(part)
        return digest.digest()

    def _late(self, claim: Claim) -> None:
        done = self._flight_of.pop(claim).waiting.pop(claim).done
        claim.error = DeadlineExceeded("the deadline passed before the model answered")
        done(claim)

    def _ran(self, flight: _Flight, leader: Claim) -> None:
        """Answered, or given up: the leader is told, and whoever waits."""
        done, error, began = flight.done, leader.error, time.monotonic_ns()
        self._flight_of.pop(leader, None)
        outputs = self._keep(flight.key, leader) if error is None else None
        leader.model.observer.cache_missed(flight.looked_ns + time.monotonic_ns() - began)
        if isinstance(error, DeadlineExceeded) and flight.waiting:
            self._take_over(flight)
            _tell(leader, done)
            return
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        waiting, flight.waiting = flight.waiting, {}
        for claim, waiter in waiting.items():
            waiter.timer.cancel()
            del self._flight_of[claim]
        _tell(leader, done)
        for claim, waiter in waiting.items():
            if outputs is None:
                claim.error = error
            else:
                now = time.monotonic_ns()
                _hit(claim, outputs, (now - waiter.since) // 1000, now - waiter.looked_ns)
            waiter.done(claim)

    def _take_over(self, flight: _Flight) -> None:
        """The deadline was the leader's alone: the first of the most urgent of those who wait has its rows run."""
        claim = min(flight.waiting, key=lambda waiting: waiting.priority)
        waiter = flight.waiting.pop(claim)
        waiter.timer.cancel()
        flight.leader, flight.done, flight.looked_ns = claim, waiter.done, waiter.looked_ns
        claim.run(partial(self._ran, flight))

    def _keep(self, key: bytes, leader: Claim) -> Outputs:
        outputs = _outputs(leader)
        evicted = self._answers.keep(key, outputs)
        self._observer.cache_changed(self._answers.size_bytes, evicted)
        return outputs


def _plan(model: ServedModel) -> _Plan:
    plan: _Plan | None = model.plans.get("cache")
    if plan is None:
        plan = model.plans["cache"] = _Plan(
            hashlib.sha256(b"%d:" % next(_copies)),
            (*model.inputs.values(), *model.shaped_inputs.values()),
            (*model.outputs.values(), *model.shaped_outputs.values()),
        )
    return plan


def _outputs(claim: Claim) -> Outputs:
    """A copy of a claim's outputs."""
    regions = _plan(claim.model).outputs
    return b"".join([part for region in regions for slot in claim.slots for part in region.packed(slot)])


def _hit(claim: Claim, outputs: Outputs, waited_us: int, began: int) -> None:
    """The claim is as if it had run. `began`: monotonic ns, what the look-up and this take is counted from there."""
    left = memoryview(outputs)
    for region in _plan(claim.model).outputs:
        for slot in claim.slots:
            left = region.unpack(slot, left)
    claim.timings = (waited_us, 0, FROM_CACHE)
    claim.model.observer.cache_hit(time.monotonic_ns() - began)


def _tell(leader: Claim, done: Done | None) -> None:
    if done is None:
        leader.release()
    else:
        done(leader)
