"""A compressed body that would fill the memory is refused before it does."""

import gzip
from pathlib import Path

import httpx
import pytest

from tests.http.conftest import Serve
from tests.support.server import Server

MAX_BODY_BYTES = 1 << 20
MOST_GROWTH_BYTES = 32 << 20


def peak_bytes(server: Server) -> int:
    """The most memory that each of the server's processes had, summed."""
    pids, peaks = [server.process.pid], 0
    for pid in pids:  # grows as children are found
        status = Path(f"/proc/{pid}/status").read_text()
        peaks += 1024 * int(status.partition("VmHWM:")[2].split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += [int(child) for child in (task / "children").read_text().split()]
    return peaks


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("path", ["/v2/models/echo/infer", "/predict/echo"])
def test_a_bomb_takes_no_more_memory_than_a_body_may_have(serve: Serve, path: str) -> None:
    server = serve("--server.max-body-bytes", f"{MAX_BODY_BYTES}")
    bomb = gzip.compress(bytes(256 << 20))
    assert len(bomb) < MAX_BODY_BYTES
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        headers = {"content-encoding": "gzip", "content-type": "application/json"}
        small = http.post(path, content=gzip.compress(b"{}"), headers=headers)
        assert small.status_code == 400
        before = peak_bytes(server)
        for _ in range(8):
            answer = http.post(path, content=bomb, headers=headers)
            assert answer.status_code == 413
            assert answer.json().keys() == {"error"}
    assert peak_bytes(server) - before < MOST_GROWTH_BYTES
