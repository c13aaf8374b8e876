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
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from service.batching.arena import ShapedRow
from service.batching.claim import FROM_CACHE, Claim, ModelObserver, ServedModel
from service.errors import DeadlineExceeded

_LARGEST_PART = 8  # an answer of more than an eighth of the whole would push out too many others
_ENTRY_BYTES = 256  # of the dictionary, beside key and outputs; tests/unit/test_cache.py measures it
_PLAN = "cache"

Done = Callable[[Claim], None]


class Outputs(NamedTuple):
    """Of a request's items, in the order of the version's outputs: of those whose items have one size, and the others.

    shaped   of each a row for each item
    """

    fixed: tuple[bytes, ...]
    shaped: tuple[tuple[ShapedRow, ...], ...]


class _Kept(NamedTuple):
    outputs: Outputs
    size_bytes: int


class Answers:
    """Outputs by key within `max_bytes`, keys and bookkeeping counted; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Outputs | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept.outputs

    def keep(self, key: bytes, outputs: Outputs) -> int:
        """How many others had to go. What is too large is not kept."""
        size = size_bytes(key, outputs)
        if size > self._max_bytes // _LARGEST_PART:
            return 0
        if (before := self._kept.pop(key, None)) is not None:
            self.size_bytes -= before.size_bytes
        self._kept[key] = _Kept(outputs, size)
        self.size_bytes += size
        evicted = 0
        while self.size_bytes > self._max_bytes:
            _, gone = self._kept.popitem(last=False)
            self.size_bytes -= gone.size_bytes
            evicted += 1
        return evicted


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
        self._copies = itertools.count()
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
        """SHA-256: with the instructions that processors have for it, as fast as BLAKE2 for a row of 784 bytes, and
        twice as fast for 150 kB."""
        model = claim.model
        digest: hashlib._Hash = (model.plans.get(_PLAN) or self._plan(model)).copy()
        digest.update(b"%d:" % len(claim.slots))
        for region in model.inputs.values():
            for slot in claim.slots:
                digest.update(region.row(slot))
        for shaped in model.shaped_inputs.values():
            for slot in claim.slots:
                digest.update(shaped.record(slot))
                digest.update(shaped.data(slot))
        return digest.digest()

    def _plan(self, model: ServedModel) -> "hashlib._Hash":
        """A digest begun with a number that no other loaded copy has."""
        plan = model.plans[_PLAN] = hashlib.sha256(b"%d:" % next(self._copies))
        return plan

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
        """The deadline was the leader's alone: the first of those who wait has its rows run."""
        claim, waiter = next(iter(flight.waiting.items()))
        del flight.waiting[claim]
        waiter.timer.cancel()
        flight.leader, flight.done, flight.looked_ns = claim, waiter.done, waiter.looked_ns
        claim.run(partial(self._ran, flight))

    def _keep(self, key: bytes, leader: Claim) -> Outputs:
        outputs = _outputs(leader)
        evicted = self._answers.keep(key, outputs)
        self._observer.cache_changed(self._answers.size_bytes, evicted)
        return outputs


def size_bytes(key: bytes, outputs: Outputs) -> int:
    """What keeping them takes."""
    parts: list[object] = [key, outputs, outputs.fixed, outputs.shaped, *outputs.fixed, *outputs.shaped]
    for row in itertools.chain(*outputs.shaped):
        parts += [row, row.shape, row.data, *row.shape]
    return _ENTRY_BYTES + sum(map(sys.getsizeof, parts))


def _outputs(claim: Claim) -> Outputs:
    """Copies of a claim's outputs."""
    model, slots = claim.model, claim.slots
    fixed = tuple([b"".join([region.row(slot) for slot in slots]) for region in model.outputs.values()])
    shaped = tuple(
        tuple(ShapedRow(region.shape(slot), bytes(region.data(slot))) for slot in slots)
        for region in model.shaped_outputs.values()
    )
    return Outputs(fixed, shaped)


def _hit(claim: Claim, outputs: Outputs, waited_us: int, began: int) -> None:
    """The claim is as if it had run. `began`: monotonic ns, what the look-up and this take is counted from there."""
    model = claim.model
    for region, rows in zip(model.outputs.values(), outputs.fixed, strict=True):
        region.write(claim.slots, rows)
    for shaped, items in zip(model.shaped_outputs.values(), outputs.shaped, strict=True):
        for slot, item in zip(claim.slots, items, strict=True):
            shaped.write(slot, item)
    claim.timings = (waited_us, 0, FROM_CACHE)
    model.observer.cache_hit(time.monotonic_ns() - began)


def _tell(leader: Claim, done: Done | None) -> None:
    if done is None:
        leader.release()
    else:
        done(leader)
