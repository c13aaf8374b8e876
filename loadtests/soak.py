"""`python -m loadtests.soak`: minutes of mixed load, and whether memory stays flat and every slot comes back.

Starts `python -m service serve` on the bundled models. Clients send images, JSON, raw rows and bad bodies over
connections they keep, and leave in the middle of some requests. An answer must be the one that the same request had
before there was any load. Every 10 seconds the memory (PSS) of all the server's processes is read. Writes
loadtests/records/<date>_<name>/.
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from loadtests import bare, machine, processes, record, server, tables
from loadtests.server import BenchError
from models.manifest import EXAMPLE_FILE

_SAMPLE_S = 10.0
_CLIENTS = 12
_LEAVING = 0.02  # of all requests: the client closes before it is answered
_SETTLED_S = 10.0
_GROWTH_MB = 10.0  # of the last third's mean over the second third's: what allocators do, and no more


class Ask(Struct, frozen=True):
    path: str
    body: bytes
    content_type: str
    status: int


class Sample(Struct, frozen=True):
    seconds: float
    memory_mb: float
    requests: int


class SoakRecord(Struct, frozen=True):
    created_at: str
    command: str
    commit: str
    machine: machine.Machine
    minutes: float
    frontends: int
    answered: int
    left: int
    wrong: list[str]
    in_flight: int
    samples: list[Sample]

    @property
    def growth_mb(self) -> float:
        third = len(self.samples) // 3
        middle, last = self.samples[third : 2 * third], self.samples[2 * third :]
        return sum(s.memory_mb for s in last) / len(last) - sum(s.memory_mb for s in middle) / len(middle)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 flat and nothing lost, 1 not."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--frontends", type=int, default=2)
    parser.add_argument("--name", default="soak", help="name of the record, after the date")
    parser.add_argument("--out", type=Path, help="folder of the record")
    options = parser.parse_args(arguments)
    created_at = datetime.now(UTC)
    try:
        folder = record.new_folder(options.out, created_at, options.name)
        result = _soak(options.minutes, options.frontends, created_at)
        record.write(folder, result, _page(result))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(_page(result))
    return 0 if not result.wrong and not result.in_flight and result.growth_mb < _GROWTH_MB else 1


def _soak(minutes: float, frontends: int, created_at: datetime) -> SoakRecord:
    asks = _asks()
    port = server.free_port()
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--server.frontends", str(frontends)]
    with server.running(command, {}, lambda port: _all_answer(port, asks), port) as running:
        expected = [_send(port, ask) for ask in asks]
        stop = threading.Event()
        clients = [_Client(port, asks, expected, seed, stop) for seed in range(_CLIENTS)]
        for client in clients:
            client.start()
        samples: list[Sample] = []
        begun = time.monotonic()
        while (elapsed := time.monotonic() - begun) < 60 * minutes:
            requests = sum(client.answered for client in clients)
            samples.append(Sample(round(elapsed, 1), processes.memory_mb(running.pid), requests))
            time.sleep(_SAMPLE_S)
        stop.set()
        for client in clients:
            client.join()
        in_flight = settled(port)
    return SoakRecord(
        created_at=created_at.isoformat(timespec="seconds"),
        command=f"python -m loadtests.soak --minutes {minutes:g} --frontends {frontends}",
        commit=machine.look_at_commit(),
        machine=machine.look_at_machine(bare.cores()),
        minutes=minutes,
        frontends=frontends,
        answered=sum(client.answered for client in clients),
        left=sum(client.left for client in clients),
        wrong=[fault for client in clients for fault in client.wrong][:10],
        in_flight=in_flight,
        samples=samples,
    )


class _Client(threading.Thread):
    def __init__(
        self, port: int, asks: Sequence[Ask], expected: Sequence[tuple[int, str]], seed: int, stop: threading.Event
    ) -> None:
        super().__init__(daemon=True)
        self._port, self._asks, self._expected, self._stopped = port, asks, expected, stop
        self._random = random.Random(seed)
        self.answered = self.left = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stopped.is_set():
            i = self._random.randrange(len(self._asks))
            try:
                if self._random.random() < _LEAVING:
                    ask = self._asks[i]
                    connection.request("POST", ask.path, ask.body, {"Content-Type": ask.content_type})
                    connection.close()
                    self.left += 1
                    continue
                answer = _send(self._port, self._asks[i], connection)
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                connection.close()
                continue
            self.answered += 1
            if answer != self._expected[i]:
                self.wrong.append(f"{self._asks[i].path}: {answer} instead of {self._expected[i]}")
        connection.close()


def _asks() -> list[Ask]:
    """For each bundled image model: its example as an image, as JSON and as a raw row; and a body that is refused."""
    asks = []
    for image in sorted(Path("models").glob(f"*/*/{EXAMPLE_FILE}")):
        model = image.parent.parent.name
        pixels = 784 if "cifar" not in model else 3072
        numbers = [i * 7 % 256 for i in range(pixels)]
        path = f"/predict/{model}?top_k=1"
        asks += [
            Ask(path, image.read_bytes(), "image/png", 200),
            Ask(path, json.dumps({"instances": [numbers]}).encode(), "application/json", 200),
            Ask(path, bytes(numbers), "application/octet-stream", 200),
            Ask(path, bytes(numbers[:-1]), "application/octet-stream", 400),
        ]
    return asks


def _send(port: int, ask: Ask, connection: http.client.HTTPConnection | None = None) -> tuple[int, str]:
    """Status, and the label or the error: a probability differs by its batch in the last digit."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", ask.path, ask.body, {"Content-Type": ask.content_type})
    answer = connection.getresponse()
    said = json.loads(answer.read())
    return answer.status, said["error"] if answer.status != 200 else said["predictions"][0]["label"]


def _all_answer(port: int, asks: Sequence[Ask]) -> bool:
    try:
        return all(_send(port, ask)[0] == ask.status for ask in asks)
    except OSError:
        return False


def settled(port: int) -> int:
    """Items that still hold a slot, once nothing is sent any more."""
    give_up_at = time.monotonic() + _SETTLED_S
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        held = sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith("shoal_items_in_flight{"))
        if not held or time.monotonic() > give_up_at:
            return held
        time.sleep(0.2)


def _page(result: SoakRecord) -> str:
    every = max(1, len(result.samples) // 15)
    rows = [
        [f"{sample.seconds:.0f}", f"{sample.memory_mb:.1f}", f"{sample.requests:,}"]
        for sample in result.samples[::every]
    ]
    wrong = f"{len(result.wrong)} answers or more were wrong: {result.wrong[0]}" if result.wrong else "All were right"
    return (
        f"# Soak of {result.minutes:g} minutes, {result.created_at[:10]}\n\n"
        f"{result.machine.cpu}, {result.machine.cores} cores, commit {result.commit}; {result.frontends} frontends, "
        f"{_CLIENTS} clients on the same machine.\n\n"
        f"{result.answered:,} requests were answered and {result.left:,} left by their client before. {wrong}. "
        f"Afterwards {result.in_flight} items held a slot. Memory of all processes in the last third of the time was "
        f"{result.growth_mb:+.1f} MB from that of the second third.\n\n"
        f"{tables.table(['seconds', 'memory (PSS) MB', 'requests'], rows)}\n"
        f"Repeat: `{result.command}`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
