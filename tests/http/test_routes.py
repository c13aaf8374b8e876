"""Everything that is not a prediction: health, metadata, documents, and what is not there."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.build_models import QUARTERS
from tests.support.server import Server, wait_until
from tests.support.wire import Wire, head

ECHO_INPUT = {"name": "x", "datatype": "UINT8", "shape": [-1, 4]}


def error_of(answer: httpx.Response, status: int) -> str:
    """The message; every error has the same form and nothing else."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json", "some clients compare the whole value"
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


@pytest.mark.parametrize("prefix", ["", "/v2"])
def test_a_server_with_models_is_live_and_ready(http: httpx.Client, prefix: str) -> None:
    for path, body in (("live", {"live": True}), ("ready", {"live": True, "ready": True})):
        answer = http.get(f"{prefix}/health/{path}")
        assert (answer.status_code, answer.json()) == (200, body)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_tells_its_name_version_and_extensions(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.json()["name"] == "shoal"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", answer.json()["version"])
    assert answer.json()["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "schedule_policy",
        "statistics",
    ]


def test_all_models_are_listed(http: httpx.Client) -> None:
    names = http.get("/v2/models").json()["models"]
    assert names == sorted(names)
    assert {"echo", "two", "wide", "floats", "halves", "flags", "scores", "padded", "picky", "slow"} <= set(names)


@pytest.mark.parametrize("path", ["/v2/models/echo", "/v2/models/echo/versions/1"])
def test_metadata_gives_every_tensor_with_the_batch_as_minus_one(http: httpx.Client, path: str) -> None:
    metadata = http.get(path).json()
    assert (metadata["name"], metadata["versions"]) == ("echo", ["1"])
    assert metadata["inputs"] == [ECHO_INPUT]
    assert metadata["outputs"] == [
        {"name": "same", "datatype": "UINT8", "shape": [-1, 4]},
        {"name": "half", "datatype": "FP32", "shape": [-1, 4]},
    ]
    assert isinstance(metadata["platform"], str)


def test_metadata_of_a_published_model_has_its_labels(http: httpx.Client) -> None:
    assert http.get("/v2/models/scores").json()["parameters"]["labels"] == list(QUARTERS)


@pytest.mark.parametrize("path", ["/v2/models/echo/ready", "/v2/models/echo/versions/1/ready"])
def test_a_model_tells_that_it_is_ready(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()) == (200, {"name": "echo", "ready": True})


def test_a_percent_encoded_name_is_decoded_once(http: httpx.Client) -> None:
    assert http.get("/v2/models/%65cho").json()["name"] == "echo"
    answer = http.post("/predict/%65cho", json={"instances": [[1, 2, 3, 4]]})
    assert answer.json()["predictions"][0]["same"] == [1, 2, 3, 4]


MODEL_ROUTES = [
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/ready"),
    ("POST", "/v2/models/{}/infer"),
    ("POST", "/predict/{}"),
]


@pytest.mark.parametrize(("method", "path"), MODEL_ROUTES)
def test_an_unknown_model_is_404_and_the_message_lists_those_that_answer(
    http: httpx.Client, method: str, path: str
) -> None:
    message = error_of(http.request(method, path.format("nothing")), 404)
    assert "'nothing'" in message
    assert "echo" in message


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", "/ready"), ("POST", "/infer")], ids=["metadata", "ready", "infer"]
)
@pytest.mark.parametrize("version", ["2", "latest", "01", "%C2%B9"])
def test_an_unknown_version_is_404_and_the_message_lists_those_that_answer(
    http: httpx.Client, method: str, path: str, version: str
) -> None:
    message = error_of(http.request(method, f"/v2/models/echo/versions/{version}{path}"), 404)
    assert "'echo' has no version" in message
    assert message.endswith("ready: 1")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/nothing",
            "/v1",
            "/v1/models/echo/nothing",
            "/v1/models/echo:nothing",
            "/predict",
            "/predict/echo/1",
            "/predict/echo/",
            "/v2/nothing",
        ),
        *("/v2/models/echo/versions", "/v2/models/echo/versions/1/infer/", "/health", "/v2/models/echo/a%2Fb/infer"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404_in_our_form(http: httpx.Client, method: str, path: str) -> None:
    error_of(http.request(method, path), 404)


@pytest.mark.parametrize("path", ["/docs/nothing", "/static/nothing.js", "/static/"])
def test_an_unknown_document_is_404_in_our_form(http: httpx.Client, path: str) -> None:
    error_of(http.get(path), 404)


@pytest.mark.parametrize("path", ["../openapi.py", "%2e%2e/openapi.py", "%2e%2e%2fopenapi.py", "..%2f..%2fsettings.py"])
def test_nothing_outside_the_static_folder_is_served(server: Server, path: str) -> None:
    with Wire(server) as wire:  # clients tidy such paths up before they send them
        wire.send(head("GET", f"/static/{path}"))
        answer = wire.answer()
    assert answer.status == 404
    assert b"import" not in answer.body


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict/echo", "POST"),
        ("PUT", "/predict/echo", "POST"),
        ("GET", "/v2/models/echo/infer", "POST"),
        ("DELETE", "/v2/models/echo/versions/1/infer", "POST"),
        ("POST", "/health/live", "GET"),
        ("POST", "/v2/models", "GET"),
        ("GET", "/v1/models/echo:predict", "POST"),
        ("PUT", "/v1/models/echo/versions/1:classify", "POST"),
        ("POST", "/v1/models/echo", "GET"),
        ("PUT", "/v2/models/echo", "GET"),
        ("POST", "/metrics", "GET"),
        ("DELETE", "/docs", "GET"),
    ],
)
def test_a_wrong_verb_is_405_and_allow_names_the_right_one(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = http.request(method, path)
    assert method in error_of(answer, 405)
    assert allowed in answer.headers["allow"].replace(" ", "").split(",")
    assert method not in answer.headers["allow"].replace(" ", "").split(",")


@pytest.mark.parametrize("path", ["/predict/echo", "/v2/models/echo/infer"])
def test_head_is_405_without_a_body(http: httpx.Client, path: str) -> None:
    answer = http.head(path)
    assert (answer.status_code, answer.content) == (405, b"")


def test_the_root_redirects_browsers_to_the_documentation(http: httpx.Client) -> None:
    answer = http.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.is_redirect
    assert answer.headers["location"] == "/docs"


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_the_root_tells_other_clients_that_the_process_answers(http: httpx.Client, accept: str) -> None:
    answer = http.get("/", headers={"accept": accept})
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert answer.headers["vary"] == "accept"


def test_the_documentation_page_needs_nothing_but_this_server(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"""(https?:)?//[a-z]""", page.text), "something is loaded from elsewhere"
    files = re.findall(r"""(?:src|href)="(/[^"]+)""", page.text)
    assert len(files) == 2
    for file in files:
        assert http.get(file).status_code == 200
        assert len(http.get(file).content) > 10_000


def test_the_openapi_document_lists_the_predictions_and_the_rest(http: httpx.Client) -> None:
    document = http.get("/docs/openapi.json").json()
    assert document["openapi"].startswith("3.")
    infer = "/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{model_version}/infer"
    for path in ("/predict/{model_name}", *infer):
        assert document["paths"][path].keys() == {"post"}
        assert "200" in document["paths"][path]["post"]["responses"]
        assert "requestBody" in document["paths"][path]["post"]
    for path in ("/health/live", "/health/ready", "/v2/models", "/v2/models/{model_name}", "/metrics"):
        assert "get" in document["paths"][path]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["operationId"]


def test_every_path_of_the_openapi_document_exists(http: httpx.Client) -> None:
    for path, operations in http.get("/docs/openapi.json").json()["paths"].items():
        for method in operations if not path.startswith("/admin/") else ():  # not on this port
            where = path.replace("{model_name}", "echo").replace("{model_version}", "1")
            assert http.request(method, where).status_code not in (404, 405), f"{method} {path}"


METRICS_OF_A_MODEL = {
    "shoal_requests_total": 3,
    "shoal_request_errors_total": 1,
    "shoal_items_total": 3,
    "shoal_request_seconds_count": 2,
    "shoal_queue_seconds_count": 3,
}


def test_metrics_count_requests_errors_items_and_batches(http: httpx.Client, server: Server) -> None:
    before = server.metrics()
    assert http.post("/predict/flags", json={"instances": [[True, False, True]]}).status_code == 200
    assert http.post("/predict/flags", json={"instances": [[True, False, True]] * 2}).status_code == 200
    assert http.post("/predict/flags", json={"instances": []}).status_code == 400
    after = server.metrics()

    def grown(name: str, model: str = "flags") -> float:
        return after.get((name, model), 0) - before.get((name, model), 0)

    assert {name: grown(name) for name in METRICS_OF_A_MODEL} == METRICS_OF_A_MODEL
    assert 2 <= grown("shoal_compute_seconds_count") == grown("shoal_batch_size_count") <= 3
    assert grown("shoal_batch_size_sum") == 3
    assert grown("shoal_compute_seconds_sum") > 0
    assert grown("shoal_request_seconds_sum") > 0
    assert after["shoal_model_ready", "flags"] == 1
    assert after["shoal_items_in_flight", "flags"] == 0


def test_models_that_do_not_exist_add_no_label_to_the_metrics(http: httpx.Client, server: Server) -> None:
    before = server.metrics()
    for i in range(3):
        http.post(f"/predict/made-up-{i}")
    after = server.metrics()
    assert after["shoal_requests_total", ""] - before.get(("shoal_requests_total", ""), 0) == 3
    assert not [model for _, model in after if model.startswith("made-up")]


def test_metrics_are_in_the_prometheus_text_format(http: httpx.Client) -> None:
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"process_cpu_seconds_total" in answer.content


def test_health_answers_while_the_engine_is_busy(http: httpx.Client, server: Server) -> None:
    def ask(value: int) -> list[int]:
        body = {"instances": [value]}
        return httpx.post(f"{server.url}/predict/slow", json=body, timeout=30, trust_env=False).json()["predictions"]

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, i) for i in range(8)]
        wait_until(lambda: server.items_in_flight() > 0, "a busy engine")
        begun = time.monotonic()
        assert http.get("/health/live").status_code == 200
        assert time.monotonic() - begun < 1
        assert [future.result() for future in asked] == [[{"y": [i]}] for i in range(8)]


@pytest.mark.parametrize(
    "path", ["/v2/models/echo", "/v2/models/echo/ready", "/v2/models/echo/config", "/v1/models/echo"]
)
def test_a_version_belongs_into_the_path(http: httpx.Client, path: str) -> None:
    assert http.get(f"{path}?model_version=9").json() == http.get(path).json()
