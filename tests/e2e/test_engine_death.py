"""Processes that die: who waits is answered, another takes the place, and where that does not help the service ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.server import ROOT, Server, running_server, wait_until

# The real service, with an executor that raises what no run may raise.
BROKEN_SERVICE = """
import sys
import service.engine.loop
from service.__main__ import main

def broken(instance, batch, model):
    raise TypeError("broken on purpose")

service.engine.loop.run_batch = broken
sys.exit(main(["serve", "--port", "0", "--engine.tune-budget-s", "0", *sys.argv[1:]]))
"""
FAST_START = ("--port", "0", "--engine.tune-budget-s", "0")


@contextmanager
def broken_service(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", BROKEN_SERVICE, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    alarm = threading.Timer(60, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[-1]
    finally:
        alarm.cancel()
        process.kill()
        process.wait()


def post(url: str) -> httpx.Response:
    return httpx.post(f"{url}/predict/mnist", content=bytes(784), timeout=10, trust_env=False)


def children(server: Server) -> list[int]:
    """Engines before frontends before the controller, in the order of their start."""
    path = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_in_one_process_requests_are_answered_503_and_the_process_ends_with_1() -> None:
    with broken_service("--frontends", "0") as (process, url):
        answer = post(url)
        assert answer.status_code == 503
        assert "may be sent again" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"
        _, log = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "bug: shoal-executor" in log
        assert "broken on purpose" in log


def test_an_engine_that_keeps_dying_ends_the_service_with_1() -> None:
    with broken_service("--frontends", "1") as (process, url):
        statuses = set()
        while process.poll() is None:
            try:
                statuses.add(post(url).status_code)
            except httpx.TransportError:  # the last of them closed the port
                break
            time.sleep(0.02)
        _, log = process.communicate(timeout=20)
        assert statuses == {503}
        assert process.returncode == 1
        assert log.count("broken on purpose") == 6
        assert log.count("it is replaced") == 6
        assert "the service ends" in log


@pytest.mark.parametrize("frontends", [1, 2])
def test_an_engine_that_is_killed_is_replaced_and_what_it_ran_is_answered(frontends: int) -> None:
    with running_server(*FAST_START, "--frontends", str(frontends)) as server:
        answers: list[int] = []
        stop = threading.Event()

        def load() -> None:
            with httpx.Client(timeout=10, trust_env=False) as client:
                while not stop.is_set():
                    answers.append(client.post(f"{server.url}/predict/mnist", content=bytes(784)).status_code)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: answers.count(200) > 20, "answers")
        os.kill(children(server)[0], signal.SIGKILL)
        wait_until(lambda: 503 in answers, "a request that says that the engine died")
        n_answered = answers.count(200)
        wait_until(lambda: answers.count(200) > n_answered + 20, "answers of the new engine")
        stop.set()
        for thread in threads:
            thread.join()
        assert set(answers) == {200, 503}
        server.assert_settled()
        assert "engine 0 ended by signal 9; it is replaced" in server.log()


def test_a_frontend_that_is_killed_is_replaced_and_its_slots_come_back(tmp_path: Path) -> None:
    with running_server(*FAST_START, "--frontends", "2", "--batching.max-queue-items", "64") as server:
        for _ in range(3):
            victim = server.children()["frontend"][-1]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda gone=victim: len({*server.children()["frontend"]} - {gone}) == 2, "another")
            wait_until(lambda: httpx.get(f"{server.url}/health/ready", trust_env=False).status_code == 200, "ready")
            statuses = []
            for _ in range(80):  # more than each frontend has slots
                with httpx.Client(trust_env=False, timeout=10) as client:  # a connection each: both frontends
                    statuses.append(client.post(f"{server.url}/predict/mnist", content=bytes(784)).status_code)
            assert set(statuses) == {200}
        assert server.log().count("it is replaced") == 3


def test_children_end_when_their_supervisor_is_killed() -> None:
    with running_server(*FAST_START, "--frontends", "2") as server:
        pids = children(server)
        assert len(pids) == 4
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all children gone")
        server.signalled = True
        server.process.returncode = 0  # killed on purpose
