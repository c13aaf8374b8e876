"""A record's page: nothing in it is written by hand, and every sentence follows from the numbers."""

import statistics
from collections.abc import Iterator, Sequence

from loadtests.record import Record, Row, Run, ServerResult, Spread, Starts, WorkloadResult, bare_rows, rows
from loadtests.tables import digits, percent, table
from loadtests.targets import Target, targets

_IDLE_CORES = 0.05  # above this an idle server takes time from the one that is measured
_SHOWN_PACKAGES = ("mosec", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "onnxruntime", "numpy")
_BODIES = {
    "raw": "one row a request, as bytes; Shoal answers JSON, the peers the bytes of the outputs",
    "json": "one row a request, as JSON numbers; all answer JSON",
}


def page(record: Record) -> str:
    machine = record.machine
    rounds = f"{record.rounds} round{'s' if record.rounds > 1 else ''} of {record.seconds:g} s"
    parts = [
        f"# Requests per second and CPU time per request, {record.created_at[:10]}\n\n"
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.0f} GiB, Linux {machine.kernel}, load "
        f"{machine.load_before:.2f} before the start. Python {record.packages['python']}, "
        f"onnxruntime {record.packages['onnxruntime']}. Commit {record.commit}.\n\n"
        f"wrk with one thread asks in a closed loop, on the cores of the servers. {rounds} a server and number of "
        f"clients, the servers in turn within every round; a cell is the median and, in brackets, the least and the "
        f"most. CPU time is that of all processes of a server. Every server's answers were compared with bare "
        f"onnxruntime's first. Every single run is in [record.json](record.json). To repeat:\n\n"
        f"    {record.command}\n",
        f"## Targets\n\n{targets_table(targets(record))}",
        f"## Servers\n\n{_servers(record)}",
        *(f"## {workload.name}\n\n{_section(workload, machine.cores)}" for workload in record.workloads),
    ]
    if record.starts:
        parts.append(f"## From start to first right answer\n\n{starts_table(record.starts)}")
    return "\n".join(parts)


def served_table(workload: WorkloadResult) -> str:
    titles = ["clients", "server", "requests/s", "p50 ms", "p99 ms", "failed", "CPU µs/request", "wrk µs/request"]
    return table(titles, [_cells(row) for row in rows(workload)])


def targets_table(found: Sequence[Target]) -> str:
    lines = [
        [
            target.what,
            f"{'at least' if target.at_least else 'at most'} {target.limit:g}",
            "not measured" if target.measured is None else f"{target.measured:.2f}",
            {True: "met", False: "not met", None: ""}[target.met],
            target.basis,
        ]
        for target in found
    ]
    return table(["target", "wanted", "measured", "", "from"], lines)


def starts_table(starts: Sequence[Starts]) -> str:
    lines = [
        [entry.server, entry.workload, digits(statistics.median(entry.seconds)), _list(entry.seconds)]
        for entry in starts
    ]
    return table(["server", "workload", "median s", "every start, s"], lines)


def bare_table(workload: WorkloadResult) -> str:
    lines = [
        [str(row.batch), digits(row.rate), digits(row.before), digits(row.after), digits(row.item_us)]
        for row in bare_rows(workload)
    ]
    return table(["batch", "items/s", "before", "after", "CPU µs/item"], lines)


def memory_table(workload: WorkloadResult) -> str:
    lines = [
        [server.name, str(server.processes), f"{server.memory_mb:,.0f}", f"{server.idle_cores:.2f}"]
        for server in workload.servers
        if server.processes
    ]
    return table(["server", "processes", "memory (PSS) MB", "cores when idle"], lines)


def sentences(workload: WorkloadResult, cores: int) -> Iterator[str]:
    """What the numbers say, and nothing they do not."""
    for server in workload.servers:
        if server.fault:
            yield f"{server.name} failed: {server.fault}"
        if server.idle_cores > _IDLE_CORES:
            yield f"{server.name} used {server.idle_cores:.2f} cores while idle, which the others lacked."
    ours = [row for row in rows(workload) if row.peer == "shoal"]
    if ours and workload.bare:
        best = max(ours, key=lambda row: row.rate.median)
        ceiling = max(bare_rows(workload), key=lambda row: row.rate)
        yield (
            f"Shoal answered most requests with {best.clients} client{'s' if best.clients > 1 else ''}: "
            f"{digits(best.rate.median)} a second, {percent(best.rate.median / ceiling.rate)} of the "
            f"{digits(ceiling.rate)} items/s that bare onnxruntime runs alone on the same {cores} cores in batches of "
            f"{ceiling.batch} ({percent(ceiling.drift)} apart before and after). There a request took "
            f"{digits(best.server_us.median)} µs of the server's CPU time, and such an item of bare onnxruntime's "
            f"{digits(ceiling.item_us)} µs."
        )
    failed, requests = _failed(workload), sum(run.result.requests for run in _runs(workload.servers))
    yield (f"{failed:,} of" if failed else "None of") + f" {requests:,} requests failed."


def spread(value: Spread) -> str:
    low, high = digits(value.low), digits(value.high)
    return digits(value.median) + (f" ({low}-{high})" if low != high else "")


def _section(workload: WorkloadResult, cores: int) -> str:
    text = (
        f"Model {workload.model}, SHA-256 {workload.sha256}; {_BODIES[workload.body]}.\n\n"
        f"{' '.join(sentences(workload, cores))}\n\n"
    )
    if any(server.runs for server in workload.servers):
        text += (
            f"{served_table(workload)}\nAfter the load, and before it while nobody asked:\n\n{memory_table(workload)}"
        )
    if workload.bare:
        text += (
            f"\nBare onnxruntime on the same file, {cores} processes of one thread, without a server:\n\n"
            f"{bare_table(workload)}"
        )
    return text


def _servers(record: Record) -> str:
    """How each was set up, once; what differs between workloads is named with its workload."""
    lines = {f"{server.name}: {server.setup}" for workload in record.workloads for server in workload.servers}
    text = "".join(f"- {line}\n" for line in sorted(lines))
    for peer, packages in record.peers.items():
        shown = ", ".join(f"{name} {packages[name]}" for name in _SHOWN_PACKAGES if name in packages)
        text += f"- packages of {peer}: {shown}\n"
    return text + "".join(f"- {line}\n" for line in record.absent)


def _cells(row: Row) -> list[str]:
    return [
        str(row.clients),
        row.server,
        *(spread(value) for value in (row.rate, row.p50_ms, row.p99_ms)),
        f"{row.failed:,}",
        *(spread(value) for value in (row.server_us, row.client_us)),
    ]


def _failed(workload: WorkloadResult) -> int:
    return sum(row.failed for row in rows(workload))


def _runs(servers: Sequence[ServerResult]) -> Iterator[Run]:
    for server in servers:
        yield from server.runs


def _list(seconds: Sequence[float]) -> str:
    return ", ".join(digits(value) for value in seconds)
