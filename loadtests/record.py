"""What a measurement leaves behind: a folder with every number and a page that says what they say.

    <folder>/record.json   machine, versions, commit, command, and the result of every single run
    <folder>/README.md     medians and spread from that, the command that repeats it, and one sentence for each fact

Nothing in the page is written by hand, and a record is never overwritten: measure again under another name.
"""

import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from loadtests.bare import Bare
from loadtests.server import BenchError
from loadtests.wrk import Load

_PACKAGES = ("onnxruntime", "numpy", "litestar", "uvicorn", "uvloop", "httptools", "msgspec", "pillow")


When = Literal["before", "after"]


class Machine(Struct, frozen=True):
    """`cores` are those this process may use; `load_before` is the one-minute load average at the start."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    load_before: float


class BareRun(Struct, frozen=True):
    when: When
    result: Bare


class ServedRun(Struct, frozen=True):
    """`items` and `batches` are what the server ran meanwhile; `server_cpu_seconds` covers its whole process tree."""

    round: int
    clients: int
    result: Load
    server_cpu_seconds: float
    items: int
    batches: int


class ModelResult(Struct, frozen=True):
    name: str
    sha256: str
    setup: dict[str, Any]  # Any: what the server says about itself
    checked_answers: int
    bare: list[BareRun]
    served: list[ServedRun]


class Record(Struct, frozen=True, kw_only=True):
    schema: Literal[1] = 1
    created_at: str
    command: str
    commit: str
    machine: Machine
    packages: dict[str, str]
    seconds: float
    rounds: int
    models: list[ModelResult]


class Spread(Struct, frozen=True):
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        low, high = digits(self.low), digits(self.high)
        return digits(self.median) + (f" ({low}-{high})" if low != high else "")


class Row(Struct, frozen=True):
    """One line of the table: all rounds of one number of clients."""

    clients: int
    rate: Spread
    p50_ms: Spread
    p99_ms: Spread
    server_us: Spread
    client_us: Spread
    batch: float
    failed: int
    bare_batch: int
    bare_us: float


class BareRow(Struct, frozen=True):
    """One batch size: items/s before and after the served runs, their mean, and the mean CPU time of an item."""

    batch: int
    before: float
    after: float
    rate: float
    item_us: float


def require_new(folder: Path) -> None:
    """Raises BenchError where there is a record already."""
    if folder.exists():
        raise BenchError(f"{folder} exists; a record is never overwritten: choose another --name or --out")


def write(folder: Path, record: Record) -> None:
    require_new(folder)
    folder.mkdir(parents=True)
    text = json.dumps(msgspec.to_builtins(record), indent=1)
    (folder / "record.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(page(record), encoding="utf-8")


def page(record: Record) -> str:
    machine = record.machine
    rounds = f"{record.rounds} interleaved round{'s' if record.rounds > 1 else ''} of {record.seconds:g} s"
    head = (
        f"# Requests per second and CPU time per request, {record.created_at[:10]}\n\n"
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.0f} GiB, Linux {machine.kernel}, load "
        f"{machine.load_before:.2f} before the start. Python {record.packages['python']}, "
        f"onnxruntime {record.packages['onnxruntime']}. Commit {record.commit}.\n\n"
        f"wrk with one thread sends one row a request to `/predict/<model>` in a closed loop, on the cores of the "
        f"server. {rounds}; a cell is the median and, in brackets, the least and the most. CPU time of the server is "
        f"that of all its threads and processes. Every single run is in [record.json](record.json). To repeat:\n\n"
        f"    {record.command}\n"
    )
    return head + "".join(f"\n{_section(model, machine)}" for model in record.models)


def served_table(model: ModelResult) -> str:
    titles = ["clients", "requests/s", "p50 ms", "p99 ms", "failed", "CPU µs/request", "mean batch", "bare µs/item"]
    rows = [
        [
            str(row.clients),
            str(row.rate),
            str(row.p50_ms),
            str(row.p99_ms),
            f"{row.failed:,}",
            str(row.server_us),
            f"{row.batch:.1f}",
            f"{digits(row.bare_us)} (batch {row.bare_batch})",
        ]
        for row in served_rows(model)
    ]
    return table(titles, rows)


def bare_table(model: ModelResult) -> str:
    titles = ["batch", "items/s", "before", "after", "CPU µs/item"]
    rows = [
        [str(row.batch), digits(row.rate), digits(row.before), digits(row.after), digits(row.item_us)]
        for row in bare_rows(model)
    ]
    return table(titles, rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown that is also a table for whoever reads it in a terminal."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * (width - 1) + ":" for width in widths], *rows]
    return "".join(
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def served_rows(model: ModelResult) -> list[Row]:
    return [_row(model, clients) for clients in sorted({run.clients for run in model.served})]


def bare_rows(model: ModelResult) -> list[BareRow]:
    rows = []
    for batch in sorted({run.result.batch for run in model.bare}):
        both = {run.when: run.result for run in model.bare if run.result.batch == batch}
        before, after = (both[when].items / both[when].seconds for when in ("before", "after"))
        item_us = statistics.mean(1e6 * result.cpu_seconds / result.items for result in both.values())
        rows.append(BareRow(batch, before, after, (before + after) / 2, item_us))
    return rows


def sentences(model: ModelResult, cores: int) -> Iterator[str]:
    """What the numbers say, and nothing they do not."""
    rows = served_rows(model)
    best = max(rows, key=lambda row: row.rate.median)
    ceiling = max(bare_rows(model), key=lambda row: row.rate)
    share = best.rate.median / ceiling.rate
    drift = abs(ceiling.after - ceiling.before) / ceiling.rate
    yield (
        f"Most requests were answered with {best.clients} clients: {digits(best.rate.median)} a second, "
        f"{percent(share)} of the {digits(ceiling.rate)} items/s that bare onnxruntime runs alone on the same "
        f"{cores} cores in batches of {ceiling.batch} ({percent(drift)} apart before and after)."
    )
    yield (
        f"There a request took {digits(best.server_us.median)} µs of the server's CPU time in batches of "
        f"{best.batch:.1f} on average, and an item {digits(best.bare_us)} µs of bare onnxruntime's in batches of "
        f"{best.bare_batch}, the measured size closest to that; wrk took {digits(best.client_us.median)} µs a request."
    )
    failed = sum(row.failed for row in rows)
    requests = sum(run.result.requests for run in model.served)
    yield (f"{failed:,} of" if failed else "None of") + f" {requests:,} requests failed."


def digits(value: float) -> str:
    """Three significant digits, and never an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """Whole percents, two digits below ten of them."""
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def look_at_machine(cores: int) -> Machine:
    return Machine(
        cpu=_cpu_model(),
        cores=cores,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        load_before=os.getloadavg()[0],
    )


def look_at_packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    found["wrk"] = "absent"
    if shutil.which("wrk"):
        said = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout
        found["wrk"] = said.split()[1]
    # The package that owns the module may be the one for GPUs.
    if found["onnxruntime"] == "absent":
        found["onnxruntime"] = version("onnxruntime-gpu")
    return found


def look_at_commit() -> str:
    """The commit, "-dirty" behind it where tracked files differ, "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def _section(model: ModelResult, machine: Machine) -> str:
    setup = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in model.setup.items())
    return (
        f"## {model.name}\n\n"
        f"SHA-256 {model.sha256}. Chosen by the server: {setup}. {model.checked_answers} answers were compared with "
        f"bare onnxruntime's first.\n\n"
        f"{' '.join(sentences(model, machine.cores))}\n\n{served_table(model)}\n"
        f"Bare onnxruntime on the same file, {machine.cores} processes of one thread, without a server:\n\n"
        f"{bare_table(model)}"
    )


def _row(model: ModelResult, clients: int) -> Row:
    runs = [run for run in model.served if run.clients == clients]
    items, batches = sum(run.items for run in runs), sum(run.batches for run in runs)
    batch = items / batches if batches else 0.0
    nearest = min(bare_rows(model), key=lambda row: abs(math.log(row.batch / max(batch, 1))))
    return Row(
        clients=clients,
        rate=_spread(run.result.requests / run.result.seconds for run in runs),
        p50_ms=_spread(run.result.p50_ms for run in runs),
        p99_ms=_spread(run.result.p99_ms for run in runs),
        server_us=_spread(1e6 * run.server_cpu_seconds / max(1, run.result.requests) for run in runs),
        client_us=_spread(1e6 * run.result.client_cpu_seconds / max(1, run.result.requests) for run in runs),
        batch=batch,
        failed=sum(run.result.non_2xx + run.result.socket_errors for run in runs),
        bare_batch=nearest.batch,
        bare_us=nearest.item_us,
    )


def _spread(values: Iterator[float]) -> Spread:
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
