"""Which waiting items run next, and how many together. No clock, no lock, no I/O: the engine passes the time in.

Work-conserving: an idle instance takes what waits at once, so a lone client never pays for a batch that does not come.
While several instances are idle, each takes a fair share and not everything; with one instance left idle the others
would stand still for the length of a whole batch. `max_queue_delay_us` (default 0) trades latency for larger batches.

Order: priority (lower runs first), then deadline, then arrival. Expired items never reach a batch.
Checked by tests/unit/test_policy.py and, against a plain list, tests/property/test_policy_machine.py.
"""

import heapq
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


@dataclass(frozen=True)
class Limits:
    max_batch_size: int
    max_queue_delay_us: int = 0


class Taken(NamedTuple):
    """`batch` runs now, `expired` are answered without running, before `retry_at` nothing runs unless items come."""

    batch: list[WaitingItem]
    expired: list[WaitingItem]
    retry_at: int | None


@dataclass
class WaitingQueue:
    """The items of one model that wait to be taken. The same items always leave in the same order."""

    _heap: list[WaitingItem] = field(default_factory=list)
    _next_expiry: int = 0  # no item expires before this instant

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: WaitingItem) -> None:
        if not self._heap or item.deadline < self._next_expiry:
            self._next_expiry = item.deadline
        heapq.heappush(self._heap, item)

    def take(self, now: int, idle_instances: int, limits: Limits) -> Taken:
        """Remove what one of `idle_instances` (>= 1, itself included) runs at `now`, and whatever has expired."""
        expired = self._drop_expired(now)
        if not self._heap:
            return Taken([], expired, None)
        size = batch_size(len(self._heap), idle_instances, limits.max_batch_size)
        if limits.max_queue_delay_us and len(self._heap) < limits.max_batch_size:
            oldest = min(item.committed_at for item in self._heap)
            if (retry_at := oldest + limits.max_queue_delay_us * 1000) > now:
                return Taken([], expired, retry_at)
            size = min(len(self._heap), limits.max_batch_size)  # what was waited for goes together
        return Taken([heapq.heappop(self._heap) for _ in range(size)], expired, None)

    def drop_frontend(self, frontend: int) -> None:
        """Forget a dead frontend's items: nobody is left to read their answers."""
        self._heap = [item for item in self._heap if item.frontend != frontend]
        heapq.heapify(self._heap)

    def _drop_expired(self, now: int) -> list[WaitingItem]:
        if not self._heap or now < self._next_expiry:
            return []
        expired = sorted(item for item in self._heap if item.deadline <= now)
        self._heap = [item for item in self._heap if item.deadline > now]
        heapq.heapify(self._heap)
        self._next_expiry = min((item.deadline for item in self._heap), default=0)
        return expired


def batch_size(waiting: int, idle_instances: int, max_batch_size: int) -> int:
    """An idle instance's fair share of what waits, rounded up."""
    return min(max_batch_size, -(-waiting // idle_instances))
