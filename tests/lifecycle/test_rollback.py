"""A canary that does worse than the others is taken out of the split by the controller, and says why."""

from pathlib import Path

from service.lifecycle.messages import MoveAlias, SetGuard, SetSplit
from service.lifecycle.routing import Guard
from service.metrics import RequestMetrics
from tests.lifecycle.conftest import Lifecycle, Start, write_version


async def with_canary(lifecycle: Lifecycle) -> None:
    await lifecycle.ask(MoveAlias("times", "stable", "1"))
    await lifecycle.ask(MoveAlias("times", "canary", "2"))
    await lifecycle.ask(SetSplit("times", {"stable": 50, "canary": 50}))
    await lifecycle.ask(SetGuard("times", Guard(min_requests=20, max_error_rate=0.05)))


def answered(lifecycle: Lifecycle, version: str, ok: int, failed: int) -> None:
    """As a frontend counts it."""
    counts = RequestMetrics(lifecycle.counts, 0).of(lifecycle.engines.find("times", version).facts)
    for status in [200] * ok + [500] * failed:
        counts.request_answered(status, 900, (5, 800, 1) if status == 200 else None)


async def test_a_canary_that_fails_is_rolled_back(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 100)
    async with start(root) as lifecycle:
        await with_canary(lifecycle)
        routing = lifecycle.controls.table.routing
        assert routing["times"].rolled_back == ""
        # The window begins at the controller's first look, so it goes on until that was.
        while not lifecycle.controls.table.routing["times"].rolled_back:
            answered(lifecycle, "1", 30, 0)
            answered(lifecycle, "2", 20, 10)
            await lifecycle.pause()
        after = lifecycle.controls.table.routing["times"]
        assert "canary" not in after.split
        assert after.aliases["canary"] == "2"
        assert {await lifecycle.predict("times", 3) for _ in range(20)} == {30}


async def test_a_canary_that_does_as_well_as_the_others_stays(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 100)
    async with start(root) as lifecycle:
        await with_canary(lifecycle)
        for _ in range(25):  # over several looks
            answered(lifecycle, "1", 28, 2)
            answered(lifecycle, "2", 28, 2)
            await lifecycle.pause()
        routing = lifecycle.controls.table.routing["times"]
        assert routing.rolled_back == ""
        assert routing.split == {"stable": 50, "canary": 50}
