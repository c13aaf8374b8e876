"""Runs a batch and makes its items' answers, so that one that makes the run fail does not fail its neighbours."""

import logging
import time
from collections.abc import Sequence

from service.batching.link import ANSWER, Kind, Status
from service.batching.policy import WaitingItem
from service.engine.instance import Instance
from service.engine.rows import RowTooLarge
from service.engine.session import RunFailed

log = logging.getLogger(__name__)

_KIND, _pack = int(Kind.ANSWER), ANSWER.pack

Answered = tuple[int, bytes]
"""A frontend, and an item's record for it."""


def expire(items: Sequence[WaitingItem], model: int) -> list[Answered]:
    """Answers for items whose deadline passed while they waited."""
    now = time.monotonic_ns()
    return [
        (item.frontend, _pack(_KIND, Status.EXPIRED, model, item.slot, (now - item.committed_at) // 1000, 0, 0, 0, 0))
        for item in items
    ]


def run_batch(instance: Instance, batch: Sequence[WaitingItem], model: int) -> list[Answered]:
    """Run a batch; where it fails, its halves, until the items that make it fail stand alone.

    One item of each batch is marked as its first, so that batches can be counted, not only items.
    """
    taken_at = time.monotonic_ns()
    status = 0
    try:
        instance.run([item.slot for item in batch])
    except RunFailed as error:
        if len(batch) > 1:
            half = len(batch) // 2
            return run_batch(instance, batch[:half], model) + run_batch(instance, batch[half:], model)
        log.error("a run failed on one item: %s", error)
        status = int(Status.TOO_LARGE if isinstance(error, RowTooLarge) else Status.FAILED)
    n, compute_us = len(batch), (time.monotonic_ns() - taken_at) // 1000
    first = batch[0]
    return [
        (
            item.frontend,
            _pack(
                *(_KIND, status, model, item.slot),
                *((taken_at - item.committed_at) // 1000, compute_us, n, item is first, 0),
            ),
        )
        for item in batch
    ]
