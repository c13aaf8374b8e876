"""Waiting for claims in tests."""

import asyncio
import time
from typing import NamedTuple

from service.batching.claim import DEFAULT_PRIORITY, Claim


class Timings(NamedTuple):
    """A claim's, by name."""

    queue_us: int
    compute_us: int
    batch_size: int


def deadline_in(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


async def answered(claim: Claim, deadline: int, priority: int = DEFAULT_PRIORITY) -> Timings:
    """Commit, and wait. Raises what became of it."""
    done: asyncio.Future[Claim] = asyncio.get_running_loop().create_future()
    claim.deadline = deadline
    claim.priority = priority
    claim.run(done.set_result)
    await done
    if claim.error is not None:
        raise claim.error
    return Timings(*claim.timings)


class Wait:
    """A committed claim that is waited for without a task, with what a test asks of a future."""

    def __init__(self, claim: Claim, deadline: int) -> None:
        self._claim = claim
        self._done = False
        claim.deadline = deadline
        claim.run(self._answered)

    def done(self) -> bool:
        return self._done

    def exception(self) -> Exception | None:
        return self._claim.error

    def _answered(self, claim: Claim) -> None:
        assert not self._done, "answered twice"
        assert claim is self._claim
        self._done = True
