"""Statistics, configuration, the repository's index, and what is answered without being changeable."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.conftest import Serve
from tests.http.test_infer_json import infer, tensor
from tests.support.server import Server, wait_until

OCTETS = {"content-type": "application/octet-stream"}


def stats(http: httpx.Client, path: str = "/v2/models/echo/stats") -> dict[str, Any]:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    (entry,) = answer.json()["model_stats"]
    return entry


@pytest.fixture
def fresh(serve: Serve, only: Any) -> Server:
    """One that nobody has asked yet, in two processes."""
    return serve("--server.frontends", "2", models=only("echo", "picky", "two"))


def test_statistics_count_requests_items_and_batches_of_all_frontends(fresh: Server) -> None:
    with httpx.Client(base_url=fresh.url, trust_env=False) as http:
        before = stats(http)
        assert before["inference_count"] == before["execution_count"] == before["last_inference"] == 0
    sizes = [1, 2, 7, 1, 3]
    for size in sizes:  # each over a connection of its own, so both frontends answer some
        with httpx.Client(base_url=fresh.url, trust_env=False) as http:
            assert http.post("/predict/echo", content=b"\x01" * 4 * size, headers=OCTETS).status_code == 200
            assert http.post("/predict/echo", content=b"\x01" * 3, headers=OCTETS).status_code == 400
    with httpx.Client(base_url=fresh.url, trust_env=False) as http:
        after = stats(http)
    assert after["name"] == "echo"
    assert after["version"] == "1"
    assert after["inference_count"] == sum(sizes)
    assert abs(after["last_inference"] - time.time() * 1000) < 60_000
    by_size = {entry["batch_size"]: entry["compute_infer"] for entry in after["batch_stats"]}
    assert sum(size * batches["count"] for size, batches in by_size.items()) == sum(sizes)
    assert sum(batches["count"] for batches in by_size.values()) == after["execution_count"]
    assert all(batches["ns"] > 0 for batches in by_size.values())
    durations = after["inference_stats"]
    assert durations.keys() == {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    }
    assert durations["fail"]["count"] == len(sizes)
    assert durations["fail"]["ns"] > 0
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert durations[name]["count"] == len(sizes), name
        assert durations[name]["ns"] > 0 or name == "queue", name
    parts = sum(durations[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts <= durations["success"]["ns"] * 1.01
    assert durations["cache_hit"] == durations["cache_miss"] == {"count": 0, "ns": 0}


def test_a_request_that_the_model_fails_on_is_a_failure(fresh: Server) -> None:
    with httpx.Client(base_url=fresh.url, trust_env=False) as http:
        assert infer(http, "picky", tensor([10], [1], "INT64")).status_code == 500
        durations = stats(http, "/v2/models/picky/stats")["inference_stats"]
    assert durations["fail"]["count"] == 1
    assert durations["success"]["count"] == 0


def test_statistics_of_all_models_and_of_a_version(http: httpx.Client) -> None:
    everything = http.get("/v2/models/stats").json()["model_stats"]
    assert [entry["name"] for entry in everything] == sorted(http.get("/v2/models").json()["models"])
    assert stats(http, "/v2/models/echo/versions/1/stats")["version"] == "1"
    assert http.get("/v2/models/echo/versions/9/stats").status_code == 404
    assert http.get("/v2/models/nothing/stats").status_code == 404


def test_the_configuration_tells_shapes_without_the_batch(http: httpx.Client) -> None:
    config = http.get("/v2/models/two/config").json()
    assert config["name"] == "two"
    assert config["platform"] == "onnxruntime_onnx"
    assert config["backend"] == "onnxruntime"
    assert config["input"] == [
        {"name": "a", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "b", "data_type": "TYPE_INT32", "dims": [2]},
    ]
    assert config["max_batch_size"] == 1024
    assert config["dynamic_batching"]["preferred_batch_size"][0] >= 1
    assert config["instance_group"][0]["count"] >= 1
    assert http.get("/v2/models/two/versions/1/config").json() == config
    assert http.get("/v2/models/two/versions/7/config").status_code == 404


def test_the_configuration_without_a_batch_axis_and_with_strings(any_http: httpx.Client) -> None:
    config = any_http.get("/v2/models/fixed/config").json()
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3, 2]}]
    assert "dynamic_batching" not in config
    assert any_http.get("/v2/models/labels/config").json()["input"][0]["data_type"] == "TYPE_STRING"


def test_a_request_may_carry_as_many_items_as_the_configuration_says(serve: Serve, only: Any) -> None:
    server = serve("--batching.max-queue-items", "128", models=only("echo"))
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        most = http.get("/v2/models/echo/config").json()["max_batch_size"]
        for n, status in ((most, 200), (most + 1, 400)):
            assert http.post("/predict/echo", content=b"1234" * n, headers=OCTETS).status_code == status


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/main/index"])
def test_the_index_tells_of_every_version(serve: Serve, only: Any, path: str) -> None:
    models: Path = only("echo", "two")
    (models / "broken/1").mkdir(parents=True)
    (models / "broken/1/model.onnx").write_bytes(b"nothing")
    server = serve(models=models)
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        wait_until(lambda: len(http.post(path).json()) == 3, "all versions are in the index")
        answer = http.post(path)
        assert answer.headers["content-type"].startswith("application/json")
        broken, *ready = answer.json()
        assert ready == [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("echo", "two")]
        assert {**broken, "reason": ""} == {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": ""}
        assert broken["reason"]
        assert http.post(path, json={"ready": True}).json() == ready
        assert http.post(path, json={"ready": False}).json() == answer.json()
        assert http.post(path, content=b"[" * 100_000).status_code == 400
        assert http.post(path, json={"ready": "yes"}).status_code == 400


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize("where", ["", "/main"])
def test_models_are_not_loaded_by_request(http: httpx.Client, where: str, verb: str) -> None:
    answer = http.post(f"/v2/repository{where}/models/echo/{verb}", json={"parameters": {}})
    assert answer.status_code == 403
    assert f"cannot {verb} 'echo'" in answer.json()["error"]
    assert "model control is 'none'" in answer.json()["error"]
    assert http.post(f"/v2/repository{where}/models/echo/polish").status_code == 404


def test_extensions_are_those_that_work(http: httpx.Client) -> None:
    listed = http.get("/v2").json()["extensions"]
    assert "statistics" in listed
    assert not {"model_repository", "logging", "trace", "system_shared_memory", "cuda_shared_memory"} & set(listed)


@pytest.mark.parametrize(
    ("path", "same", "other", "field"),
    [
        ("/v2/logging", {"log_info": True}, {"log_info": False}, "log_info"),
        ("/v2/trace/setting", {"trace_level": ["OFF"]}, {"trace_level": ["TIMESTAMPS"]}, "trace_level"),
        ("/v2/models/echo/trace/setting", {"trace_level": ["OFF"]}, {"trace_level": ["TENSORS"]}, "trace_level"),
    ],
)
def test_settings_are_told_and_never_pretend_to_change(
    http: httpx.Client, path: str, same: dict, other: dict, field: str
) -> None:
    told = http.get(path).json()
    assert told[field] == same[field]
    assert http.post(path, json=same).json() == told
    assert http.post(path).json() == told
    refused = http.post(path, json=other)
    assert refused.status_code == 501
    assert field in refused.json()["error"]
    unknown = http.post(path, json={"colour": 1})
    assert unknown.status_code == 400
    assert "'colour'" in unknown.json()["error"]
    assert http.get(path).json() == told


def test_traces_of_a_model_that_does_not_exist(http: httpx.Client) -> None:
    assert http.get("/v2/models/nothing/trace/setting").status_code == 404


@pytest.mark.parametrize("kind", ["system", "cuda"])
@pytest.mark.parametrize("rest", ["", "/status", "/region/a/register"])
def test_shared_memory_is_not_supported(http: httpx.Client, kind: str, rest: str) -> None:
    for verb in ("GET", "POST"):
        answer = http.request(verb, f"/v2/{kind}sharedmemory{rest}")
        assert answer.status_code == 501
        assert f"{kind} shared memory" in answer.json()["error"]


def test_the_log_settings_are_those_of_the_start(serve: Serve, only: Any) -> None:
    server = serve("--logging.level", "warning", models=only("echo"))
    told = httpx.get(f"{server.url}/v2/logging", trust_env=False).json()
    assert (told["log_info"], told["log_warning"], told["log_error"], told["log_verbose_level"]) == (
        False,
        True,
        True,
        0,
    )
