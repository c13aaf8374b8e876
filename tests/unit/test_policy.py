"""The batching rule as tables: what waits, who is idle, what runs."""

import pytest

from service.batching.policy import Limits, WaitingItem, WaitingQueue, batch_size

FAR = 10**18


def item(slot: int, priority: int = 1, deadline: int = FAR, committed_at: int = 0, key: str = "") -> WaitingItem:
    return WaitingItem(priority, deadline, slot, slot, frontend=0, committed_at=committed_at, key=key)


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
    assert batch_size(waiting, idle, Limits(largest)) == expected
    taken = queue_of(*(item(slot) for slot in range(waiting))).take(0, idle, Limits(largest))
    assert [each.slot for each in taken.batch] == list(range(expected))


@pytest.mark.parametrize(
    ("waiting", "idle", "expected"),
    [(1, 2, 4), (4, 2, 4), (8, 2, 4), (9, 2, 5), (100, 2, 16)],
)
def test_a_share_is_not_smaller_than_what_is_worth_waking_another_instance_for(
    waiting: int, idle: int, expected: int
) -> None:
    assert batch_size(waiting, idle, Limits(16, smallest_share=4)) == expected


def test_fewer_items_than_the_smallest_share_run_at_once() -> None:
    taken = queue_of(item(0), item(1), item(2)).take(0, 2, Limits(16, smallest_share=4))
    assert [each.slot for each in taken.batch] == [0, 1, 2]


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


def keyed(keys: str, **more: int) -> list[WaitingItem]:
    """Items 0, 1, … of these keys, one letter each."""
    return [item(slot, key=key, **more) for slot, key in enumerate(keys)]


@pytest.mark.parametrize(
    ("keys", "idle", "largest", "expected"),
    [
        ("abab", 1, 8, ["02", "13"]),  # the first item's key, then the next one's
        ("aabaa", 1, 2, ["01", "2", "34"]),  # b came third and waits for one batch, not for all of a
        ("abbbbb", 1, 8, ["0", "12345"]),  # a key with one item does not wait for company
        ("aaaab", 2, 8, ["012", "3", "4"]),  # the share is of everything that waits
        ("abcdef", 2, 8, ["0", "1", "2", "3", "4", "5"]),
    ],
)
def test_only_items_of_one_key_run_together(keys: str, idle: int, largest: int, expected: list[str]) -> None:
    queue = queue_of(*keyed(keys))
    batches = []
    while len(queue):
        batches.append("".join(str(each.slot) for each in queue.take(0, idle, Limits(largest)).batch))
    assert batches == expected


def test_priority_goes_before_company() -> None:
    queue = queue_of(*keyed("aaa"), item(3, priority=0, key="b"), item(4, key="b"))
    assert [each.slot for each in queue.take(0, 1, Limits(8)).batch] == [3, 4]


def test_an_item_of_a_rare_key_is_taken_while_others_keep_coming() -> None:
    queue = queue_of(item(0, key="a"), item(1, key="rare"))
    taken: list[int] = []
    for slot in range(2, 100):
        queue.push(item(slot, key="a"))
        taken += [each.slot for each in queue.take(0, 1, Limits(4)).batch]
        if 1 in taken:
            break
    assert taken == [0, 2, 1]


def test_a_queue_delay_is_kept_for_each_key() -> None:
    limits = Limits(max_batch_size=2, max_queue_delay_us=200)
    queue = queue_of(
        *(item(slot, committed_at=100_000 + slot, key=key) for slot, key in enumerate("abcb")),
    )
    taken = queue.take(150_000, 1, limits)
    assert [each.slot for each in taken.batch] == [1, 3], "b has a full batch"
    assert queue.take(150_000, 1, limits).retry_at == 300_000, "a came first"
    assert [each.slot for each in queue.take(300_000, 1, limits).batch] == [0]
    assert queue.take(300_000, 1, limits).retry_at == 300_002


def test_expired_items_leave_from_every_key() -> None:
    queue = queue_of(*(item(slot, deadline=10 * (slot + 1), key=key) for slot, key in enumerate("abcab")))
    assert [each.slot for each in queue.take(30, 1, Limits(8)).expired] == [0, 1, 2]
    assert len(queue) == 1, "3 ran"
    queue.drop_frontend(0)
    assert not len(queue)
