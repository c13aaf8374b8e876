"""The real server as a process of its own, as an operator starts it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
START_SECONDS = 20
STOP_SECONDS = 20
# asyncio's and uvicorn's words for an error that nobody handled, and ours.
_FAULTS = ("Traceback", "never retrieved", "Exception in", "bug:")


@dataclass
class Server:
    """`printed` is standard output, line by line; `log()` standard error so far; `signalled`: it is on its way out."""

    process: subprocess.Popen[str]
    log_path: Path
    printed: list[str] = field(default_factory=list)
    url: str = ""
    signalled: bool = False

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return self.log_path.read_text()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.signalled = True
        self.process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code."""
        return self.process.wait(seconds)

    def children(self) -> dict[str, list[int]]:
        """Processes by role, told apart by the libraries that they have mapped; none of those that have just ended."""
        found: dict[str, list[int]] = {"engine": [], "frontend": [], "controller": []}
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                mapped = Path(f"/proc/{child}/maps").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if mapped:
                role = "engine" if "onnxruntime" in mapped else "frontend" if "httptools" in mapped else "controller"
                found[role].append(int(child))
        return found

    def metrics(self) -> dict[tuple[str, str], float]:
        """(sample, model) to its value, over all other labels summed."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        values: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, sample.labels.get("model", "")
                values[key] = values.get(key, 0.0) + sample.value
        return values

    def items_in_flight(self) -> int:
        return int(sum(value for (name, _), value in self.metrics().items() if name == "shoal_items_in_flight"))

    def assert_settled(self) -> None:
        """Every slot is free, or becomes so within a moment."""
        wait_until(lambda: self.items_in_flight() == 0, "no items in flight")

    def _read_stdout(self, announced: threading.Event) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line.rstrip("\n"))
            if match := re.match(r"Shoal serves on (\S+)", line):
                self.url = match.group(1)
            if line.startswith(("  try ", "  no model answers")):  # the last of the lines
                announced.set()
        announced.set()  # the process is gone


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


@contextmanager
def running_server(*flags: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """`python -m service serve *flags`, started and announced; afterwards ended, exit code 0, nothing unhandled."""
    with starting_server(*flags, environment=environment) as (server, announced):
        if not announced.wait(START_SECONDS) or not server.url:
            raise AssertionError(f"the server did not start within {START_SECONDS} s; its log:\n{server.log()}")
        yield server
        if not server.signalled:
            server.signal()
        code = server.wait()
        assert code == 0, f"the server ended with {code}; its log:\n{server.log()}"
        faults = [line for line in server.log().splitlines() if any(fault in line for fault in _FAULTS)]
        assert not faults, "the server's log holds errors that nobody handled:\n" + "\n".join(faults)


@contextmanager
def starting_server(
    *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, threading.Event]]:
    """The process, whatever becomes of it; killed at the end. The event: it has announced itself, or is gone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "stderr"
        with log_path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", *flags],
                cwd=ROOT,
                env=inherited | dict(environment or {}),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        server, announced = Server(process, log_path), threading.Event()
        reader = threading.Thread(target=server._read_stdout, args=(announced,))
        reader.start()
        try:
            yield server, announced
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            reader.join()
            assert process.stdout is not None
            process.stdout.close()
