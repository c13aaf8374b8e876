"""Awaiting claims in tests, which run in tasks."""

from service.batching.claim import Claim, Timings
from service.frontend.drive import Drive, driven


async def answered(claim: Claim) -> Timings:
    """What `await claim` gives, or raises, where `Drive` runs it."""

    async def wait() -> Timings:
        return await claim

    return await driven(wait())


class Wait:
    """A claim that is waited for without a task, with what a test asks of a future."""

    def __init__(self, claim: Claim) -> None:
        async def wait() -> Timings:
            return await claim

        self._outcome: Timings | Exception | None = None
        self._drive = Drive(wait(), self._ended)
        self._drive.go_on()

    def done(self) -> bool:
        return self._outcome is not None

    def exception(self) -> Exception | None:
        return self._outcome if isinstance(self._outcome, Exception) else None

    def cancel(self) -> None:
        self._drive.close()

    def _ended(self, outcome: Timings | Exception) -> None:
        assert self._outcome is None, "answered twice"
        self._outcome = outcome
