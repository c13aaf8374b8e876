"""`python -m loadtests.bench` with every peer that is installed: one second a run, and all of it in the record."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadtests import sides
from loadtests.record import Record
from loadtests.targets import targets

ROOT = Path(__file__).parents[2]
SERVERS = ["Shoal", "mosec, batch 16", "mosec, batch 64", "FastAPI"]
MISSING = [name for name, there in [("wrk", shutil.which("wrk"))] if not there] + [
    peer for peer in sides.PEERS if not sides.is_installed(peer)
]


@pytest.mark.skipif(
    bool(MISSING) and os.environ.get("SHOAL_REQUIRE_ALL") != "1",
    reason=f"not installed: {', '.join(MISSING)}; `make peers` installs the peers, a package of the system wrk",
)
@pytest.mark.timeout(300)
def test_all_servers_answer_rightly_and_side_by_side(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.bench", "--workloads", "tiny,mnist-json", "--clients", "8"]
    command += ["--seconds", "1", "--rounds", "1", "--starts", "1", "--out", str(tmp_path / "record")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    record = msgspec.json.decode((tmp_path / "record" / "record.json").read_bytes(), type=Record)
    assert record.absent == []
    assert set(record.peers) == set(sides.PEERS)
    for workload in record.workloads:
        assert [server.name for server in workload.servers] == [
            "Shoal",
            "mosec, batch 16",
            "mosec, batch 64",
            "FastAPI",
        ]
        for server in workload.servers:
            assert (server.fault, server.checked_answers) == ("", 50)
            (run,) = server.runs
            assert run.result.requests > 8
            assert run.result.non_2xx == run.result.socket_errors == 0
            assert run.server_cpu_seconds > 0
            assert server.memory_mb > 20
    tiny = {server.name: server for server in record.workloads[0].servers}
    # mosec: Python, the server, and a worker a core; FastAPI: Python and a worker a core at least.
    assert tiny["mosec, batch 16"].processes >= 2 + record.machine.cores
    assert tiny["FastAPI"].processes >= 1 + record.machine.cores
    assert {entry.server for entry in record.starts} == set(tiny)
    assert all(0.05 < seconds < 60 for entry in record.starts for seconds in entry.seconds)
    page = (tmp_path / "record" / "README.md").read_text()
    assert all(target.what in page for target in targets(record))
