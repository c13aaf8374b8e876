"""Shadow traffic: what one version has answered, another is asked again, and the two answers are compared.

    a request is done             ──copy────► its rows and outputs are kept, and it is answered
    some milliseconds later       ──repeat──► slots of the shadow version, committed behind everything else that waits
    the shadow has answered       ──compare─► counted; large outputs in a thread

The requests of those milliseconds are repeated together: in one batch they take less of the machine than one by one.
No client waits for any of it. A shadow takes no slot of the half that is left to its version's own clients, gives up
after a few seconds, and there are never more than `_MOST_UNDER_WAY` of them in a frontend: what is beyond is skipped,
and counted. Neither are these requests of the shadow version, though their items and batches are among its own.
Checked by tests/integration/test_shadow.py.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from service.batching.arena import Region, Rows, ShapedRegion, SlotIndex
from service.batching.claim import BACKGROUND_PRIORITY, Claim, ModelObserver, ServedModel, SkipReason
from service.batching.engines import Engines
from service.batching.link import ModelFacts
from service.errors import DeadlineExceeded, EngineDied
from service.frontend.comparison import Compared, comparable, compare
from service.frontend.http import Copy
from service.frontend.prepared import claim_rows

log = logging.getLogger(__name__)

_MOST_UNDER_WAY = 64  # requests of one frontend
_TOGETHER_S = 0.01
_PATIENCE_NS = 5_000_000_000  # a version that goes waits for the shadow's slots too
_INLINE_BYTES = 16_384  # of outputs, compared in the event loop: some 80 us of it


class _Target(NamedTuple):
    version: str
    sample: float


class Shadows:
    """Of one frontend, in its event loop's thread. `targets` by name of the model: empty where nothing is repeated."""

    def __init__(self, engines: Engines) -> None:
        self.targets: dict[str, _Target] = {}
        self._engines = engines
        self._waiting: list[Copy] = []
        self._to_do: deque[Callable[[], None]] = deque()
        self._under_way = 0  # of those that no longer wait
        self._logged: set[tuple[str, str, str]] = set()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="shoal-comparison")
        engines.watchers.append(self.refresh)

    def refresh(self) -> None:
        """After each change of the engines or their table."""
        self.targets = {
            name: _Target(routing.aliases.get(routing.shadow.target, routing.shadow.target), routing.shadow.sample)
            for name, routing in self._engines.table.routing.items()
            if routing.shadow is not None
        }

    def copy(self, claim: Claim) -> Copy | None:
        """Of a request that is done and not released yet. None: it is not repeated."""
        facts, n = claim.model.facts, len(claim.slots)
        target = self.targets.get(facts.name)
        if target is None or target.version == facts.version or n == 0:
            return None
        if random.random() >= target.sample or self._find(facts, target.version, n) is None:  # noqa: S311
            return None
        model, slots = claim.model, claim.slots
        inputs = _copied(model.inputs, model.shaped_inputs, slots)
        return Copy(facts, target.version, n, inputs, _copied(model.outputs, model.shaped_outputs, slots))

    def repeat_soon(self, copy: Copy) -> None:
        """Once the answer that is about to be written is written, and a little later."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(_TOGETHER_S, self._repeat_all)
        self._waiting.append(copy)

    def _find(self, facts: ModelFacts, version: str, n: int) -> ServedModel | None:
        """The shadow, where it is there and can take `n` items more."""
        shadow = self._engines.known(facts.name, version)
        if shadow is not None and (reason := self._reason_to_skip(facts, shadow, n)) is not None:
            shadow.observer.shadow_skipped(reason, n)
            return None
        return shadow

    def _reason_to_skip(self, facts: ModelFacts, shadow: ServedModel, n: int) -> SkipReason | None:
        if not comparable(facts, shadow.facts):
            versions = facts.name, facts.version, shadow.facts.version
            if versions not in self._logged:
                self._logged.add(versions)
                log.warning("model %s: versions %s and %s have other tensors; no shadow compares them", *versions)
            return "incomparable"
        if len(self._waiting) + self._under_way >= _MOST_UNDER_WAY:
            return "under_way"
        return "slots" if n > len(shadow.free) - shadow.capacity // 2 else None

    def _repeat_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for copy in waiting:
            self._do_later(partial(self._repeat, copy))

    def _repeat(self, copy: Copy) -> None:
        shadow = self._find(copy.facts, copy.target, copy.n_items)  # much may have happened in between
        if shadow is None:
            return
        claim = claim_rows(shadow, copy.n_items, copy.inputs, time.monotonic_ns() + _PATIENCE_NS)
        claim.priority = BACKGROUND_PRIORITY
        self._under_way += 1
        claim.run(lambda claim: self._do_later(partial(self._answered, copy, claim)))

    def _do_later(self, work: Callable[[], None]) -> None:
        """One a turn of the event loop, so that what clients send and wait for gets its turn in between."""
        if not self._to_do:
            asyncio.get_running_loop().call_soon(self._do_next)
        self._to_do.append(work)

    def _do_next(self) -> None:
        work = self._to_do.popleft()
        if self._to_do:
            asyncio.get_running_loop().call_soon(self._do_next)
        work()

    def _answered(self, copy: Copy, claim: Claim) -> None:
        self._under_way -= 1
        shadow, n = claim.model, copy.n_items
        with claim:
            if isinstance(claim.error, (DeadlineExceeded, EngineDied)):
                shadow.observer.shadow_skipped("unanswered", n)
                return
            if claim.error is not None:  # it fails where the other did not: no item has the same answer
                shadow.observer.shadow_compared(n, n, [])
                return
            outputs = _copied(shadow.outputs, shadow.shaped_outputs, claim.slots)
        work = partial(compare, copy.facts, shadow.facts, n, copy.outputs, outputs)
        if _size_bytes(outputs) <= _INLINE_BYTES:
            shadow.observer.shadow_compared(*work())
        else:
            comparing = asyncio.get_running_loop().run_in_executor(self._threads, work)
            comparing.add_done_callback(partial(_count, shadow.observer))


def _count(observer: ModelObserver, comparing: "asyncio.Future[Compared]") -> None:
    observer.shadow_compared(*comparing.result())


def _copied(fixed: dict[str, Region], shaped: dict[str, ShapedRegion], slots: list[SlotIndex]) -> dict[str, Rows]:
    rows: dict[str, Rows] = {name: region.read(slots) for name, region in fixed.items()}
    for name, region in shaped.items():
        rows[name] = region.read(slots)
    return rows


def _size_bytes(outputs: dict[str, Rows]) -> int:
    return sum(sum(len(row.data) for row in rows) if isinstance(rows, list) else len(rows) for rows in outputs.values())
