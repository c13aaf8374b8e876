"""Whether a canary is to be taken out of the split: what it answered in the last seconds, held against the others.

    counts of all frontends ──Moment, every second or so──► Window ──oldest and newest──► verdict ──► a reason, or None

No clock and no I/O: the controller passes the time and the counts in. Checked by tests/unit/test_guard.py.
"""

from collections import deque
from typing import NamedTuple

from msgspec import Struct

from service.lifecycle.routing import Guard

_PARTS = 60  # of a window: how many moments of it are kept


class Snapshot(Struct, frozen=True):
    """Counts of one version since it was first served; they only rise.

    answered     requests, with any status
    failed       those with 500 or more
    ran          those that ran and were answered, of which the latency is known
    latency_us   of those, altogether
    compared     items that a shadow compared, this version being the shadow
    disagreed    those whose answers differed
    """

    answered: int = 0
    failed: int = 0
    ran: int = 0
    latency_us: int = 0
    compared: int = 0
    disagreed: int = 0

    def since(self, before: "Snapshot") -> "Snapshot":
        """What was counted in between. Counts that went down began anew, so all of them are since."""
        return self if self.began_after(before) else Snapshot(*(a - b for a, b in _pairs(self, before)))

    def began_after(self, before: "Snapshot") -> bool:
        return any(a < b for a, b in _pairs(self, before))

    def plus(self, other: "Snapshot") -> "Snapshot":
        return Snapshot(*(a + b for a, b in _pairs(self, other)))


def _pairs(a: Snapshot, b: Snapshot) -> list[tuple[int, int]]:
    return [(getattr(a, name), getattr(b, name)) for name in Snapshot.__struct_fields__]


class Moment(Struct, frozen=True):
    """The guarded version, and what else the split names, by version."""

    guarded: Snapshot
    others: dict[str, Snapshot] = {}


class _Kept(NamedTuple):
    at_s: float
    moment: Moment


class Window:
    """Of one guarded version: who moves the alias makes another."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._kept: deque[_Kept] = deque()

    def add(self, now_s: float, moment: Moment) -> str | None:
        """The reason to roll back. `now_s` rises from call to call, of any clock."""
        kept = self._kept
        if kept and _began_after(moment, kept[-1].moment):
            kept.clear()
        # The first is as old as the window or, where there is none yet, the oldest there is.
        while len(kept) > 1 and kept[1].at_s <= now_s - self._guard.window_s:
            kept.popleft()
        if not kept or now_s - kept[-1].at_s >= self._guard.window_s / _PARTS:
            kept.append(_Kept(now_s, moment))
        return verdict(self._guard, kept[0].moment, moment)


def _began_after(now: Moment, before: Moment) -> bool:
    return now.guarded.began_after(before.guarded) or any(
        now.others[version].began_after(snapshot)
        for version, snapshot in before.others.items()
        if version in now.others
    )


def verdict(guard: Guard, before: Moment, now: Moment) -> str | None:
    """Why to roll back, of what was counted between two moments; None: nothing speaks against the version.

    Errors and latency are judged once it has answered `min_requests`, disagreement once as many of its items were
    compared. A mean latency is held against no fewer requests of the others. Versions that were not among the others
    before are not yet.
    """
    guarded = now.guarded.since(before.guarded)
    others = Snapshot()
    for version, snapshot in now.others.items():
        if version in before.others:
            others = others.plus(snapshot.since(before.others[version]))
    if guarded.answered >= guard.min_requests:
        reason = _errors(guard, guarded, others) or _latency(guard, guarded, others)
        if reason is not None:
            return reason
    return _disagreement(guard, guarded) if guarded.compared >= guard.min_requests else None


def _errors(guard: Guard, guarded: Snapshot, others: Snapshot) -> str | None:
    if guard.max_error_rate is None:
        return None
    rate, usual = _share(guarded.failed, guarded.answered), _share(others.failed, others.answered)
    if rate - usual <= guard.max_error_rate:
        return None
    return (
        f"{rate:.2%} of {guarded.answered} requests failed, {usual:.2%} of the others' {others.answered}; "
        f"guard.max_error_rate is {guard.max_error_rate:g} above theirs"
    )


def _latency(guard: Guard, guarded: Snapshot, others: Snapshot) -> str | None:
    if guard.max_latency_ratio is None or min(guarded.ran, others.ran) < max(guard.min_requests, 1):
        return None
    mean_us, usual_us = guarded.latency_us / guarded.ran, others.latency_us / others.ran
    if mean_us <= guard.max_latency_ratio * usual_us:
        return None
    return (
        f"requests took {mean_us / 1000:.2f} ms on average, the others' {usual_us / 1000:.2f} ms; "
        f"guard.max_latency_ratio is {guard.max_latency_ratio:g}"
    )


def _disagreement(guard: Guard, guarded: Snapshot) -> str | None:
    if guard.max_disagreement is None:
        return None
    share = _share(guarded.disagreed, guarded.compared)
    if share <= guard.max_disagreement:
        return None
    return (
        f"answers to {share:.2%} of {guarded.compared} items differed; "
        f"guard.max_disagreement is {guard.max_disagreement:g}"
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
