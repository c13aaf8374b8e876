"""`python -m loadtests.lifecycle`: reloads, version swaps and alias moves under a constant load, and what they cost.

Starts `python -m service serve --control.mode explicit` on a repository of its own. Paced clients ask three models all
the time, while one operation follows the other:

    reload   the bundled mnist, loaded again beside itself
    swap     a new version of `times` is published and loaded; the one before it goes, and its folder is removed
    alias    `live` of `pair` moves between its two versions

Version v of `times` and `pair` answers x with v times x, so an answer shows who gave it. It must be a version that was
current when the request was sent or when it was answered. Latencies are told apart by whether an operation ran
meanwhile. Memory (PSS) of all the server's processes is read every 10 seconds. Writes
loadtests/records/<date>_<name>/.
"""

import argparse
import http.client
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import onnx
from msgspec import Struct
from onnx import TensorProto, helper

from loadtests import bare, machine, processes, record, server, tables
from loadtests.server import BenchError
from loadtests.soak import settled

_SAMPLE_S = 10.0
_CLIENTS = 6
_PAUSE_S = 0.02  # of each client, between two requests
_GROWTH_MB = 10.0
_BUNDLED = Path("models/mnist")
_KINDS = ("reload", "swap", "alias", "alias")  # in turn, so that half of the operations load


class Sample(Struct, frozen=True):
    seconds: float
    memory_mb: float
    operations: int


class Latency(Struct, frozen=True):
    """Of requests, in milliseconds."""

    requests: int
    p50: float
    p99: float
    most: float


class LifecycleRecord(Struct, frozen=True):
    """`seconds`: how long the operations of a kind took, the median. `failed`: requests, and operations."""

    created_at: str
    command: str
    commit: str
    machine: machine.Machine
    frontends: int
    operations: dict[str, int]
    seconds: dict[str, float]
    answered: int
    failed: list[str]
    in_flight: int
    quiet: Latency
    during: Latency
    samples: list[Sample]

    @property
    def growth_mb(self) -> float:
        """Mean of the last third over that of the second third."""
        third = max(1, len(self.samples) // 3)
        middle, last = self.samples[third : 2 * third], self.samples[2 * third :]
        return statistics.mean(s.memory_mb for s in last) - statistics.mean(s.memory_mb for s in middle)


class Board:
    """What is current, as the clients judge answers by it. `busy`: an operation that loads is under way."""

    def __init__(self) -> None:
        self.current = {"times": frozenset({1}), "pair": frozenset({1})}
        self.busy = False


class Client(threading.Thread):
    """Asks one thing after the other over a connection that it keeps."""

    def __init__(self, port: int, board: Board, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._board, self._stop_asking = port, board, stop
        self._random = random.Random(seed)
        self._image = bytes(i * 7 % 256 for i in range(784))
        self._label = ""
        self.quiet: list[float] = []
        self.during: list[float] = []
        self.failed: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        asks: list[Callable[[http.client.HTTPConnection], None]] = [self._mnist, self._times, self._pair]
        while not self._stop_asking.wait(_PAUSE_S):
            busy, begun = self._board.busy, time.perf_counter()
            try:
                self._random.choice(asks)(connection)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.failed.append(repr(error))
                connection.close()
                continue
            took = time.perf_counter() - begun
            (self.during if busy or self._board.busy else self.quiet).append(1000 * took)
        connection.close()

    def _mnist(self, connection: http.client.HTTPConnection) -> None:
        said = _post(connection, "/predict/mnist?top_k=1", self._image, "application/octet-stream")
        label = said["predictions"][0]["label"]
        if label != (self._label or label):
            self.failed.append(f"mnist: {label} instead of {self._label}")
        self._label = label

    def _times(self, connection: http.client.HTTPConnection) -> None:
        self._ask(connection, "times", "/v2/models/times/infer")

    def _pair(self, connection: http.client.HTTPConnection) -> None:
        self._ask(connection, "pair", "/v2/models/pair/versions/live/infer")

    def _ask(self, connection: http.client.HTTPConnection, model: str, path: str) -> None:
        x = self._random.randrange(1, 1000)
        body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [x]}]}
        before = self._board.current[model]
        said = _post(connection, path, json.dumps(body).encode(), "application/json")
        version, answer = int(said["model_version"]), said["outputs"][0]["data"][0]
        if answer != version * x:
            self.failed.append(f"{model} version {version}: {answer} for {x}")
        if version not in before | self._board.current[model]:
            self.failed.append(f"{model}: version {version}, current were {sorted(before)}")


class Operator:
    """Does one operation after the other, by the admin API, and times each."""

    def __init__(self, port: int, repository: Path, board: Board) -> None:
        self._port, self._repository, self._board = port, repository, board
        self._newest = 1
        self._live = 1
        self.seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}

    def do(self, kind: str) -> None:
        begun = time.monotonic()
        {"reload": self._reload, "swap": self._swap, "alias": self._alias}[kind]()
        self.seconds[kind].append(time.monotonic() - begun)

    def set_up(self) -> None:
        self._ask("PUT", "/admin/models/pair/aliases/live", {"version": "1"})

    def _reload(self) -> None:
        self._board.busy = True
        self._ask("POST", "/admin/models/mnist/load")
        self._board.busy = False

    def _swap(self) -> None:
        old, new = self._newest, self._newest + 1
        publish(self._repository, "times", new)
        self._board.current["times"] = frozenset({old, new})
        self._board.busy = True
        self._ask("POST", "/admin/models/times/load")
        self._board.busy = False
        self._board.current["times"] = frozenset({new})
        shutil.rmtree(self._repository / "times" / str(old))
        self._newest = new

    def _alias(self) -> None:
        old, new = self._live, 3 - self._live
        self._board.current["pair"] = frozenset({old, new})
        self._ask("PUT", "/admin/models/pair/aliases/live", {"version": str(new)})
        self._board.current["pair"] = frozenset({new})
        self._live = new

    def _ask(self, method: str, path: str, body: object = None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        data = b"" if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise BenchError(f"{method} {path}: {answer.status} {said}")


def publish(repository: Path, name: str, version: int) -> None:
    """Version v answers x with v times x. There in one rename."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
        [helper.make_tensor("factor", TensorProto.INT64, [], [version])],
    )
    beside = repository / name / f".{version}"
    beside.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), beside / "model.onnx"
    )
    beside.rename(repository / name / str(version))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 where nothing failed, memory is flat and every slot came back; else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.lifecycle", description=__doc__.split("\n")[0])
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--frontends", type=int, default=2)
    parser.add_argument("--name", default="lifecycle", help="name of the record, after the date")
    parser.add_argument("--out", type=Path, help="folder of the record")
    options = parser.parse_args(arguments)
    created_at = datetime.now(UTC)
    try:
        folder = record.new_folder(options.out, created_at, options.name)
        with tempfile.TemporaryDirectory() as scratch:
            result = _measure(Path(scratch), options.operations, options.frontends, created_at)
        record.write(folder, result, _page(result))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(_page(result))
    return 0 if not result.failed and not result.in_flight and result.growth_mb < _GROWTH_MB else 1


def _measure(repository: Path, operations: int, frontends: int, created_at: datetime) -> LifecycleRecord:
    newest = max(_BUNDLED.iterdir(), key=lambda path: int(path.name) if path.name.isdecimal() else 0)
    shutil.copytree(newest, repository / "mnist" / newest.name)
    publish(repository, "times", 1)
    for version in (1, 2):
        publish(repository, "pair", version)
    (repository / "pair/model.toml").write_text("[versions]\nall = true\n")
    port, admin_port = server.free_port(), server.free_port()
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--server.frontends", str(frontends), "--control.mode", "explicit", "--admin.port", str(admin_port)]
    command += ["--repository", str(repository)]
    board, stop = Board(), threading.Event()
    with server.running(command, {}, _answers, port) as running:
        operator = Operator(admin_port, repository, board)
        operator.set_up()
        clients = [Client(port, board, seed, stop) for seed in range(_CLIENTS)]
        for client in clients:
            client.start()
        samples: list[Sample] = []
        begun = sampled_at = time.monotonic()
        for i in range(operations):
            if not samples or time.monotonic() - sampled_at >= _SAMPLE_S:
                sampled_at = time.monotonic()
                samples.append(Sample(round(sampled_at - begun, 1), processes.memory_mb(running.pid), i))
            operator.do(_KINDS[i % len(_KINDS)])
        stop.set()
        for client in clients:
            client.join()
        in_flight = settled(port)
        samples.append(Sample(round(time.monotonic() - begun, 1), processes.memory_mb(running.pid), operations))
    return LifecycleRecord(
        created_at=created_at.isoformat(timespec="seconds"),
        command=f"python -m loadtests.lifecycle --operations {operations} --frontends {frontends}",
        commit=machine.look_at_commit(),
        machine=machine.look_at_machine(bare.cores()),
        frontends=frontends,
        operations={kind: len(taken) for kind, taken in operator.seconds.items()},
        seconds={kind: round(statistics.median(taken), 3) for kind, taken in operator.seconds.items() if taken},
        answered=sum(len(client.quiet) + len(client.during) for client in clients),
        failed=[fault for client in clients for fault in client.failed][:10],
        in_flight=in_flight,
        quiet=_latency([each for client in clients for each in client.quiet]),
        during=_latency([each for client in clients for each in client.during]),
        samples=samples,
    )


def _latency(milliseconds: list[float]) -> Latency:
    if not milliseconds:
        return Latency(0, 0.0, 0.0, 0.0)
    ordered = sorted(milliseconds)
    at = [ordered[min(len(ordered) - 1, int(part * len(ordered)))] for part in (0.5, 0.99)]
    return Latency(len(ordered), round(at[0], 2), round(at[1], 2), round(ordered[-1], 2))


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _post(connection: http.client.HTTPConnection, path: str, body: bytes, content_type: str) -> dict:  # type: ignore[type-arg]
    connection.request("POST", path, body, {"Content-Type": content_type})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise ValueError(f"{path}: {answer.status} {said.decode()}")
    return json.loads(said)  # type: ignore[no-any-return]


def _page(result: LifecycleRecord) -> str:
    every = max(1, len(result.samples) // 15)
    memory = [[f"{s.seconds:.0f}", f"{s.memory_mb:.1f}", f"{s.operations:,}"] for s in result.samples[::every]]
    done = [[kind, f"{count:,}", f"{result.seconds.get(kind, 0):.2f}"] for kind, count in result.operations.items()]
    latencies = [
        [name, f"{each.requests:,}", f"{each.p50:.2f}", f"{each.p99:.2f}", f"{each.most:.1f}"]
        for name, each in (("no load under way", result.quiet), ("while a version loads", result.during))
    ]
    failed = f"{len(result.failed)} or more failed: {result.failed[0]}" if result.failed else "None failed"
    return (
        f"# {sum(result.operations.values()):,} reloads, swaps and alias moves under load, {result.created_at[:10]}\n\n"
        f"{result.machine.cpu}, {result.machine.cores} cores, commit {result.commit}; {result.frontends} frontends, "
        f"{_CLIENTS} clients in one Python process on the same machine, each with {1000 * _PAUSE_S:.0f} ms between "
        "requests.\n\n"
        f"{result.answered:,} requests were answered. {failed}; every answer was that of a version current when it "
        f"was asked or answered. Afterwards {result.in_flight} items held a slot. Memory of all processes in the last "
        f"third of the time was {result.growth_mb:+.1f} MB from that of the second third.\n\n"
        f"{tables.table(['operation', 'times', 'median seconds'], done)}\n"
        f"{tables.table(['latency, ms', 'requests', 'p50', 'p99', 'most'], latencies)}\n"
        f"{tables.table(['seconds', 'memory (PSS) MB', 'operations'], memory)}\n"
        f"Repeat: `{result.command}`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
