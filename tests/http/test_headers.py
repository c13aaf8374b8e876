"""What every answer carries, whatever became of the request: X-Request-ID and Server-Timing."""

import re
from collections.abc import Mapping

import httpx
import pytest

from tests.support.server import Server
from tests.support.wire import Wire, head

GOOD = {"json": {"instances": [[1, 2, 3, 4]]}}
EVERY_KIND_OF_ANSWER = [
    ("POST", "/predict/echo", GOOD, 200),
    ("POST", "/predict/echo", {"json": {"instances": [[1, 2, 3]]}}, 400),
    ("POST", "/predict/echo", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
    ("POST", "/predict/echo", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
    ("POST", "/predict/nothing", GOOD, 404),
    ("GET", "/predict/echo", {}, 405),
    ("POST", "/predict/picky", {"json": {"instances": [10]}}, 500),
    (
        "POST",
        "/v2/models/echo/infer",
        {"content": b"abcd", "headers": {"content-type": "application/octet-stream"}},
        200,
    ),
    ("POST", "/v2/models/echo/infer", {"json": {}}, 400),
    ("GET", "/health/live", {}, 200),
    ("GET", "/health/ready", {}, 200),
    ("GET", "/v2", {}, 200),
    ("GET", "/v2/models/echo", {}, 200),
    ("GET", "/v2/models/nothing", {}, 404),
    ("GET", "/nothing", {}, 404),
    ("POST", "/v2/models", {}, 405),
    ("GET", "/", {}, 200),
    ("GET", "/", {"headers": {"accept": "text/html"}}, 302),
    ("GET", "/docs", {}, 200),
    ("GET", "/docs/openapi.json", {}, 200),
    ("GET", "/metrics", {}, 200),
    ("GET", "/static/swagger-ui/swagger-ui.css", {}, 200),
    ("GET", "/static/nothing", {}, 404),
]


def server_timing(headers: Mapping[str, str]) -> dict[str, float]:
    """Its metrics by name. Raises AssertionError unless the header is what W3C Server Timing §2 allows."""
    fields = {}
    for metric in headers["server-timing"].split(", "):
        match = re.fullmatch(r'(\w+);(?:dur=(\d+\.\d+)|desc="(\d+)")', metric)
        assert match, metric
        fields[match[1]] = float(match[2] or match[3])
    return fields


@pytest.mark.parametrize(("method", "path", "rest", "status"), EVERY_KIND_OF_ANSWER)
def test_every_answer_has_its_request_id_and_timing_once(
    http: httpx.Client, method: str, path: str, rest: dict, status: int
) -> None:
    answer = http.request(method, path, **rest)
    assert answer.status_code == status, answer.text
    for header in ("x-request-id", "server-timing", "content-type", "content-length"):
        if (header, status) != ("content-type", 302):
            assert len(answer.headers.get_list(header)) == 1, header
    assert server_timing(answer.headers)["total"] < 10_000
    given = http.request(method, path, **{**rest, "headers": {**rest.get("headers", {}), "x-request-id": "mine-1"}})
    assert given.headers["x-request-id"] == "mine-1"


def test_generated_request_ids_are_unique(http: httpx.Client) -> None:
    ids = [http.post("/predict/echo", **GOOD).headers["x-request-id"] for _ in range(20)]
    ids += [http.get("/health/live").headers["x-request-id"] for _ in range(20)]
    assert len(set(ids)) == 40


@pytest.mark.parametrize(
    "given", ["a", "x" * 128, "a b,c;d=", "00-11111111111111111111111111111111-2222222222222222-01"]
)
def test_a_printable_request_id_is_echoed(http: httpx.Client, given: str) -> None:
    assert http.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"\xc3\xa9", b"tab\tstop", b"\xff\xfe"])
def test_an_unusable_request_id_is_replaced(server: Server, given: bytes) -> None:
    with Wire(server) as wire:
        for request in (head("GET", "/health/live"), head("POST", "/predict/echo", "Content-Length: 0")):
            wire.send(request.removesuffix(b"\r\n") + b"X-Request-ID: " + given + b"\r\n\r\n")
            assert wire.answer().headers["x-request-id"] not in ("", given.decode("latin-1"))


def test_the_id_of_a_failed_request_is_in_the_message(http: httpx.Client) -> None:
    answer = http.post("/predict/picky", json={"instances": [10]}, headers={"x-request-id": "find-me"})
    assert answer.status_code == 500
    assert answer.json()["error"] == "the model failed on this input (request find-me)"


def test_timing_of_a_prediction_tells_where_the_time_went(http: httpx.Client) -> None:
    timing = server_timing(http.post("/predict/slow", json={"instances": [7]}).headers)
    assert timing.keys() == {"decode", "queue", "compute", "total", "batch"}
    assert timing["batch"] == 1
    assert timing["compute"] > 10
    assert timing["decode"] + timing["queue"] + timing["compute"] <= timing["total"] + 0.1


def test_timing_without_a_run_has_only_the_total(http: httpx.Client) -> None:
    assert server_timing(http.post("/predict/echo", json={}).headers).keys() == {"total"}


def test_answers_name_neither_the_server_software_nor_its_version(http: httpx.Client) -> None:
    assert "server" not in http.get("/health/live").headers


@pytest.mark.parametrize("path", ["/predict/echo", "/health/live"])
def test_connections_are_kept_and_pipelined_requests_answered_in_order(server: Server, path: str) -> None:
    with Wire(server) as wire:
        if path == "/predict/echo":
            bodies = [b'{"instances": [[%d, 0, 0, 0]]}' % i for i in range(5)]
            content_type = "Content-Type: application/json"
            wire.send(
                b"".join(head("POST", path, content_type, f"Content-Length: {len(body)}") + body for body in bodies)
            )
            assert [wire.answer().json()["predictions"][0]["same"][0] for _ in bodies] == list(range(5))
        else:
            wire.send(head("GET", path) * 5)
            assert [wire.answer().status for _ in range(5)] == [200] * 5
