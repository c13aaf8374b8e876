"""A repository that is a URL, while the service runs: what is wanted is brought into its folder, by a thread.

Where the remote is out of reach, what is there is served, and the log says so.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence

from service.lifecycle.remote_source import RemoteError
from service.settings import Settings

log = logging.getLogger(__name__)

Key = tuple[str, str]


class RemoteRepository:
    """Of `remote.url`; without one it does nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._brought_at = time.monotonic()  # before the start, by remote_start.py

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._brought_at >= self._settings.control.rescan_s

    async def bring(
        self, wanted: Callable[[str, Sequence[str]], Sequence[str]], keep: Collection[Key]
    ) -> dict[Key, str]:
        """What `wanted` says of each model's versions; `keep` is in use. The reasons against those not brought."""
        if self._settings.remote.url is None:
            return {}
        try:
            return await asyncio.to_thread(self._bring, self._settings.remote.url, wanted, keep)
        except (RemoteError, OSError) as error:
            log.error("%s; what is there is served", error)
            return {}
        finally:
            self._brought_at = time.monotonic()

    def _bring(
        self, url: str, wanted: Callable[[str, Sequence[str]], Sequence[str]], keep: Collection[Key]
    ) -> dict[Key, str]:
        from service.lifecycle.remote import open_remote  # an extra, whose library starts threads

        remote = self._settings.remote
        return open_remote(url, remote.cache_dir, remote.max_bytes, remote.timeout_s).refresh(wanted, keep)
