"""One workload, all servers: started, checked, and asked in turn, round after round.

    1  start every server
    2  compare 50 answers of each with bare onnxruntime on the same file
    3  warm each, then see that none computes while nobody asks
    4  run bare onnxruntime in batches of 1, 8 and 64, one process a core
    5  for each round and number of clients, one run of wrk for each server, in an order that turns with the round
    6  memory and processes of each, then bare onnxruntime again: what changed between 4 and 6 is the machine

Only one server has work at any time. A peer that fails is recorded with its fault; where ours fails, all ends.
"""

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct, convert
from msgspec.structs import replace

from loadtests import bare, processes, wrk
from loadtests.check import ANSWERS, answers_rightly, check
from loadtests.record import BareRun, Run, ServerResult, Starts, When, WorkloadResult, failures
from loadtests.server import BenchError, Server, free_port, running
from loadtests.sides import CONTENT_TYPE, Body, Peer, Side, sides
from loadtests.tables import digits
from models.manifest import digest_file

WARM_CLIENTS, WARM_S = 64, 1
_IDLE_S = 1.0


class Workload(Struct, frozen=True):
    """`model` is <repository>/<name>/<version>/model.onnx. `bare`: whether bare onnxruntime runs beside it."""

    name: str
    model: Path
    body: Body
    clients: tuple[int, ...]
    bare: bool


class Plan(Struct, frozen=True):
    """What holds for all workloads. `flags` are for our server."""

    seconds: int
    rounds: int
    cores: int
    flags: tuple[str, ...]
    peers: tuple[Peer, ...]


class Case(Struct, frozen=True):
    """A workload's rows, and the outputs for the first of them."""

    rows: bare.Array
    expected: dict[str, bare.Array]


class _Entry(Struct):
    """A server that takes part. It stays in the record when it fails, without being asked again."""

    side: Side
    server: Server
    bodies: list[bytes]
    result: ServerResult

    def send(self, clients: int, seconds: int) -> wrk.Load:
        url = f"http://127.0.0.1:{self.server.port}{self.side.path}"
        return wrk.send(url, self.bodies, CONTENT_TYPE[self.side.body], clients, seconds)


def measure(workload: Workload, plan: Plan) -> WorkloadResult:
    """Raises BenchError where ours fails."""
    case = case_of(workload.model)
    print(f"\n{workload.name}", flush=True)
    bare_runs: list[BareRun] = []
    with contextlib.ExitStack() as stack:
        entries, failed = _start(stack, workload, plan, case)
        _attempt(entries, _warm)
        _watch_idle(entries)
        if workload.bare:
            bare_runs += _run_bare(workload, case, plan, "before")
        for number in range(1, plan.rounds + 1):
            for clients in workload.clients:
                _attempt(_turned(entries, number), partial(_run, number=number, clients=clients, plan=plan))
        _attempt(entries, _weigh)
        if workload.bare:
            bare_runs += _run_bare(workload, case, plan, "after")
    return WorkloadResult(
        name=workload.name,
        model=workload.model.parents[1].name,
        body=workload.body,
        sha256=digest_file(workload.model).sha256,
        bare=bare_runs,
        servers=[entry.result for entry in entries] + failed,
    )


def time_starts(workload: Workload, plan: Plan, times: int) -> list[Starts]:
    """Every server in turn, alone on the machine, `times` times; those that fail are left out."""
    case = case_of(workload.model)
    seconds: dict[str, list[float]] = {}
    found = sides(workload.model, workload.body, plan.cores, plan.flags, plan.peers)
    for _ in range(times):
        for side in found:
            with contextlib.suppress(BenchError), running_side(side, case) as server:
                seconds.setdefault(side.name, []).append(server.first_answer_s)
    return [Starts(side.name, side.peer, workload.name, seconds[side.name]) for side in found if seconds.get(side.name)]


def case_of(model: Path) -> Case:
    rows = bare.rows_for(model)
    return Case(rows, bare.answers(model, rows[:ANSWERS]))


def running_side(side: Side, case: Case) -> contextlib.AbstractContextManager[Server]:
    """The server, once its first answer is right. Raises BenchError."""
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in side.command]
    return running(
        command, side.environment, lambda port: answers_rightly(side, port, case.rows[0], case.expected), port
    )


def _start(
    stack: contextlib.ExitStack, workload: Workload, plan: Plan, case: Case
) -> tuple[list[_Entry], list[ServerResult]]:
    """Those whose answers are right, and those that failed."""
    entries, failed = [], []
    for side in sides(workload.model, workload.body, plan.cores, plan.flags, plan.peers):
        result = ServerResult(side.name, side.peer, side.setup)
        try:
            server = stack.enter_context(running_side(side, case))
            checked = check(side, server.port, case.rows, case.expected)
            if side.peer == "shoal":
                result = replace(result, setup=f"{side.setup}; {workload.name}: {_chosen(server, workload)}")
        except BenchError as error:
            failed.append(_failed(result, error))
            continue
        print(f"  {side.name:<16} {checked} answers are those of bare onnxruntime", flush=True)
        bodies = [side.write(row) for row in case.rows]
        entries.append(_Entry(side, server, bodies, replace(result, checked_answers=checked)))
    return entries, failed


def _turned(entries: list[_Entry], number: int) -> list[_Entry]:
    """Another first one each round, so that none always follows the same."""
    at = number % max(1, len(entries))
    return entries[at:] + entries[:at]


def _attempt(entries: Sequence[_Entry], step: Callable[[_Entry], None]) -> None:
    """Take a step with each that has not failed."""
    for entry in entries:
        if not entry.result.fault:
            try:
                step(entry)
            except BenchError as error:
                entry.result = _failed(entry.result, error)


def _failed(result: ServerResult, error: BenchError) -> ServerResult:
    """Raises the error again where the server is ours."""
    if result.peer == "shoal":
        raise error
    print(f"  {result.name:<16} FAILED: {error}", flush=True)
    return replace(result, fault=str(error))


def _warm(entry: _Entry) -> None:
    """Sockets, caches, what Python specialises."""
    entry.send(WARM_CLIENTS, WARM_S)
    entry.server.settle()


def _watch_idle(entries: Sequence[_Entry]) -> None:
    """All at once: none has anything to do."""
    before = [entry.server.cpu_seconds() for entry in entries]
    time.sleep(_IDLE_S)
    for entry, used in zip(entries, before, strict=True):
        entry.result = replace(entry.result, idle_cores=(entry.server.cpu_seconds() - used) / _IDLE_S)


def _run(entry: _Entry, number: int, clients: int, plan: Plan) -> None:
    cpu_seconds = entry.server.cpu_seconds()
    load = entry.send(clients, plan.seconds)
    cpu_seconds = entry.server.cpu_seconds() - cpu_seconds
    if not load.requests:
        raise BenchError(f"no request of {clients} clients was answered within {plan.seconds} s")
    run = Run(number, clients, load, cpu_seconds)
    entry.result = replace(entry.result, runs=[*entry.result.runs, run])
    print(
        f"  {entry.side.name:<16} round {number}/{plan.rounds}  {clients:>3} clients  "
        f"{digits(load.requests / load.seconds):>7} requests/s   p50 {digits(load.p50_ms):>5} ms   "
        f"p99 {digits(load.p99_ms):>5} ms   CPU {digits(1e6 * cpu_seconds / load.requests):>5} µs/request"
        + (f"   {failures(run):,} failed" if failures(run) else ""),
        flush=True,
    )
    entry.server.settle()


def _weigh(entry: _Entry) -> None:
    entry.result = replace(
        entry.result,
        memory_mb=processes.memory_mb(entry.server.pid),
        processes=len(processes.pids(entry.server.pid)),
    )


def _run_bare(workload: Workload, case: Case, plan: Plan, when: When) -> Iterator[BareRun]:
    for result in bare.measure(workload.model, case.rows, plan.cores, plan.seconds / 2):
        print(
            f"  {'bare':<16} batch {result.batch:<3}              {digits(result.items / result.seconds):>7} items/s"
            f"{'':38}CPU {digits(1e6 * result.cpu_seconds / result.items):>5} µs/item",
            flush=True,
        )
        yield BareRun(when, result)


class _Parameters(Struct, frozen=True):
    instances: int
    threads: int
    max_batch_size: int


def _chosen(server: Server, workload: Workload) -> str:
    """How our server runs the model, in its own words. Raises BenchError."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.port}/v2/models/{workload.model.parents[1].name}"
        ) as answer:
            found = convert(json.load(answer)["parameters"], _Parameters, strict=False)
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"the server does not describe its model: {error}") from error
    return f"{found.instances} instances of {found.threads} threads, batches up to {found.max_batch_size}"
