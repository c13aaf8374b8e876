"""The speed this project sets itself, as ratios to the peers and to bare onnxruntime within one record.

A figure is the median over the rounds. Of a peer that ran in several settings the better one counts: the most
requests, the shortest time, the least memory. What a record does not hold is said to be missing, never passed over.
Checked by tests/unit/test_records.py.
"""

import statistics
from collections.abc import Callable, Iterator

from msgspec import Struct

from loadtests.record import Record, Row, WorkloadResult, bare_rows, rows
from loadtests.sides import Peer
from loadtests.tables import digits, percent

_Pick = Callable[[Row], float]


class Target(Struct, frozen=True):
    """`measured` is None where the record lacks a figure, which `basis` then names."""

    what: str
    limit: float
    at_least: bool
    measured: float | None
    basis: str

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


class _Missing(Exception):
    """The message names what the record does not hold."""


def targets(record: Record) -> list[Target]:
    return list(_targets(record))


def _targets(record: Record) -> Iterator[Target]:
    rate, p50, cpu = (lambda row: row.rate.median), (lambda row: row.p50_ms.median), (lambda row: row.server_us.median)
    for clients in (64, 256):
        yield _against(record, "tiny", clients, "requests/s over mosec's", rate, "mosec", 1.3)
        yield _against(record, "tiny", clients, "CPU per request over mosec's", cpu, "mosec", 1.0, at_least=False)
    yield _against(record, "mnist", 64, "requests/s over mosec's", rate, "mosec", 1.1)
    yield _of_bare(record, "mnist", 64, 0.85)
    for name in ("tiny", "mnist"):
        yield _against(record, name, 1, "p50 over FastAPI's", p50, "fastapi", 1.0, at_least=False)
    yield _of_bare(record, "cifar", 64, 0.97)
    yield _against(record, "mnist-json", 64, "requests/s over mosec's", rate, "mosec", 2.0)
    for name in ("tiny", "mnist", "cifar", "mnist-json"):
        yield _tail(record, name, 64)
    yield _first_answer(record)
    yield _memory(record)


def _against(
    record: Record, name: str, clients: int, what: str, pick: _Pick, peer: Peer, limit: float, *, at_least: bool = True
) -> Target:
    def measure() -> tuple[float, str]:
        ours = pick(_of(record, name, clients, "shoal")[0])
        theirs = _of(record, name, clients, peer)
        best = (max if at_least else min)(theirs, key=pick)
        return ours / pick(best), f"{digits(ours)} over {digits(pick(best))} of {best.server}"

    return _target(f"{name}, {_count(clients)}: {what}", limit, at_least, measure)


def _of_bare(record: Record, name: str, clients: int, limit: float) -> Target:
    def measure() -> tuple[float, str]:
        ours = _of(record, name, clients, "shoal")[0].rate.median
        found = bare_rows(_workload(record, name))
        if not found:
            raise _Missing("no bare onnxruntime")
        best = max(found, key=lambda row: row.rate)
        basis = f"{digits(ours)} over {digits(best.rate)} in batches of {best.batch}"
        return ours / best.rate, f"{basis} ({percent(best.drift)} apart before and after)"

    return _target(f"{name}, {_count(clients)}: requests/s over bare onnxruntime's items/s", limit, True, measure)


def _tail(record: Record, name: str, clients: int) -> Target:
    def measure() -> tuple[float, str]:
        row = _of(record, name, clients, "shoal")[0]
        return row.p99_ms.median / row.p50_ms.median, f"{digits(row.p99_ms.median)} over {digits(row.p50_ms.median)} ms"

    return _target(f"{name}, {_count(clients)}: p99 over p50", 2.0, False, measure)


def _first_answer(record: Record) -> Target:
    def measure() -> tuple[float, str]:
        for starts in record.starts:
            if starts.peer == "shoal":
                return statistics.median(starts.seconds), f"median of {len(starts.seconds)} starts"
        raise _Missing("no start was timed")

    return _target("seconds from the start of serve to the first right answer", 1.0, False, measure)


def _memory(record: Record) -> Target:
    def measure() -> tuple[float, str]:
        servers = [server for server in _workload(record, "mnist").servers if server.memory_mb]
        ours = [server for server in servers if server.peer == "shoal"]
        theirs = [server for server in servers if server.peer == "mosec"]
        if not ours or not theirs:
            raise _Missing("no memory of mosec" if ours else "no memory of Shoal")
        least = min(theirs, key=lambda server: server.memory_mb)
        measured = ours[0].memory_mb / least.memory_mb
        return measured, f"{ours[0].memory_mb:,.0f} over {least.memory_mb:,.0f} MB of {least.name}"

    return _target("mnist: memory (PSS) over mosec's", 1.0, False, measure)


def _target(what: str, limit: float, at_least: bool, measure: Callable[[], tuple[float, str]]) -> Target:
    try:
        measured, basis = measure()
    except _Missing as missing:
        return Target(what, limit, at_least, None, str(missing))
    return Target(what, limit, at_least, measured, basis)


def _of(record: Record, name: str, clients: int, peer: Peer) -> list[Row]:
    """All settings of one peer. Raises _Missing."""
    found = [row for row in rows(_workload(record, name)) if row.clients == clients and row.peer == peer]
    if not found:
        raise _Missing(f"no run of {peer} with {_count(clients)}")
    return found


def _workload(record: Record, name: str) -> WorkloadResult:
    for workload in record.workloads:
        if workload.name == name:
            return workload
    raise _Missing(f"{name} was not measured")


def _count(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"
