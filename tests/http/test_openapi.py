"""The document is complete, and true: what it allows and forbids is sent to a server, and every answer is as it says.

Schemathesis makes the requests: first those at the edges of every schema, then random ones, the same in each run. A
document cannot know the shapes of a model's tensors, so requests are aimed at models that are there, and a prediction
may be refused where the document alone would let it pass.
"""

import ast
import inspect
import re
import zlib
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks, positive_data_acceptance

from service.batching.engines import Engines
from service.frontend.app import Frontend
from service.frontend.head import find_route
from service.frontend.openapi.examples import with_examples
from service.lifecycle.controls import Controls
from service.metrics import RequestMetrics, SharedCounts
from service.settings import Settings
from tests.http.conftest import Serve
from tests.support.server import Server

# Answered, and no part of the API: the page with its files, other names of what is in it (a label may stand in place of
# a version), and what says of a protocol that it is not here: shared memory.
NOT_IN_THE_DOCUMENT = {
    *("/", "/docs", "/docs/openapi.json", "/docs/{path}", "/static/swagger-ui/{name}"),
    *("/v1/models/{model_name}/labels/{label}", "/v1/models/{model_name}/labels/{label}/metadata"),
    *("/v2/systemsharedmemory", "/v2/systemsharedmemory/{what}"),
    *("/v2/cudasharedmemory", "/v2/cudasharedmemory/{what}"),
    *("/v2/repository/{repository}/index", "/v2/repository/{repository}/models/{model_name}/{verb}"),
}
LENGTH = "Inference-Header-Content-Length"
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")
MODELS = ("echo", "floats", "two", "scores", "votes", "halves")
LONG_ROWS = ("two", "scores")  # in a form, text of the length of a row is one, whatever the document calls its type
FITTING = {  # name → a body that fits, in either form; some of it is replaced by what is generated
    "echo": ([{"name": "x", "shape": [1, 4], "datatype": "UINT8", "data": [1, 2, 3, 4]}], [[1, 2, 3, 4]]),
    "floats": ([{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 2]}], [[0.5, 2]]),
}

load_all_checks()
REFUSED = [positive_data_acceptance, schemathesis.checks.not_a_server_error]
LITESTAR = Frontend(Engines([]), Settings(), RequestMetrics(SharedCounts(1), 0), Controls())._litestar
DOCUMENT = LITESTAR.openapi_schema.to_schema()
PATHS = DOCUMENT["paths"]
schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.checks.not_a_server_error.expected_statuses = ["2xx", "3xx", "4xx", "501"]  # 501 where it is documented


def aim(case: schemathesis.Case) -> None:
    """Send five of six at models that are there, as JSON of the length that it has, and what may fit as a fit."""
    if not case.path_parameters.get("model_name"):
        return
    number = zlib.crc32(repr((case.path_parameters, case.body, case.query, case.headers)).encode(errors="replace"))
    if number % 6 == 0:
        return
    fitting = isinstance(case.body, dict) and case.meta.generation.mode.is_positive
    models = tuple(FITTING) if fitting else LONG_ROWS if case.media_type == "multipart/form-data" else MODELS
    case.path_parameters["model_name"] = name = models[number // 6 % len(models)]
    if "model_version" in case.path_parameters:
        case.path_parameters["model_version"] = "1"
    if fitting and "inputs" in case.body:
        case.body["inputs"] = FITTING[name][0]
    if fitting and "instances" in case.body:
        case.body["instances"] = FITTING[name][1]
    if case.media_type == "application/json" and str(case.headers.get(LENGTH, "")).isdigit():
        del case.headers[LENGTH]


@schema.parametrize()
@settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(case: schemathesis.Case, server: Server) -> None:
    aim(case)
    prediction = case.method == "POST" and bool({"predictions", "v1"} & set(case.operation.tags))
    case.call_and_validate(
        base_url=server.url, excluded_checks=[positive_data_acceptance] if prediction else [], timeout=30
    )


def test_every_example_of_the_document_works_as_it_stands(http: httpx.Client, server: Server) -> None:
    """The examples are of the models that the server has at the time, so these are the served document's."""
    served = schemathesis.openapi.from_url(f"{server.url}/docs/openapi.json")
    tried = 0
    for path, item in served.raw_schema["paths"].items():
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in content.get("examples", {}).items():
                where = {"model_name": name, "model_version": "1"}
                where = {key: value for key, value in where.items() if f"{{{key}}}" in path}
                case = served[path][method].Case(
                    path_parameters=where, body=example["value"], media_type="application/json"
                )
                response = case.call_and_validate(base_url=server.url)
                assert response.status_code == 200, f"{method} {path} {name}: {response.text}"
                tried += 1
    assert tried > 2 * len(MODELS)


def test_examples_name_the_models_that_are_loaded(http: httpx.Client) -> None:
    paths = http.get("/docs/openapi.json").json()["paths"]
    loaded = set(http.get("/v2/models").json()["models"])
    for path, item in paths.items():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model_name":
                    assert parameter["examples"].keys() == loaded, path
    first = next(iter(paths["/predict/{model_name}"]["post"]["parameters"][0]["examples"]))
    assert first in ("scores", "padded", "stretched"), "an image is what a person tries first"


def test_the_server_answers_with_this_document(http: httpx.Client) -> None:
    served = http.get("/docs/openapi.json").json()
    for item in served["paths"].values():
        for operation in item.values():
            for described in (
                *operation.get("parameters", ()),
                *operation.get("requestBody", {}).get("content", {}).values(),
            ):
                described.pop("examples", None)
    assert served == with_examples(DOCUMENT, [])
    assert list(served["paths"]) == list(PATHS), "in the same order in every process"


def test_every_route_of_litestar_is_in_the_document() -> None:
    answered = {(route.path_format, method) for route in LITESTAR.routes for method in route.methods - {"OPTIONS"}}
    documented = {(path, method.upper()) for path, item in PATHS.items() for method in item}
    assert {path for path, _ in answered} >= NOT_IN_THE_DOCUMENT, "an exception that is none"
    assert {entry for entry in answered if entry[0] not in NOT_IN_THE_DOCUMENT} <= documented
    for path, method in documented - answered:
        assert (method, bool(find_route(filled(path)))) == ("POST", True), f"nothing answers {method} {path}"


def test_every_route_of_the_short_way_is_in_the_document() -> None:
    """`find_route` is a match over the parts of a path: each of its patterns has a documented operation."""
    patterns = [
        node.pattern for node in ast.walk(ast.parse(inspect.getsource(find_route))) if isinstance(node, ast.match_case)
    ]
    assert len(patterns) >= 3
    posted = [filled(path) for path, item in PATHS.items() if "post" in item]
    for pattern in patterns:
        assert isinstance(pattern, ast.MatchSequence), "a pattern that this test cannot read"
        parts = (re.escape(p.value.value) if isinstance(p, ast.MatchValue) else "[^/]+" for p in pattern.patterns)
        form = "/".join(parts)
        assert any(re.fullmatch(form, path) and find_route(path) for path in posted), ast.unparse(pattern)


def filled(path: str) -> str:
    return path.replace("{model_name}", "echo").replace("{model_version}", "1")


@pytest.mark.parametrize("path", PATHS)
def test_allow_names_exactly_the_documented_methods(http: httpx.Client, path: str) -> None:
    documented = {method.upper() for method in PATHS[path]}
    for method in (*METHODS, "HEAD"):
        if method not in documented:
            answer = http.request(method, filled(path))
            assert answer.status_code == 405, method
            assert set(answer.headers["allow"].split(", ")) == documented, method


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for item in PATHS.values() for operation in item.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]+", name) for name in names)
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for item in PATHS.values():
        for operation in item.values():
            assert set(operation["tags"]) <= tags
            assert len(operation["summary"]) > 5


def test_a_server_without_models_refuses_as_the_document_says(serve: Serve, tmp_path: Path) -> None:
    server = serve(models=tmp_path)

    def status(path: str, method: str) -> int:
        case = schema[path][method].Case(path_parameters={"model_name": "any"} if "{" in path else {})
        return case.call_and_validate(base_url=server.url, excluded_checks=REFUSED).status_code

    assert status("/health/ready", "get") == 503
    assert status("/v2/health/ready", "get") == 503
    assert status("/v2/models/{model_name}", "get") == 404
