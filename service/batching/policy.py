"""Which waiting items run next, and how many together. No clock, no lock, no I/O: the engine passes the time in.

Work-conserving: an idle instance takes what waits at once, so a lone client never pays for a batch that does not come.
While several instances are idle, each takes a fair share and not everything; with one instance left idle the others
would stand still for the length of a whole batch. A share is never so small that it takes longer to wake an instance
than to run it (`smallest_share`). `max_queue_delay_us` (default 0) trades latency for larger batches.

Order: priority (lower runs first), then deadline, then arrival. Expired items never reach a batch. Only items of equal
keys (shapes) share a batch: the item whose turn it is, and those of its key, in their order. So a key of which one item
came waits no longer than that item's turn. Items that are nobody's request (a shadow's) have keys of their own: they
run behind all others, and never make a client's batch larger.
Checked by tests/unit/test_policy.py and, against a plain list, tests/property/test_policy_machine.py.
"""

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple


class WaitingItem(NamedTuple):
    """One committed slot. The order of the fields is the order in which items run; instants are monotonic ns."""

    priority: int
    deadline: int
    arrival: int  # counts up, so that equal items keep their order and nothing behind it is compared
    slot: int
    frontend: int
    committed_at: int
    key: Hashable = ()  # only items of equal keys run together: the shapes of the inputs, and whether it is a request


@dataclass(frozen=True)
class Limits:
    max_batch_size: int
    max_queue_delay_us: int = 0
    smallest_share: int = 1


class Taken(NamedTuple):
    """`batch` runs now, `expired` are answered without running, before `retry_at` nothing runs unless items come."""

    batch: list[WaitingItem]
    expired: list[WaitingItem]
    retry_at: int | None


@dataclass
class WaitingQueue:
    """The items of one model that wait to be taken. The same items always leave in the same order.

    _heaps   by key, none empty; models whose items are all alike have one
    """

    _heaps: dict[Hashable, list[WaitingItem]] = field(default_factory=dict)
    _n_items: int = 0
    _next_expiry: int = 0  # no item expires before this instant

    def __len__(self) -> int:
        return self._n_items

    def push(self, item: WaitingItem) -> None:
        if not self._n_items or item.deadline < self._next_expiry:
            self._next_expiry = item.deadline
        self._n_items += 1
        heap = self._heaps.get(item.key)
        if heap is None:
            self._heaps[item.key] = [item]
        else:
            heapq.heappush(heap, item)

    def take(self, now: int, idle_instances: int, limits: Limits) -> Taken:
        """Remove what one of `idle_instances` (>= 1, itself included) runs at `now`, and whatever has expired."""
        expired = self._drop_expired(now)
        if not self._n_items:
            return Taken([], expired, None)
        if limits.max_queue_delay_us:
            return self._take_ripe(now, idle_instances, limits, expired)
        heap = self._next_heap()
        size = batch_size(self._n_items, idle_instances, limits)
        return Taken(self._pop(heap, size), expired, None)

    @property
    def priority(self) -> int:
        """Of the item whose turn it is; there is one."""
        return self._next_heap()[0].priority

    def drop_frontend(self, frontend: int) -> None:
        """Forget a dead frontend's items: nobody is left to read their answers."""
        self._keep(lambda item: item.frontend != frontend)

    def _take_ripe(self, now: int, idle_instances: int, limits: Limits, expired: list[WaitingItem]) -> Taken:
        """Of the keys that have a full batch, or an item that waited long enough, the one whose turn it is."""
        ripe = []
        retry_at: int | None = None
        for heap in self._heaps.values():
            ripe_at = min(item.committed_at for item in heap) + limits.max_queue_delay_us * 1000
            if len(heap) >= limits.max_batch_size or ripe_at <= now:
                ripe.append(heap)
            elif retry_at is None or ripe_at < retry_at:
                retry_at = ripe_at
        if not ripe:
            return Taken([], expired, retry_at)
        heap = min(ripe, key=_front)
        size = limits.max_batch_size  # what was waited for goes together
        if len(heap) >= limits.max_batch_size:
            size = batch_size(self._n_items, idle_instances, limits)
        return Taken(self._pop(heap, size), expired, None)

    def _next_heap(self) -> list[WaitingItem]:
        heaps = self._heaps.values()
        return next(iter(heaps)) if len(heaps) == 1 else min(heaps, key=_front)

    def _pop(self, heap: list[WaitingItem], most: int) -> list[WaitingItem]:
        if len(heap) > most:
            self._n_items -= most
            return [heapq.heappop(heap) for _ in range(most)]
        self._n_items -= len(heap)
        del self._heaps[heap[0].key]
        heap.sort()
        return heap

    def _drop_expired(self, now: int) -> list[WaitingItem]:
        if not self._n_items or now < self._next_expiry:
            return []
        expired = sorted(self._keep(lambda item: item.deadline > now))
        deadlines = (item.deadline for heap in self._heaps.values() for item in heap)
        self._next_expiry = min(deadlines, default=0)
        return expired

    def _keep(self, wanted: Callable[[WaitingItem], bool]) -> list[WaitingItem]:
        """Remove and return all other items."""
        removed = []
        for key, heap in list(self._heaps.items()):
            removed += [item for item in heap if not wanted(item)]
            heap[:] = [item for item in heap if wanted(item)]
            heapq.heapify(heap)
            if not heap:
                del self._heaps[key]
        self._n_items -= len(removed)
        return removed


def _front(heap: list[WaitingItem]) -> WaitingItem:
    """Whose turn it is, of one key."""
    return heap[0]


def batch_size(waiting: int, idle_instances: int, limits: Limits) -> int:
    """An idle instance's fair share of what waits, rounded up, where that is worth waking the others for."""
    return min(limits.max_batch_size, max(limits.smallest_share, -(-waiting // idle_instances)))
