"""The repository's changes: as the file system tells of them, and now and then where it does not."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from watchfiles import awatch

_DEBOUNCE_MS = 200


async def changes(repository: Path, next_at: Callable[[float], float | None], rescan_s: float) -> AsyncIterator[None]:
    """Once for each time that something may have changed: when told so, at `next_at(now)`, or after `rescan_s`."""
    told = asyncio.Event()
    watching = asyncio.create_task(_watch(repository, told))
    try:
        while True:
            now = time.monotonic()
            wait_s = min(rescan_s, max(0.0, (next_at(now) or math.inf) - now))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await told.wait()
            told.clear()
            yield
    finally:
        watching.cancel()


async def _watch(repository: Path, told: asyncio.Event) -> None:
    """Network file systems tell nothing, and where the watch cannot be set up the rescan has to do."""
    with contextlib.suppress(OSError, RuntimeError):
        async for _ in awatch(repository, debounce=_DEBOUNCE_MS, recursive=True, ignore_permission_denied=True):
            told.set()
