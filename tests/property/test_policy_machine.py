"""The waiting queue against a plain list: any order of arrivals and takes gives the same items in the same order."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.batching.policy import Limits, WaitingItem, WaitingQueue


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue()
        self.model: list[WaitingItem] = []
        self.now = 0
        self.arrivals = 0

    @rule(
        priority=st.integers(0, 3),
        lifetime=st.integers(1, 50),
        frontend=st.integers(0, 2),
        key=st.sampled_from([(), (), (1,), (2, 3)]),
    )
    def arrive(self, priority: int, lifetime: int, frontend: int, key: tuple[int, ...]) -> None:
        self.arrivals += 1
        item = WaitingItem(priority, self.now + lifetime, self.arrivals, self.arrivals, frontend, self.now, key)
        self.queue.push(item)
        self.model.append(item)

    @rule(elapsed=st.integers(0, 40))
    def time_passes(self, elapsed: int) -> None:
        self.now += elapsed

    @rule(idle=st.integers(1, 4), largest=st.integers(1, 8), delay=st.sampled_from([0, 0, 0.01, 1]))
    def take(self, idle: int, largest: int, delay: float) -> None:
        limits = Limits(largest, max_queue_delay_us=int(delay * 1000))
        taken = self.queue.take(self.now, idle, limits)
        expired = [item for item in self.model if item.deadline <= self.now]
        left = sorted(item for item in self.model if item.deadline > self.now)
        assert sorted(taken.expired) == sorted(expired)
        key = taken.batch[0].key if taken.batch else None
        alike = [item for item in left if item.key == key]
        assert taken.batch == alike[: len(taken.batch)], "the batch is the front of its key, in order"
        assert len(taken.batch) <= largest
        if not limits.max_queue_delay_us:
            assert bool(taken.batch) == bool(left), "work-conserving: what waits runs"
            assert taken.retry_at is None
            if left:
                assert taken.batch[0] == left[0], "whose turn it is runs"
                assert len(taken.batch) == min(largest, len(alike), -(-len(left) // idle))
        elif left and not taken.batch:
            assert taken.retry_at is not None
            assert taken.retry_at > self.now
            ripe_at = min(item.committed_at for item in left) + limits.max_queue_delay_us * 1000
            assert taken.retry_at == ripe_at
        self.model = [item for item in left if item not in taken.batch]

    @rule(frontend=st.integers(0, 2))
    def frontend_dies(self, frontend: int) -> None:
        self.queue.drop_frontend(frontend)
        self.model = [item for item in self.model if item.frontend != frontend]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == len(self.model)


TestQueueMachine = QueueMachine.TestCase
