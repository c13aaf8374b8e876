"""Canaries that are taken back: a guard's window for each model that has one, fed with the counts of all frontends."""

from service.lifecycle.guard import Moment, Snapshot, Window
from service.lifecycle.routing import Guard, Routing, resolve
from service.metrics import SharedCounts


class Guards:
    def __init__(self, counts: SharedCounts) -> None:
        self._counts = counts
        self._windows: dict[str, tuple[Guard, str, Window]] = {}  # with the version that it looks at

    def look(self, routings: dict[str, Routing], now_s: float) -> dict[str, str]:
        """The reason to roll back, by model. To be called every second or so."""
        guarded = {name: routing for name, routing in routings.items() if _is_at_work(routing)}
        self._windows = {name: window for name, window in self._windows.items() if name in guarded}
        if not guarded:
            return {}
        snapshots = self._counts.judged()
        reasons = {}
        for name, routing in guarded.items():
            assert routing.guard is not None, "bug: guarded without a guard"
            version = routing.aliases[routing.guard.alias]
            others = {resolve(routing, target) for target in routing.split} - {version}
            moment = Moment(
                snapshots.get((name, version), Snapshot()),
                {other: snapshots.get((name, other), Snapshot()) for other in others if other},
            )
            if (reason := self._window(name, routing.guard, version).add(now_s, moment)) is not None:
                reasons[name] = reason
        return reasons

    def _window(self, name: str, guard: Guard, version: str) -> Window:
        kept = self._windows.get(name)
        if kept is None or kept[:2] != (guard, version):
            kept = self._windows[name] = guard, version, Window(guard)
        return kept[2]


def _is_at_work(routing: Routing) -> bool:
    guard = routing.guard
    if guard is None or guard.alias not in routing.aliases:
        return False
    version = routing.aliases[guard.alias]
    return any(weight and resolve(routing, target) == version for target, weight in routing.split.items())
