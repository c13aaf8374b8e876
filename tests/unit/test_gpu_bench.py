"""What `python -m loadtests.gpu_bench` writes, and the pauses it has wrk make."""

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from loadtests import bench, gpu_bench, record, wrk
from loadtests.gpu_bench import GpuRecord
from loadtests.machine import Machine
from loadtests.server import BenchError
from loadtests.wrk import Load


def made_up() -> GpuRecord:
    return GpuRecord(
        created_at="2026-01-02T00:00:00",
        command="the command",
        commit="abc",
        machine=Machine("a CPU", 4, 8.0, "6.1", 0.1),
        packages={"python": "3.11", "onnxruntime": "1.32"},
        device="cuda",
        gpu="a GPU",
        model="mnist",
        sha256="5ha",
        engine={},
        rates={"engine": {1: 5000.0, 2: 9000.0}, "torch": {1: 1000.0}},
        served=[gpu_bench._served(Load(900, 1.0, 1.5, 4.5, 0, 1, 0.1), 256, 0.5, 1800.0)],
    )


def test_the_page_has_every_rate_and_every_load() -> None:
    page = gpu_bench.page(made_up())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["batch", "engine", "torch"]
    assert ["1", "5,000", "1,000"] in rows
    assert ["2", "9,000", "-"] in rows
    assert ["256", "50%", "50%", "900", "1.50", "4.50", "1"] in rows
    assert page.startswith("# mnist on a GPU, 2026-01-02")


def test_the_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record.write(tmp_path / "new", made_up(), "the page")
    assert msgspec.json.decode((tmp_path / "new" / "record.json").read_bytes(), type=GpuRecord) == made_up()


def test_the_newest_version_with_torchs_weights_is_measured(tmp_path: Path) -> None:
    for version, files in (("9", ["checkpoint.pt"]), ("10", ["checkpoint.pt", "model.onnx"]), ("11", ["model.onnx"])):
        folder = tmp_path / "models" / "small" / version
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).write_text(version)
    repository = tmp_path / "models"
    onnx = bench.published(repository, "small", tmp_path / "target", holding="checkpoint.pt")
    assert (onnx.read_text(), onnx.parent.name) == ("10", "10")
    with pytest.raises(BenchError, match=r"no version of model 'small' in .* has absent\.pt"):
        bench.published(repository, "small", tmp_path / "other", holding="absent.pt")


@pytest.fixture
def url() -> Iterator[str]:
    """A server that answers every POST at once."""

    class Empty(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_connections_pause_before_each_request(url: str) -> None:
    """Two connections for a second with 100 ms on average between their requests: about 20."""
    load = wrk.send(url, [b"a", b"b"], "text/plain", clients=2, seconds=1, think_ms=100)
    assert 0 < load.requests < 80
