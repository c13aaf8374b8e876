"""The response cache over a real server: what hits, one run for identical requests in flight, and what is counted."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.frontend.grpc.open_inference_pb2 import ModelConfigRequest
from tests.http.conftest import FAST_START, Serve
from tests.http.test_extensions import stats
from tests.http.test_headers import server_timing
from tests.http.test_infer_json import infer, tensor
from tests.support.build_any import build_any_repository
from tests.support.pictures import encode, quarters
from tests.support.rpc import arrays, client, request
from tests.support.server import Server, running_server, wait_until
from tests.support.tensors import binary
from tests.support.wire import Wire, WireAnswer

OCTETS = "Content-Type: application/octet-stream"
MIB = "1048576"
N_IDENTICAL = 200


@pytest.fixture(scope="module")
def models(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cached")
    others = build_any_repository(tmp_path_factory.mktemp("any"))
    for folder in (*(repository / name for name in ("echo", "slow", "picky", "scores")), others / "matrix"):
        (root / folder.name).symlink_to(folder)
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    """One frontend, so that every connection meets the same cache. Each test sends tensors of its own."""
    flags = ("--frontends", "1", "--cache.max-bytes", MIB, "--server.grpc-port", "0")
    with running_server(*FAST_START, "--repository", str(models), *flags) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        yield http
    server.assert_settled()


def runs(http: httpx.Client, model: str) -> int:
    found: int = stats(http, f"/v2/models/{model}/stats")["execution_count"]
    return found


def is_hit(answer: httpx.Response | WireAnswer) -> bool:
    return "cache;desc=hit" in answer.headers["server-timing"]


def engine_of(server: Server) -> int:
    """The process of the server that has onnxruntime in it."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (engine,) = [int(child) for child in children if "onnxruntime" in Path(f"/proc/{child}/maps").read_text()]
    return engine


@contextmanager
def paused_engine(server: Server) -> Iterator[None]:
    """Nothing runs meanwhile, so requests meet in flight whatever the machine's speed."""
    engine = engine_of(server)
    os.kill(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine, signal.SIGCONT)


# ── hits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hit_has_the_body_of_the_answer_that_ran(http: httpx.Client) -> None:
    bodies = [http.post("/predict/echo", json={"instances": [[1, 1, 1, 1]]}) for _ in range(3)]
    assert len({answer.content for answer in bodies}) == 1
    assert [is_hit(answer) for answer in bodies] == [False, True, True]
    assert server_timing(bodies[0].headers)["batch"] == 1
    timing = bodies[1].headers["server-timing"]
    assert re.fullmatch(r"decode;dur=\d+\.\d{3}, queue;dur=0\.000, total;dur=\d+\.\d{3}, cache;desc=hit", timing)


def test_forms_of_the_same_tensor_are_one_request(server: Server, http: httpx.Client) -> None:
    row = np.array([[2, 0, 0, 255]], np.uint8)
    before = runs(http, "echo")
    answers = [
        http.post("/predict/echo", content=row.tobytes(), headers={"content-type": "application/octet-stream"}),
        http.post("/predict/echo", json={"instances": row.tolist()}),
        http.post("/predict/echo?top_k=3", json={"instances": row.tolist()}, headers={"accept": "text/csv"}),
        http.post("/v1/models/echo:predict", json={"instances": row.tolist()}),
        infer(http, "echo", tensor(row.tolist(), [1, 4]), id="mine"),
        infer(http, "echo", tensor(row.ravel().tolist(), [1, 4]), outputs=[{"name": "half"}]),
        binary(http, "echo", {"x": ("UINT8", row)}),
    ]
    assert [is_hit(answer) for answer in answers] == [False, *[True] * 6]
    assert answers[4].json()["id"] == "mine"
    assert answers[5].json()["outputs"] == [
        {"name": "half", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 127.5]}
    ]
    with client(server) as rpc:
        for raw in (True, False):
            outputs = arrays(rpc.ModelInfer(request("echo", {"x": ("UINT8", row)}, raw)))
            assert outputs["same"].tolist() == row.tolist()
    assert runs(http, "echo") == before + 1


def test_two_images_with_the_same_pixels_are_one_request(http: httpx.Client) -> None:
    picture = quarters(3, 30, 60, 90)
    answers = [http.post("/predict/scores", content=encode(picture, kind)) for kind in ("PNG", "BMP", "PNG")]
    assert [is_hit(answer) for answer in answers] == [False, True, True]
    assert len({answer.content for answer in answers}) == 1
    assert not is_hit(http.post("/predict/scores", content=encode(quarters(3, 30, 60, 91))))


def test_the_same_numbers_in_another_shape_are_another_request(http: httpx.Client) -> None:
    numbers, bias = np.arange(4, dtype=np.float32), ("FP32", np.array(4, np.float32))
    for shape in ((1, 4), (4, 1), (2, 2)):
        inputs = {"x": ("FP32", numbers.reshape(shape)), "bias": bias}
        first, second = binary(http, "matrix", inputs), binary(http, "matrix", inputs)
        assert (is_hit(first), is_hit(second)) == (False, True)
        assert first.content == second.content
        assert f'"shape":{list(shape[::-1])}'.replace(" ", "").encode() in first.content


def test_an_error_is_not_kept(http: httpx.Client) -> None:
    before = runs(http, "picky")
    for _ in range(2):
        answer = infer(http, "picky", tensor([50], [1], "INT64"))
        assert answer.status_code == 500
        assert not is_hit(answer)
    counts = stats(http, "/v2/models/picky/stats")
    assert counts["inference_stats"]["cache_hit"]["count"] == 0
    assert counts["execution_count"] >= before + 2


# ── one run for those in flight ──────────────────────────────────────────────────────────────────────────────────────


async def test_identical_requests_at_once_are_run_once(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        before = runs(http, "slow")
        limits = httpx.Limits(max_connections=N_IDENTICAL)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60, trust_env=False) as many:
            asked = [many.post("/predict/slow", json={"instances": [1001]}) for _ in range(N_IDENTICAL)]
            answers = await asyncio.gather(*asked)
        assert {answer.content for answer in answers} == {answers[0].content}
        assert answers[0].json()["predictions"] == [{"y": [1001]}]
        assert sum(is_hit(answer) for answer in answers) == N_IDENTICAL - 1
        assert runs(http, "slow") == before + 1
    server.assert_settled()


def in_flight(stack: ExitStack, server: Server, value: int, **parameters: Any) -> Wire:
    """A request to echo that has its slot once this returns."""
    before = server.items_in_flight()
    wire = post(stack, server, value, **parameters)
    wait_until(lambda: server.items_in_flight() == before + 1, "the request has its slot")
    return wire


def post(stack: ExitStack, server: Server, value: int, **parameters: Any) -> Wire:
    wire = stack.enter_context(Wire(server))
    text = httpx.Request(
        "POST", "http://test", json={"inputs": [tensor([value, 7, 7, 7], [1, 4])], "parameters": parameters}
    )
    wire.post("/v2/models/echo/infer", text.read(), "Content-Type: application/json")
    return wire


def assert_answers(wire: Wire, value: int, hit: bool) -> None:
    answer = wire.answer()
    assert answer.status == 200
    assert answer.json()["outputs"][0]["data"] == [value, 7, 7, 7]
    assert is_hit(answer) == hit


def test_who_waits_is_answered_when_the_client_whose_request_runs_leaves(server: Server, http: httpx.Client) -> None:
    before = runs(http, "echo")
    with ExitStack() as stack:
        with paused_engine(server):
            first = in_flight(stack, server, 100)
            others = [in_flight(stack, server, 100) for _ in range(3)]
            first.socket.close()
            server.metrics()  # the frontend has seen by now that it left
            server.metrics()
        for wire in others:
            assert_answers(wire, 100, hit=True)
    assert runs(http, "echo") == before + 1


def test_who_waits_keeps_a_deadline_of_its_own(server: Server, http: httpx.Client) -> None:
    with ExitStack() as stack:
        with paused_engine(server):
            patient = in_flight(stack, server, 101)
            hasty = post(stack, server, 101, timeout=50_000)
            assert hasty.answer().status == 504
            leaves = in_flight(stack, server, 101)
            leaves.socket.close()
            wait_until(lambda: server.items_in_flight() == 1, "who waited and left has no slot")
        assert_answers(patient, 101, hit=False)


def test_the_deadline_of_the_request_that_runs_is_not_that_of_who_waits(server: Server, http: httpx.Client) -> None:
    with ExitStack() as stack:
        with paused_engine(server):
            hasty = in_flight(stack, server, 102, timeout=500_000)
            patient = in_flight(stack, server, 102)
            assert hasty.answer().status == 504
        assert_answers(patient, 102, hit=False)


def test_an_engine_s_death_fails_those_who_wait_and_its_successor_knows_nothing(serve: Serve, models: Path) -> None:
    server = serve("--frontends", "1", "--cache.max-bytes", MIB, models=models)
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http, ExitStack() as stack:
        row = {"instances": [[103, 7, 7, 7]]}
        assert not is_hit(http.post("/predict/echo", json=row))
        assert is_hit(http.post("/predict/echo", json=row))
        engine = engine_of(server)
        os.kill(engine, signal.SIGSTOP)
        wires = [in_flight(stack, server, 104) for _ in range(3)]
        os.kill(engine, signal.SIGKILL)
        assert [wire.answer().status for wire in wires] == [503] * 3
        wait_until(lambda: http.get("/v2/models/echo/ready").status_code == 200, "the successor has it", 20)
        assert not is_hit(http.post("/predict/echo", json=row))


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hits_and_misses_are_counted_over_all_frontends(serve: Serve, models: Path) -> None:
    server = serve("--frontends", "2", "--cache.max-bytes", MIB, models=models)
    for _ in range(20):  # each over a connection of its own
        with httpx.Client(base_url=server.url, trust_env=False) as http:
            assert http.post("/predict/echo", json={"instances": [[1, 2, 3, 4]]}).status_code == 200
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        counts, durations = stats(http), stats(http)["inference_stats"]
    hits, misses = durations["cache_hit"], durations["cache_miss"]
    assert misses["count"] in (1, 2), "once by each frontend that was asked"
    assert hits["count"] == 20 - misses["count"]
    assert min(hits["ns"], misses["ns"]) > 0
    assert durations["success"]["count"] == durations["queue"]["count"] == 20
    for name in ("compute_input", "compute_infer", "compute_output"):
        assert durations[name]["count"] == misses["count"], name
    assert counts["execution_count"] == counts["inference_count"] == misses["count"]
    seen = server.metrics()
    assert seen["shoal_cache_hits_total", "echo"] == hits["count"]
    assert seen["shoal_cache_misses_total", "echo"] == misses["count"]
    assert seen["shoal_cache_bytes", ""] > 0
    assert seen["shoal_cache_evictions_total", ""] == 0
    assert seen["shoal_request_seconds_count", "echo"] == 20


def test_no_more_is_kept_than_allowed(serve: Serve, models: Path) -> None:
    server = serve("--frontends", "1", "--cache.max-bytes", "20000", models=models)
    with Wire(server) as wire:
        for i in range(100):
            wire.post("/predict/echo", bytes([i, 0, 0, 0]), OCTETS)
            assert wire.answer().json()["predictions"][0]["same"] == [i, 0, 0, 0]
    seen = server.metrics()
    assert 0 < seen["shoal_cache_bytes", ""] <= 20_000
    assert 0 < seen["shoal_cache_evictions_total", ""] < 100


def test_the_configuration_says_whether_answers_are_kept(server: Server, http: httpx.Client) -> None:
    assert http.get("/v2/models/echo/config").json()["response_cache"] == {"enable": True}
    with client(server) as rpc:
        assert rpc.ModelConfig(ModelConfigRequest(name="echo")).config.response_cache.enable
