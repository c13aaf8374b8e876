"""A fault of ours in the engine: who waits is answered, and the process ends so that somebody starts it again."""

import subprocess
import sys
import threading
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
# The real service, with an executor that raises what no run may raise.
BROKEN_SERVICE = """
import sys
import service.engine.loop
from service.__main__ import main

def broken(instance, batch):
    raise TypeError("broken on purpose")

service.engine.loop.run_batch = broken
sys.exit(main(["serve", "--port", "0", "--engine.tune-budget-s", "0"]))
"""


def test_requests_are_answered_503_and_the_process_ends_with_1() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BROKEN_SERVICE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    alarm = threading.Timer(30, process.kill)
    alarm.start()
    try:
        url = process.stdout.readline().split()[-1]
        answer = httpx.post(f"{url}/predict/mnist", content=bytes(784), timeout=10)
        assert answer.status_code == 503
        assert "may be sent again" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"
        _, log = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "bug: shoal-executor" in log
        assert "broken on purpose" in log
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
