"""A real server for each set-up, and a client beside it: what the search measures with.

    one model in a temporary repository ─► python -m service serve --port 0 KNOBS ◄─► python -m service.tuning.load

The server of a set-up runs until another is asked for. Server and client are processes of their own, in sessions of
their own, so that Ctrl-C in the terminal reaches only us; `Trials` ends them whatever happens. A signal that comes
while one is being started or ended is held back until it is known, or gone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt

from models.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    NUMPY_OF,
    ManifestError,
    TensorSpec,
    read_golden,
    read_manifest,
)
from service.engine.tuned import Knobs, Measurement
from service.lifecycle.catalogue import FoundVersion
from service.tuning.load import LONGEST, Seen, Stage

_START_S = 120.0
_STOP_S = 15.0
_ANSWER_S = 90.0  # beyond a stage's longest: the rest of its requests, and a busy machine
_FIRST_WARM_UP = 3  # a new server's warm-up, in warm-ups: threads start, Python specialises
_MOST_ROWS, _MOST_BYTES = 64, 16 << 20
_TAIL_BYTES = 2000


class TrialError(Exception):
    """A set-up could not be measured. The message says why."""


class Own(NamedTuple):
    """What `serve` chose by itself for the model, and the model's inputs."""

    knobs: Knobs
    inputs: tuple[TensorSpec, ...]


class Trials:
    """Measures set-ups of one version. `seconds`: the length of a window. `flags` go to every server."""

    def __init__(self, version: FoundVersion, flags: Sequence[str], seconds: float) -> None:
        self._version = version
        self._flags = list(flags)
        self._seconds = seconds
        self._warm_s = max(0.1, seconds / 5)
        self._closing = contextlib.ExitStack()
        self._knobs: Knobs | None = None
        self._server: Server | None = None
        self._client: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="shoal-tune-")))
        (self._folder / "models" / self._version.name).mkdir(parents=True)
        link = self._folder / "models" / self._version.name / self._version.version
        link.symlink_to(self._version.path.resolve(), target_is_directory=True)
        return self

    def __exit__(self, *_: tuple[type[BaseException], BaseException, TracebackType] | None) -> None:
        with _signals_held_back(), self._closing:
            if self._client is not None:
                _end(self._client, signal.SIGKILL)  # first: a server drains until its clients are gone
            self._stop_server()

    def look(self) -> Own:
        """Start a server without knobs and ask what it chose. Raises TrialError with the reason of a refusal."""
        self._start_server([])
        assert self._server is not None
        about = self._server.describe(self._version.name)
        inputs = tuple(TensorSpec(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in about["inputs"])
        chosen = {name: about["parameters"][name] for name in ("instances", "threads", "max_batch_size")}
        own = Own(Knobs(**chosen, max_queue_delay_us=0), inputs)
        requests = prepare_requests(self._version, own.inputs)
        path = self._folder / "requests"
        path.write_bytes(msgspec.msgpack.encode(requests))
        with _signals_held_back():
            self._client = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "service.tuning.load", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        return own

    def measure(self, knobs: Knobs, clients: int, repeat: int = 0) -> Measurement:
        """Raises TrialError: the set-up does not start, nothing is answered, the server or the client ends."""
        warm_s = self._warm_s
        if knobs != self._knobs:
            self._start_server(knobs.flags())
            self._knobs = knobs
            warm_s *= _FIRST_WARM_UP
        assert self._server is not None, "bug: measured before a server runs"
        seen = self._ask(Stage(self._server.port, clients, warm_s, self._seconds))
        if not seen.answers:
            self._stop_server()  # whatever it is in, the next starts afresh
            raise TrialError(f"{knobs}, {clients} clients: {seen.said}")
        return Measurement(
            knobs=knobs,
            clients=clients,
            throughput=round(seen.answers / seen.seconds, 2),
            p50_ms=round(seen.p50_ms, 3),
            p99_ms=round(seen.p99_ms, 3),
            answers=seen.answers,
            failed=seen.failed,
            seconds=round(seen.seconds, 3),
            client_cores=round(seen.cpu_seconds / seen.seconds, 3),
            repeat=repeat,
        )

    def _ask(self, stage: Stage) -> Seen:
        assert self._client is not None, "bug: measured before look()"
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        try:
            with _killed_after(self._client, stage.warm_s + LONGEST * stage.seconds + _ANSWER_S):
                self._client.stdin.write(msgspec.json.encode(stage).decode() + "\n")
                self._client.stdin.flush()
                line = self._client.stdout.readline()
        except BrokenPipeError as error:
            raise TrialError("the client ended") from error
        if not line:
            raise TrialError("the client ended")
        return msgspec.json.decode(line, type=Seen)

    def _start_server(self, knobs: Sequence[str]) -> None:
        self._stop_server()
        with _signals_held_back():
            self._server = Server(self._folder, [*self._flags, *knobs])
        self._server.wait_until_ready(self._version)

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = self._knobs = None


class Server:
    """`python -m service serve` with the temporary repository on a free port of 127.0.0.1."""

    def __init__(self, folder: Path, flags: Sequence[str]) -> None:
        self.port = 0
        self._log = (folder / "log").open("w+b")
        command = [sys.executable, "-m", "service", "serve", *flags, "--repository", str(folder / "models")]
        command += ["--host", "127.0.0.1", "--port", "0", "--server.drain-delay-s", "0"]
        command += ["--cache.max-bytes", "0"]  # the client sends the same rows again: what runs them is measured
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def wait_until_ready(self, version: FoundVersion) -> None:
        """Raises TrialError: it ended, or it refused the model."""
        assert self._process.stdout is not None
        with _killed_after(self._process, _START_S):
            first = self._process.stdout.readline()  # printed once everything is loaded, or refused
        if "http://" not in first:
            raise TrialError(f"the server did not start:\n{self._tail() or f'not ready within {_START_S:g} s'}")
        self.port = int(first.strip().rpartition(":")[2])
        try:
            self._get(f"/v2/models/{urllib.parse.quote(version.name)}/ready")
        except urllib.error.HTTPError as error:
            raise TrialError(f"model {version.name} version {version.version}: {_reason(error)}") from error
        except OSError as error:
            raise TrialError(f"the server ended as soon as it was ready:\n{self._tail()}") from error

    def describe(self, name: str) -> dict[str, Any]:  # Any: a JSON object
        """The model's metadata."""
        found: dict[str, Any] = json.loads(self._get(f"/v2/models/{urllib.parse.quote(name)}"))
        return found

    def stop(self) -> None:
        try:
            _end(self._process, signal.SIGTERM)
        finally:
            self._log.close()

    def _get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # 127.0.0.1 needs no proxy
        with opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=_START_S) as response:
            body: bytes = response.read()
        return body

    def _tail(self) -> str:
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip()


def prepare_requests(version: FoundVersion, inputs: Sequence[TensorSpec]) -> list[bytes]:
    """Whole HTTP requests of one item each: golden rows where the version has them, else rows made up."""
    rows = golden_inputs(version.path) or made_up_inputs(inputs)
    n_rows = len(next(iter(rows.values())))
    path = f"/v2/models/{urllib.parse.quote(version.name)}/infer"
    bodies = [_encode(inputs, {name: array[i : i + 1] for name, array in rows.items()}) for i in range(n_rows)]
    return [
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/octet-stream\r\n"
        f"inference-header-content-length: {head}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
        for head, body in bodies
    ]


def golden_inputs(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """At most _MOST_ROWS golden rows of a version; empty where it has none. Raises TrialError."""
    if not (folder / MANIFEST_FILE).exists():
        return {}
    try:
        if GOLDEN_FILE not in read_manifest(folder).files:
            return {}
        return {name: array[:_MOST_ROWS] for name, array in read_golden(folder).inputs.items()}
    except ManifestError as error:
        raise TrialError(str(error)) from error


def made_up_inputs(inputs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[Any]]:
    """Noise where any value will do: floats from 0 to 1, bytes as pixels. Other integers may be indices: zeros."""
    random = np.random.default_rng(0)
    row_bytes = sum(NUMPY_OF[spec.datatype].itemsize * int(np.prod(spec.shape[1:])) for spec in inputs)
    n_rows = max(1, min(_MOST_ROWS, _MOST_BYTES // row_bytes))
    rows: dict[str, npt.NDArray[Any]] = {}
    for spec in inputs:
        shape = (n_rows, *spec.shape[1:])
        match spec.datatype:
            case "FP16" | "FP32" | "FP64":
                rows[spec.name] = random.random(shape).astype(NUMPY_OF[spec.datatype])
            case "UINT8":
                rows[spec.name] = random.integers(0, 256, shape, np.uint8)
            case _:
                rows[spec.name] = np.zeros(shape, NUMPY_OF[spec.datatype])
    return rows


def _encode(inputs: Sequence[TensorSpec], row: dict[str, npt.NDArray[Any]]) -> tuple[int, bytes]:
    """(Inference-Header-Content-Length, body): one raw tensor, or JSON and the binary tensors behind it."""
    blobs = [np.ascontiguousarray(row[spec.name]).tobytes() for spec in inputs]
    if len(inputs) == 1:
        return 0, blobs[0]
    tensors = [
        {
            "name": spec.name,
            "shape": [1, *spec.shape[1:]],
            "datatype": spec.datatype,
            "parameters": {"binary_data_size": len(blob)},
        }
        for spec, blob in zip(inputs, blobs, strict=True)
    ]
    head = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": True}})
    return len(head), b"".join([head, *blobs])


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError):
        return f"answered {error.code}"


@contextlib.contextmanager
def _killed_after(process: "subprocess.Popen[str]", seconds: float) -> Iterator[None]:
    """So that reading from it ends."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.daemon = True  # an interrupt may come before it can be cancelled
    try:
        alarm.start()
        yield
    finally:
        alarm.cancel()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Signals that would raise are noted, and raise KeyboardInterrupt afterwards. Only in the main thread."""
    noted: list[int] = []
    raising = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    raising = {number: action for number, action in raising.items() if callable(action)}
    for number in raising:
        signal.signal(number, lambda number, frame: noted.append(number))
    try:
        yield
    finally:
        for number, action in raising.items():
            signal.signal(number, action)
    if noted:
        raise KeyboardInterrupt


def _end(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    """Signal the process and wait; then kill whatever is left of its session, also when interrupted meanwhile."""
    try:
        process.send_signal(number)
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            _close(stream)


def _close(stream: IO[str] | None) -> None:
    with contextlib.suppress(BrokenPipeError):
        if stream is not None:
            stream.close()
