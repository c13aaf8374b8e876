"""Commits eight at a time or all of a turn of the event loop at once, and how many frontends, on a model of one product.

In turns; wrk from 64 and 256 connections. Run from the root of the repository: python loadtests/records/.../measure.py
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, os.getcwd())
from loadtests import networks  # noqa: E402
from loadtests.processes import cpu_seconds  # noqa: E402
from loadtests.server import free_port  # noqa: E402

START = """
import sys
import service.batching.client as client
from service.__main__ import main
client._SEND_AT = int(sys.argv[1])
sys.exit(main(["serve", *sys.argv[2:]]))
"""
WAYS = [
    ("1 frontend, 8 at a time", 8, 1),
    ("1 frontend, a turn's at once", 10**9, 1),
    ("2 frontends, 8 at a time", 8, 2),
    ("one process, 8 at a time", 8, 0),
]
SECONDS, ROUNDS = 3, 4


def measure(repository, send_at, frontends):
    port = free_port()
    flags = ["--repository", str(repository), "--port", str(port), "--frontends", str(frontends)]
    flags += ["--engine.tune-budget-s", "0", "--engine.instances", "2", "--engine.threads", "1", "--batching.max-batch-size", "16"]
    process = subprocess.Popen([sys.executable, "-c", START, str(send_at), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready").close()
                break
            except OSError:
                time.sleep(0.02)
        seen = []
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write('wrk.method="POST"\nwrk.body=string.rep("a",784)\nwrk.headers["Content-Type"]="application/octet-stream"\n')
            script.flush()
            for clients in (64, 256):
                line = ["wrk", "-t1", f"-c{clients}", "--latency", "-s", script.name, f"http://127.0.0.1:{port}/predict/tiny"]
                subprocess.run([*line, "-d1s"], capture_output=True, check=True)
                before = cpu_seconds(process.pid)
                said = subprocess.run([*line, f"-d{SECONDS}s"], capture_output=True, text=True, check=True).stdout
                used = cpu_seconds(process.pid) - before
                assert "Non-2xx" not in said, said
                n = int(re.search(r"(\d+) requests in", said)[1])
                seen.append((n / SECONDS, 1e6 * used / n))
        return seen
    finally:
        process.terminate()
        process.wait()


with tempfile.TemporaryDirectory() as folder:
    networks.build("tiny", Path(folder))
    seen = {name: [] for name, _, _ in WAYS}
    for _ in range(ROUNDS):
        for name, send_at, frontends in WAYS:
            seen[name].append(measure(folder, send_at, frontends))
for name, runs in seen.items():
    for i, clients in enumerate((64, 256)):
        rates, costs = zip(*(run[i] for run in runs), strict=True)
        print(
            f"{name:30}{clients:4} clients {statistics.median(rates):9,.0f} requests/s  ({min(rates):,.0f} to {max(rates):,.0f})"
            f"{statistics.median(costs):8.1f} us of CPU a request  ({min(costs):.1f} to {max(costs):.1f})"
        )
