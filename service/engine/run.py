"""Runs a batch so that an item that makes the run fail does not fail its neighbours."""

import logging
import time
from typing import NamedTuple

from service.batching.link import Status
from service.batching.policy import WaitingItem
from service.engine.instance import Instance
from service.engine.rows import RowTooLarge
from service.engine.session import RunFailed

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """One item's. `first` marks one item of each batch, so that batches can be counted, not only items."""

    item: WaitingItem
    status: Status
    queue_us: int
    compute_us: int
    batch_size: int
    first: bool


def expire(items: list[WaitingItem]) -> list[Result]:
    """Answers for items whose deadline passed while they waited."""
    now = time.monotonic_ns()
    return [Result(item, Status.EXPIRED, (now - item.committed_at) // 1000, 0, 0, False) for item in items]


def run_batch(instance: Instance, batch: list[WaitingItem]) -> list[Result]:
    """Run a batch; where it fails, its halves, until the items that make it fail stand alone."""
    taken_at = time.monotonic_ns()
    status = Status.OK
    try:
        instance.run([item.slot for item in batch])
    except RunFailed as error:
        if len(batch) > 1:
            half = len(batch) // 2
            return run_batch(instance, batch[:half]) + run_batch(instance, batch[half:])
        log.error("a run failed on one item: %s", error)
        status = Status.TOO_LARGE if isinstance(error, RowTooLarge) else Status.FAILED
    compute_us = (time.monotonic_ns() - taken_at) // 1000
    return [
        Result(item, status, (taken_at - item.committed_at) // 1000, compute_us, len(batch), i == 0)
        for i, item in enumerate(batch)
    ]
