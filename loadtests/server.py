"""A server of our own for a measurement: started on a free port, its CPU time read from /proc, stopped at the end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

_START_S = 120.0
_STOP_S = 60.0
_SETTLE_S = 30.0
_POLL_S = 0.02
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The measurement cannot go on. The message is for the person who started it."""


class Server(Struct, frozen=True):
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time of the process, its threads, and all processes below it, since their start."""
        return tree_ticks(self.pid, _read_stats()) / _TICKS_PER_S

    def settle(self, model: str) -> None:
        """Wait until nothing is in flight: a client that ends leaves a request on each of its connections."""
        give_up_at = time.monotonic() + _SETTLE_S
        while read_metric(self._metrics(), "shoal_items_in_flight", model):
            if time.monotonic() > give_up_at:
                raise BenchError(f"requests of the run before are unanswered after {_SETTLE_S:.0f} s")
            time.sleep(_POLL_S)

    def batches(self, model: str) -> tuple[int, int]:
        """(items, batches) that have run so far."""
        text = self._metrics()
        items, batches = (read_metric(text, f"shoal_batch_size_{part}", model) for part in ("sum", "count"))
        return items, batches

    def describe(self, model: str) -> dict[str, Any]:  # Any: a JSON object
        """The model's instances, threads and largest batch, as the server chose them. Raises BenchError."""
        try:
            with urllib.request.urlopen(f"{self.url}/v2/models/{model}") as response:
                parameters = json.load(response)["parameters"]
        except (OSError, ValueError) as error:
            raise BenchError(f"the server does not answer for model {model}: {error}") from error
        return {name: parameters[name] for name in ("instances", "threads", "max_batch_size")}

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            return str(response.read().decode())


class Stat(Struct, frozen=True):
    """One process in /proc. `ticks` is user and system time, its own and that of children it has waited for."""

    pid: int
    parent: int
    ticks: int


@contextlib.contextmanager
def running(repository: Path, flags: Sequence[str]) -> Iterator[Server]:
    """`python -m service serve` on a free port of localhost, ready. Settings come from `flags` alone."""
    command = [sys.executable, "-m", "service", "serve", "--repository", str(repository)]
    command += ["--host", "127.0.0.1", "--port", "0", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield Server(_url(process, lambda: _tail(errors)), process.pid)
        finally:
            _stop(process)


def parse_stat(text: str) -> Stat:
    """A line of /proc/<pid>/stat. Source: proc(5); the name may hold spaces and brackets, so fields count from ')'."""
    pid = int(text.split(" ", 1)[0])
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, int(fields[1]), sum(map(int, fields[11:15])))


def tree_ticks(root: int, stats: Sequence[Stat]) -> int:
    """The ticks of `root` and everything below it."""
    by_pid = {stat.pid: stat for stat in stats}
    total = 0
    for stat in stats:
        above: Stat | None = stat
        while above is not None and above.pid != root:
            above = by_pid.get(above.parent)
        total += stat.ticks if above is not None else 0
    return total


def read_metric(text: str, name: str, model: str) -> int:
    """One model's value in the Prometheus text format; 0 where it has none yet."""
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and f'model="{model}"' in line:
            return int(float(line.rsplit(" ", 1)[1]))
    return 0


def _read_stats() -> list[Stat]:
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            stats.append(parse_stat(path.read_text()))
    return stats


def _url(process: "subprocess.Popen[str]", tail: Any) -> str:
    """The address in the first line, which the server prints once its models are loaded. Raises BenchError."""
    assert process.stdout is not None, "bug: started without a pipe"
    alarm = threading.Timer(_START_S, process.kill)
    alarm.start()
    try:
        first = process.stdout.readline()
    finally:
        alarm.cancel()
    if "http://" not in first:
        raise BenchError(f"the server did not start:\n{tail() or f'no model was ready within {_START_S:.0f} s'}")
    return first[first.index("http://") :].strip()


def _tail(errors: Any) -> str:
    errors.seek(0)
    return str(errors.read()[-2000:]).strip()


def _stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()
