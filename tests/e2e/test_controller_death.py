"""The controller, or a process it works with, dies at any moment: requests go on, and no half version ever serves."""

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.lifecycle.conftest import write_version
from tests.support.server import Server, running_server, wait_until

FAST = (
    "--port",
    "0",
    "--frontends",
    "2",
    "--engine.tune-budget-s",
    "0",
    "--engine.instances",
    "1",
    "--engine.threads",
    "1",
)


@contextmanager
def asking(server: Server) -> Iterator[tuple[list[int], list[str]]]:
    """The factors seen, and what went wrong, while one client asks without end."""
    seen: list[int] = []
    wrong: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=20) as client:
            x = 1
            while not stop.is_set():
                x += 1
                body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [x]}]}
                answer = client.post("/v2/models/times/infer", json=body)
                if answer.status_code != 200 or answer.json()["outputs"][0]["data"][0] % x:
                    wrong.append(answer.text)
                else:
                    seen.append(answer.json()["outputs"][0]["data"][0] // x)
                time.sleep(0.002)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen, wrong
    finally:
        stop.set()
        thread.join()


def admin(server: Server) -> str:
    (line,) = [line for line in server.printed if line.startswith("  admin")]
    return line.split()[-1]


def test_requests_go_on_without_the_controller_and_the_next_one_knows_how_things_stood(tmp_path: Path) -> None:
    write_version(tmp_path, "times", 1, 10)
    write_version(tmp_path, "times", 2, 100)
    flags = (*FAST, "--repository", str(tmp_path), "--control.mode", "explicit", "--admin.port", "0")
    with running_server(*flags) as server, asking(server) as (seen, wrong):
        url = f"{admin(server)}/admin/models/times"
        httpx.put(f"{url}/aliases/stable", json={"version": "1"}, trust_env=False, timeout=60).raise_for_status()
        (controller,) = server.children()["controller"]
        os.kill(controller, signal.SIGKILL)
        wait_until(lambda: server.children()["controller"] not in ([], [controller]), "another controller", 10)
        told = httpx.get(url, trust_env=False).json()
        assert told["routing"]["aliases"] == {"stable": "1"}
        assert [each["state"] for each in told["versions"]] == ["READY", "READY"]
        write_version(tmp_path, "times", 3, 1000)

        def loads() -> bool:
            answer = httpx.post(f"{url}/load", trust_env=False, timeout=60)
            return answer.status_code == 200

        wait_until(loads, "a load by the new controller", 60)
        assert httpx.get(url, trust_env=False).json()["routing"]["aliases"] == {"stable": "1"}
        at = len(seen)
        wait_until(lambda: len(seen) > at + 20, "more answers", 20)
    assert wrong == []
    assert seen[-1] == 10


@pytest.mark.parametrize("victim", ["controller", "preflight"])
def test_killed_at_any_moment_of_a_load_no_half_version_serves(tmp_path: Path, victim: str) -> None:
    write_version(tmp_path, "times", 1, 10)
    flags = (*FAST, "--repository", str(tmp_path), "--control.mode", "explicit", "--admin.port", "0")
    chance = random.Random(7)
    with running_server(*flags) as server, asking(server) as (seen, wrong):
        url = f"{admin(server)}/admin/models/times/load"
        for version in (2, 3, 4):
            write_version(tmp_path, "times", version, 10**version)
            asked = threading.Thread(target=_try_to_load, args=(url,))
            asked.start()
            time.sleep(chance.random())
            _kill(server, victim)
            asked.join()
        wait_until(lambda: _try_to_load(url) == 200, "a load that nobody kills", 60)
        at = len(seen)
        wait_until(lambda: len(seen) > at + 20, "more answers", 20)
    assert wrong == []
    assert set(seen) <= {10, 100, 1000, 10_000}
    assert seen[-1] == 10_000


def test_killed_while_a_version_is_published_nothing_of_it_is_served(tmp_path: Path) -> None:
    write_version(tmp_path, "times", 1, 10)
    whole = write_version(tmp_path / "beside", "times", 2, 100)
    poll = ("--control.mode", "poll", "--control.settle-s", "0.2", "--control.rescan-s", "1")
    with running_server(*FAST, "--repository", str(tmp_path), *poll) as server, asking(server) as (seen, wrong):
        half = tmp_path / "times" / ".2-half"  # as publish writes it, killed before its rename
        shutil.copytree(whole, half)
        torn = tmp_path / "times" / "3"
        torn.mkdir()
        (torn / "model.onnx").write_bytes((whole / "model.onnx").read_bytes()[:40])  # as cp leaves it, killed

        def is_refused() -> bool:
            index = httpx.post(f"{server.url}/v2/repository/index", trust_env=False).json()
            return any(each["version"] == "3" and each["state"] == "UNAVAILABLE" for each in index)

        wait_until(is_refused, "the torn version's refusal", 30)
        assert set(seen) == {10}
    assert wrong == []


def _try_to_load(url: str) -> int:
    try:
        return httpx.post(url, trust_env=False, timeout=60).status_code
    except httpx.HTTPError:
        return 0


def _kill(server: Server, victim: str) -> None:
    controllers = server.children()["controller"]
    victims = controllers
    if victim == "preflight":
        paths = [Path(f"/proc/{pid}/task/{pid}/children") for pid in controllers]
        victims = [int(child) for path in paths if path.exists() for child in path.read_text().split()]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
