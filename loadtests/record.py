"""What a measurement leaves behind: a folder with every number and a page that says what they say.

    <folder>/record.json   machine, versions, commit, command, and the result of every single run
    <folder>/README.md     medians and spread from that, the targets, and the command that repeats it (page.py)

A record is never overwritten: measure again under another name.
"""

import json
import statistics
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from loadtests.bare import Bare
from loadtests.machine import Machine
from loadtests.server import BenchError
from loadtests.sides import Body, Peer
from loadtests.wrk import Load

RECORDS = Path(__file__).parent / "records"

When = Literal["before", "after"]


class BareRun(Struct, frozen=True):
    when: When
    result: Bare


class Run(Struct, frozen=True):
    """One run of wrk. `server_cpu_seconds` covers all processes of the server."""

    round: int
    clients: int
    result: Load
    server_cpu_seconds: float


class ServerResult(Struct, frozen=True):
    """One server for one workload.

    fault         why it was not measured, or not to the end; empty for one that was
    idle_cores    cores it used while nobody asked it anything
    memory_mb     proportional set size of all its processes, after the load
    """

    name: str
    peer: Peer
    setup: str
    fault: str = ""
    checked_answers: int = 0
    idle_cores: float = 0.0
    memory_mb: float = 0.0
    processes: int = 0
    runs: list[Run] = []


class WorkloadResult(Struct, frozen=True):
    """One file and one kind of body. `bare` is empty where another workload has measured the same file."""

    name: str
    model: str
    body: Body
    sha256: str
    bare: list[BareRun]
    servers: list[ServerResult]


class Starts(Struct, frozen=True):
    """Seconds from the start of a server's process to its first right answer, start by start."""

    server: str
    peer: Peer
    workload: str
    seconds: list[float]


class Record(Struct, frozen=True, kw_only=True):
    """`peers` are their packages; `absent` names the peers that were not there."""

    schema: Literal[2] = 2
    created_at: str
    command: str
    commit: str
    machine: Machine
    packages: dict[str, str]
    peers: dict[str, dict[str, str]]
    absent: list[str]
    seconds: float
    rounds: int
    workloads: list[WorkloadResult]
    starts: list[Starts]


class Spread(Struct, frozen=True):
    median: float
    low: float
    high: float


class Row(Struct, frozen=True):
    """All rounds of one server with one number of clients."""

    server: str
    peer: Peer
    clients: int
    rate: Spread
    p50_ms: Spread
    p99_ms: Spread
    server_us: Spread
    client_us: Spread
    failed: int


class BareRow(Struct, frozen=True):
    """One batch size: items/s before and after the served runs, their mean, and the mean CPU time of an item."""

    batch: int
    before: float
    after: float
    rate: float
    item_us: float

    @property
    def drift(self) -> float:
        """How far apart before and after are: what the machine alone changed."""
        return abs(self.after - self.before) / self.rate


def new_folder(out: Path | None, created_at: datetime, name: str) -> Path:
    """Where a record goes: `out`, or by date and name. Raises BenchError when there is one already."""
    folder = out or RECORDS / f"{created_at:%Y-%m-%d}_{name}"
    require_new(folder)
    return folder


def require_new(folder: Path) -> None:
    """Raises BenchError where there is a record already."""
    if folder.exists():
        raise BenchError(f"{folder} exists; a record is never overwritten: choose another --name or --out")


def write(folder: Path, record: Struct, page: str) -> None:
    require_new(folder)
    folder.mkdir(parents=True)
    text = json.dumps(msgspec.to_builtins(record), indent=1)
    (folder / "record.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(page, encoding="utf-8")


def rows(workload: WorkloadResult) -> list[Row]:
    """By number of clients, then by server."""
    numbers = sorted({run.clients for server in workload.servers for run in server.runs})
    return [_row(server, clients) for clients in numbers for server in workload.servers if _runs(server, clients)]


def bare_rows(workload: WorkloadResult) -> list[BareRow]:
    found = []
    for batch in sorted({run.result.batch for run in workload.bare}):
        both = {run.when: run.result for run in workload.bare if run.result.batch == batch}
        before, after = (both[when].items / both[when].seconds for when in ("before", "after"))
        item_us = statistics.mean(1e6 * result.cpu_seconds / result.items for result in both.values())
        found.append(BareRow(batch, before, after, (before + after) / 2, item_us))
    return found


def _row(server: ServerResult, clients: int) -> Row:
    runs = _runs(server, clients)
    return Row(
        server=server.name,
        peer=server.peer,
        clients=clients,
        rate=_spread(run.result.requests / run.result.seconds for run in runs),
        p50_ms=_spread(run.result.p50_ms for run in runs),
        p99_ms=_spread(run.result.p99_ms for run in runs),
        server_us=_spread(1e6 * run.server_cpu_seconds / max(1, run.result.requests) for run in runs),
        client_us=_spread(1e6 * run.result.client_cpu_seconds / max(1, run.result.requests) for run in runs),
        failed=sum(failures(run) for run in runs),
    )


def failures(run: Run) -> int:
    return run.result.non_2xx + run.result.socket_errors


def _runs(server: ServerResult, clients: int) -> list[Run]:
    return [run for run in server.runs if run.clients == clients]


def _spread(values: Iterator[float]) -> Spread:
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))
