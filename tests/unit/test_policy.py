"""The batching rule as tables: what waits, who is idle, what runs."""

import pytest

from service.batching.policy import Limits, WaitingItem, WaitingQueue, batch_size

FAR = 10**18


def item(slot: int, priority: int = 1, deadline: int = FAR, committed_at: int = 0) -> WaitingItem:
    return WaitingItem(priority, deadline, slot, slot, frontend=0, committed_at=committed_at)


def queue_of(*items: WaitingItem) -> WaitingQueue:
    queue = WaitingQueue()
    for each in items:
        queue.push(each)
    return queue


@pytest.mark.parametrize(
    ("waiting", "idle", "largest", "expected"),
    [
        (1, 1, 64, 1),  # a lone client never waits for company
        (1, 8, 64, 1),
        (10, 1, 64, 10),
        (10, 2, 64, 5),  # a fair share, so that the other instance does not stand still
        (11, 2, 64, 6),
        (200, 2, 64, 64),  # never more than the largest batch
        (64, 2, 16, 16),
        (5, 2, 1, 1),
    ],
)
def test_an_idle_instance_takes_its_fair_share(waiting: int, idle: int, largest: int, expected: int) -> None:
    assert batch_size(waiting, idle, largest) == expected
    taken = queue_of(*(item(slot) for slot in range(waiting))).take(0, idle, Limits(largest))
    assert [each.slot for each in taken.batch] == list(range(expected))


def test_priority_goes_before_deadline_and_deadline_before_arrival() -> None:
    queue = queue_of(item(0), item(1, deadline=500), item(2, priority=2, deadline=1), item(3, priority=0), item(4))
    order = [queue.take(0, 1, Limits(1)).batch[0].slot for _ in range(5)]
    assert order == [3, 1, 0, 4, 2]


def test_expired_items_are_returned_and_not_run() -> None:
    queue = queue_of(item(0, deadline=100), item(1, deadline=101), item(2))
    taken = queue.take(100, 1, Limits(8))
    assert [each.slot for each in taken.expired] == [0]
    assert [each.slot for each in taken.batch] == [1, 2]


def test_items_expire_in_later_takes_too() -> None:
    queue = queue_of(*(item(slot, deadline=10 * (slot + 1)) for slot in range(4)))
    assert [each.slot for each in queue.take(10, 4, Limits(1)).expired] == [0]
    assert [each.slot for each in queue.take(35, 4, Limits(1)).expired] == [2]  # 1 ran before


@pytest.mark.parametrize(
    ("now_us", "waiting", "expected_batch", "expected_retry_us"),
    [
        (150, 3, 0, 300),  # the oldest came at 100 us and may wait 200
        (300, 3, 3, None),  # it has waited long enough: everything goes, not only a share
        (150, 8, 4, None),  # a full batch waits for nobody
    ],
)
def test_a_queue_delay_holds_small_batches_back(
    now_us: int, waiting: int, expected_batch: int, expected_retry_us: int | None
) -> None:
    queue = queue_of(*(item(slot, committed_at=100_000 + slot) for slot in range(waiting)))
    taken = queue.take(now_us * 1000, 2, Limits(max_batch_size=8, max_queue_delay_us=200))
    assert len(taken.batch) == expected_batch
    assert taken.retry_at == (None if expected_retry_us is None else expected_retry_us * 1000)


def test_a_dead_frontends_items_are_forgotten() -> None:
    queue = queue_of(*(WaitingItem(1, FAR, i, i, frontend=i % 2, committed_at=0) for i in range(10)))
    queue.drop_frontend(0)
    assert [each.slot for each in queue.take(0, 1, Limits(64)).batch] == [1, 3, 5, 7, 9]
