"""Users that send real digits to a running server in every way it takes them, and check each answer (`make load`).

    locust -f loadtests/locustfile.py --headless --only-summary --loglevel ERROR --host http://localhost:8000 \\
        --users 32 --spawn-rate 32 --run-time 15s

Closed loop: a user asks again as soon as it is answered, so the rate is what server and client manage together. The
exit status is 0 only when every request was answered with 200, no image was answered in two ways, and the model was
right as often as it should be. One process: the ledger of answers is not shared, so --processes is refused.
"""

import json
import logging
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.runners import LocalRunner

from loadtests import answers
from loadtests.answers import MODEL, Answer, Ledger, Samples, Tally, load_samples

PREDICT = f"/predict/{MODEL}"
INFER = f"/v2/models/{MODEL}/infer"
BYTES, JSON = "application/octet-stream", "application/json"
_PAUSE_S = 0.1  # after a request without any answer, so that a server that is gone is not asked as fast as can be

Write = Callable[[Samples, Sequence[int]], bytes]
Read = Callable[[bytes, str | None], list[Answer]]


class Run:
    """One test from start to stop. Indices go round all images, so neighbours in a batch are different ones."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.ledger = Ledger(samples.labels)
        self.tally = Tally()
        self._next = count()
        self._begun = time.monotonic(), time.process_time()
        self.seconds = self.client_cpu = 0.0

    def take(self, n: int) -> list[int]:
        return [next(self._next) % len(self.samples.labels) for _ in range(n)]

    def stop(self) -> None:
        self.seconds = time.monotonic() - self._begun[0]
        self.client_cpu = (time.process_time() - self._begun[1]) / self.seconds


class DigitUser(FastHttpUser):
    host = "http://localhost:8000"
    wait_time = constant(0)
    test_run: Run  # set by `begin`

    @task(4)
    def png(self) -> None:
        self.ask("predict PNG", PREDICT, "image/png", answers.write_png, answers.read_predictions)

    @task(4)
    def raw_row(self) -> None:
        self.ask("predict raw row", PREDICT, BYTES, answers.write_raw, answers.read_predictions)

    @task(1)
    def raw_rows(self) -> None:
        self.ask("predict 8 raw rows", PREDICT, BYTES, answers.write_raw, answers.read_predictions, n=8)

    @task(2)
    def numbers(self) -> None:
        self.ask(
            "predict JSON, 2 items", PREDICT, "application/json", answers.write_json, answers.read_predictions, n=2
        )

    @task(2)
    def infer_binary(self) -> None:
        self.ask("infer binary", INFER, BYTES, answers.write_raw, answers.read_infer)

    @task(1)
    def infer_json(self) -> None:
        self.ask("infer JSON, 2 items", INFER, JSON, answers.write_infer_json, answers.read_infer, n=2)

    def ask(self, name: str, path: str, content_type: str, write: Write, read: Read, n: int = 1) -> None:
        run = DigitUser.test_run
        indices = run.take(n)
        with self.client.post(
            path,
            data=write(run.samples, indices),  # type: ignore[arg-type]  # bytes work; locust's hint says str
            headers={"Content-Type": content_type},
            name=name,
            catch_response=True,
        ) as response:
            if response.status_code == 200:
                try:
                    fault = run.ledger.enter(
                        indices, read(response.content, response.headers.get("inference-header-content-length"))
                    )
                except (ValueError, KeyError, TypeError) as error:
                    fault = f"unreadable answer: {error}"
                if fault:
                    response.failure(fault)
            elif response.status_code:
                response.failure(f"status {response.status_code}: {_reason(response.content)}")
        if not response.status_code:
            time.sleep(_PAUSE_S)


@events.init.add_listener
def look(environment: Environment, runner: Any, web_ui: Any, **_: Any) -> None:  # Any: locust's, unused but for a class
    """Before anything is sent: is there a server, and does it answer for the model?"""
    if not isinstance(runner, LocalRunner):
        sys.exit("this load test runs in one process: leave out --processes, --master and --worker")
    # The tables of locust round to whole milliseconds; `end` prints its own.
    logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)
    if web_ui is None:
        host = (environment.host or DigitUser.host).rstrip("/")
        try:
            version = find_model(host)
        except NoModel as error:
            sys.exit(str(error))
        options = environment.parsed_options
        users, seconds = (options.num_users or 1, options.run_time) if options else (1, None)
        print(
            f"{users} users ask {host} for model {MODEL} version {version}"
            + (f", for {seconds} s" if seconds else ", until Ctrl-C"),
            flush=True,
        )


@events.test_start.add_listener
def begin(**_: Any) -> None:
    DigitUser.test_run = Run(load_samples())


@events.request.add_listener
def enter(name: str, response_time: float, exception: BaseException | str | None, **_: Any) -> None:
    DigitUser.test_run.tally.enter(name, response_time, None if exception is None else str(exception))


@events.test_stop.add_listener
def stop(**_: Any) -> None:
    DigitUser.test_run.stop()


@events.quitting.add_listener
def end(environment: Environment, **_: Any) -> None:
    if (run := getattr(DigitUser, "test_run", None)) is None:
        return
    if not run.seconds:  # Ctrl-C: nobody has stopped the test before
        run.stop()
    print("\n" + answers.summary(run.tally, run.ledger, run.seconds, run.client_cpu), flush=True)
    environment.process_exit_code = 1 if answers.faults(run.tally, run.ledger) else 0


class NoModel(Exception):
    """There is nothing to test. The message is one line and says what to do."""


def find_model(host: str) -> str:
    """The version of the model that answers at `host`. Raises NoModel."""
    try:
        with urllib.request.urlopen(f"{host}/v2/models/{MODEL}", timeout=5) as response:
            return str(json.load(response)["versions"][-1])
    except urllib.error.HTTPError as error:
        raise NoModel(f"{host} answers {error.code} for model {MODEL}: {_reason(error.read())}") from error
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", error)
        raise NoModel(f"no server at {host} ({reason}): start one with `make serve`, or say where with URL=") from error


def _reason(body: bytes | None) -> str:
    """The message of an error body."""
    try:
        return str(json.loads(body or b"")["error"])
    except (ValueError, KeyError, TypeError):
        return (body or b"")[:80].decode("utf-8", "replace") or "no body"
