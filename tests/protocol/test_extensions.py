"""What a server may have beside inference: statistics, configuration, repository, classes, priorities, settings.

C1, C5 and C6. An extension that a server elsewhere does not list is skipped. Routes of extensions that ours has not are
refused in JSON.
"""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.protocol.conftest import OURS, Needs
from tests.protocol.exchange import Given, infer, infer_path, outputs, parts, post, refusal, tensor

LEAVES = {
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
}
X = [[0.5, -1.25, 3.0, 0.0], [1.0, 2.0, 4.0, 3.0]]


def given(rows: list[list[float]] = X) -> dict[str, Any]:
    return tensor("x", "FP32", [len(rows), 4], rows)


def test_our_server_lists_what_the_suite_knows_of(elsewhere: str | None, extensions: set[str]) -> None:
    if elsewhere is not None:
        pytest.skip("what another server has is its own affair")
    assert extensions >= OURS


# ── statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def model_stats(http: httpx.Client, path: str = "/v2/models/floats/stats") -> dict[str, Any]:
    (found,) = http.get(path).json()["model_stats"]
    return found


def test_statistics_have_every_member_that_clients_read(http: httpx.Client, needs: Needs) -> None:
    needs("statistics")
    outputs(infer(http, "floats", given()))
    stats = model_stats(http)
    assert (stats["name"], stats["version"]) == ("floats", "1")
    assert stats["inference_stats"].keys() == LEAVES
    assert all(leaf.keys() == {"count", "ns"} for leaf in stats["inference_stats"].values())
    for name in ("last_inference", "inference_count", "execution_count"):
        assert type(stats[name]) is int
        assert stats[name] > 0
    assert stats["batch_stats"]
    for batch in stats["batch_stats"]:
        assert batch.keys() == {"batch_size", "compute_input", "compute_infer", "compute_output"}
        assert batch["compute_infer"].keys() == {"count", "ns"}
    assert stats["response_stats"] == {}
    assert stats["memory_usage"] == []


def test_statistics_count_rows_batches_and_requests(http: httpx.Client, needs: Needs) -> None:
    needs("statistics")
    before = model_stats(http)
    for _ in range(3):
        outputs(infer(http, "floats", given()))
    refusal(infer(http, "floats", tensor("x", "FP32", [1, 4], [1])))
    after = model_stats(http)
    grown = {name: after[name] - before[name] for name in ("inference_count", "execution_count")}
    assert grown["inference_count"] == 6
    assert 3 <= grown["execution_count"] <= 6
    counts = {
        leaf: after["inference_stats"][leaf]["count"] - before["inference_stats"][leaf]["count"] for leaf in LEAVES
    }
    assert (counts["success"], counts["queue"], counts["compute_infer"]) == (3, 3, 3)
    assert (counts["cache_hit"], counts["cache_miss"]) == (0, 0)
    assert after["last_inference"] >= before["last_inference"]
    time_ns = after["inference_stats"]["success"]["ns"] - before["inference_stats"]["success"]["ns"]
    assert 0 < time_ns < 60e9


def test_statistics_are_of_one_version_one_model_or_all(http: httpx.Client, needs: Needs) -> None:
    needs("statistics")
    assert model_stats(http, "/v2/models/versioned/versions/2/stats")["version"] == "2"
    names = {stats["name"] for stats in http.get("/v2/models/stats").json()["model_stats"]}
    assert {"simple", "floats", "versioned"} <= names
    refusal(http.get("/v2/models/absent/stats"), 404)
    refusal(http.get("/v2/models/floats/versions/99/stats"), 404)


# ── configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/v2/models/simple/config", "/v2/models/simple/versions/1/config"])
def test_configuration_has_tensors_without_the_batch(http: httpx.Client, needs: Needs, path: str) -> None:
    needs("model_configuration")
    config = http.get(path).json()
    assert config["name"] == "simple"
    assert config["max_batch_size"] > 0
    for side, names in (("input", ["INPUT0", "INPUT1"]), ("output", ["OUTPUT0", "OUTPUT1"])):
        found = [(x["name"], x["data_type"], [int(size) for size in x["dims"]]) for x in config[side]]
        assert found == [(name, "TYPE_INT32", [16]) for name in names]


def test_configuration_of_strings_and_of_a_model_without_a_batch(http: httpx.Client, needs: Needs) -> None:
    needs("model_configuration")
    assert http.get("/v2/models/texts/config").json()["input"][0]["data_type"] == "TYPE_STRING"
    unbatched = http.get("/v2/models/unbatched/config").json()
    assert unbatched.get("max_batch_size", 0) == 0
    assert [int(size) for size in unbatched["input"][0]["dims"]] == [2, 3]
    refusal(http.get("/v2/models/absent/config"), 404)


# ── repository ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/any/index"])
@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready":true}', b'{"ready":false}'])
def test_the_index_is_an_array_of_versions(
    http: httpx.Client, needs: Needs, elsewhere: str | None, path: str, body: bytes
) -> None:
    needs("model_repository")
    if elsewhere is not None and path != "/v2/repository/index":
        pytest.skip("only some servers name repositories")
    answer = http.post(path, content=body)
    assert answer.status_code == 200
    index = answer.json()
    assert isinstance(index, list)
    states = {entry["name"]: entry["state"] for entry in index}
    assert states["simple"] == "READY"
    assert set(states.values()) <= {"READY", "UNAVAILABLE", "LOADING", "UNLOADING"}


@pytest.mark.parametrize("body", [b"[]", b"7", b"{", b'{"ready":7}', b"[" * 10_000])
def test_an_index_request_that_is_none_is_refused(http: httpx.Client, needs: Needs, body: bytes) -> None:
    needs("model_repository")
    refusal(http.post("/v2/repository/index", content=body))


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_models_are_loaded_and_unloaded_or_that_is_refused(http: httpx.Client, needs: Needs, verb: str) -> None:
    """Refused is the usual case: a server must be started for it. `versioned` answers afterwards either way."""
    needs("model_repository")
    answer = http.post(f"/v2/repository/models/versioned/{verb}", content=b"{}")
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500 or answer.status_code in (501, 503)
        refusal(answer, answer.status_code)
    elif verb == "unload":
        assert http.post("/v2/repository/models/versioned/load").status_code == 200
    assert outputs(infer(http, "versioned", tensor("x", "INT64", [1], [1]))).arrays["y"].tolist() == [21]


def test_a_model_that_is_not_there_is_not_loaded(http: httpx.Client, needs: Needs) -> None:
    needs("model_repository")
    answer = http.post("/v2/repository/models/absent/load")
    assert 400 <= answer.status_code < 600
    refusal(answer, answer.status_code)


# ── classification ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("k", [1, 3, 4, 100])
def test_classes_are_the_largest_values_first(http: httpx.Client, needs: Needs, k: int, binary: bool) -> None:
    needs("classification")
    asked = [{"name": "y", "parameters": {"classification": k, "binary_data": binary}}]
    answer = outputs(post(http, "floats", parts([Given("x", "FP32", np.array(X, np.float32))], outputs=asked)))
    (output,) = answer.text["outputs"]
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [2, min(k, 4)]
    for row, classes in zip(X, answer.arrays["y"].tolist(), strict=True):
        order = sorted(range(4), key=row.__getitem__, reverse=True)[:k]
        found = [text.split(":")[:2] for text in classes]
        assert [int(index) for _, index in found] == order
        assert [float(value) for value, _ in found] == [row[i] for i in order]


@pytest.mark.parametrize("k", [-1, 1.5, "2", True, [2]], ids=repr)
def test_a_number_of_classes_that_is_none_is_refused(http: httpx.Client, needs: Needs, k: Any) -> None:
    needs("classification")
    refusal(infer(http, "floats", given(), outputs=[{"name": "y", "parameters": {"classification": k}}]))


def test_strings_have_no_classes(http: httpx.Client, needs: Needs) -> None:
    needs("classification")
    asked = [{"name": "y", "parameters": {"classification": 1}}]
    refusal(infer(http, "texts", tensor("x", "BYTES", [1, 2], ["a", "b"]), outputs=asked))


# ── parameters and the schedule policy ───────────────────────────────────────────────────────────────────────────────


def test_parameters_of_each_kind_are_taken(http: httpx.Client) -> None:
    parameters = {"text": "a", "number": 7, "truth": True, "real": 1.5}
    request = {"inputs": [given() | {"parameters": parameters}], "parameters": parameters}
    answer = http.post(infer_path("floats"), json=request | {"outputs": [{"name": "y", "parameters": parameters}]})
    assert outputs(answer).arrays["y"].tolist() == X


@pytest.mark.parametrize("parameters", [{"priority": p} for p in (0, 1, 2)] + [{"timeout": t} for t in (0, 10**7)])
def test_priority_and_timeout_are_taken(http: httpx.Client, needs: Needs, parameters: dict[str, int]) -> None:
    needs("schedule_policy")
    assert outputs(infer(http, "floats", given(), parameters=parameters)).arrays["y"].tolist() == X


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize("value", [-1, 1.5, "high", True, None, [], 2**70], ids=repr)
def test_a_priority_or_timeout_that_is_none_is_refused(http: httpx.Client, needs: Needs, name: str, value: Any) -> None:
    needs("schedule_policy")
    refusal(infer(http, "floats", given(), parameters={name: value}))


# ── settings, and what passes by other ways than HTTP ────────────────────────────────────────────────────────────────


def test_log_settings_are_told(http: httpx.Client, needs: Needs) -> None:
    needs("logging")
    settings = http.get("/v2/logging").json()
    names = {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}
    assert settings.keys() >= names - {"log_file"}
    assert http.post("/v2/logging", json={}).json() == settings
    refusal(http.post("/v2/logging", json={"nothing": 1}))


@pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/models/simple/trace/setting"])
def test_trace_settings_are_told(http: httpx.Client, needs: Needs, path: str) -> None:
    needs("trace")
    settings = http.get(path).json()
    assert {"trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file"} <= settings.keys()
    assert http.post(path, json={}).json() == settings
    refusal(http.post(path, json={"nothing": 1}))


@pytest.mark.parametrize("kind", ["system", "cuda"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "status"), ("POST", "region/a/register"), ("POST", "region/a/unregister"), ("POST", "unregister")],
)
def test_shared_memory_is_refused_where_it_is_not_listed(
    http: httpx.Client, extensions: set[str], kind: str, method: str, path: str
) -> None:
    if f"{kind}_shared_memory" in extensions:
        pytest.skip("the server has it; tensors in shared memory are not this suite's")
    answer = http.request(method, f"/v2/{kind}sharedmemory/{path}", json={} if method == "POST" else None)
    assert answer.status_code in (400, 404, 501)
    refusal(answer, answer.status_code)


def test_a_tensor_in_shared_memory_is_not_taken_for_one_without_data(http: httpx.Client, extensions: set[str]) -> None:
    if "system_shared_memory" in extensions:
        pytest.skip("the server has it; tensors in shared memory are not this suite's")
    where = {"shared_memory_region": "a", "shared_memory_byte_size": 32}
    text = {"name": "x", "shape": [2, 4], "datatype": "FP32", "parameters": where}
    refusal(http.post(infer_path("floats"), json={"inputs": [text]}))
