"""/v1/models…: TensorFlow Serving's REST API and KServe's v1; every answer is checked against its own input."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import helper

from models.manifest import TensorInput, TensorSpec
from tests.http.conftest import FAST_START, Serve
from tests.http.test_multipart import b64, numbered
from tests.http.test_predict import PICTURE, refusal
from tests.support.build_models import PARTIES, QUARTERS, Graph, publish, quarters_of, write_model
from tests.support.pictures import encode
from tests.support.server import Server, running_server
from tests.support.wire import Wire

INSTANCES = [[1, 2, 3, 4], [250, 0, 7, 8]]
TWO_ROWS = [{"a": [1, 2, 3], "b": [4, 5]}, {"a": [0.5, 0, 0], "b": [-7, 2]}]
TWO_OUT = [{"total": 15.0, "negated": [-4, -5]}, {"total": -4.5, "negated": [7, -2]}]


def ask(http: httpx.Client, model: str, verb: str = "predict", **body: Any) -> httpx.Response:
    return http.post(f"/v1/models/{model}:{verb}", json=body)


def answer_of(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def columns(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [item[name] for item in items] for name in items[0]}


# ── predict ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_one_input_are_answered_by_name_where_there_are_several_outputs(http: httpx.Client) -> None:
    expected = [{"same": row, "half": [value / 2 for value in row]} for row in INSTANCES]
    assert answer_of(ask(http, "echo", instances=INSTANCES)) == {"predictions": expected}
    assert answer_of(ask(http, "echo", instances=[{"x": row} for row in INSTANCES])) == {"predictions": expected}
    assert answer_of(ask(http, "echo", inputs=INSTANCES)) == {"outputs": columns(expected)}
    assert answer_of(ask(http, "echo", inputs={"x": INSTANCES})) == {"outputs": columns(expected)}


def test_a_single_output_is_answered_bare(http: httpx.Client) -> None:
    assert answer_of(ask(http, "picky", instances=[1, 2, 3])) == {"predictions": [11, 22, 33]}
    assert answer_of(ask(http, "picky", inputs=[1, 2, 3])) == {"outputs": [11, 22, 33]}
    assert answer_of(ask(http, "flags", instances=[[True, False, True]])) == {"predictions": [[False, True, False]]}


def test_several_inputs_come_as_objects_or_as_columns(http: httpx.Client) -> None:
    assert answer_of(ask(http, "two", instances=TWO_ROWS)) == {"predictions": TWO_OUT}
    assert answer_of(ask(http, "two", inputs=columns(TWO_ROWS))) == {"outputs": columns(TWO_OUT)}


@pytest.mark.parametrize("n", [1, 7, 300])
def test_many_rows_keep_their_order(http: httpx.Client, n: int) -> None:
    values = np.random.default_rng(n).standard_normal((n, 2), np.float32)
    assert np.array_equal(answer_of(ask(http, "floats", instances=values.tolist()))["predictions"], values)


def test_numbers_that_are_not_finite_are_null(http: httpx.Client) -> None:
    assert answer_of(ask(http, "floats", instances=[[None, 1e300], [0.5, 1]])) == {
        "predictions": [[None] * 2, [0.5, 1]]
    }


@pytest.mark.parametrize("path", ["echo:predict", "echo%3Apredict", "echo%3apredict", "echo/versions/1:predict"])
@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", None])
def test_every_spelling_of_the_path_is_answered(http: httpx.Client, path: str, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = http.post(f"/v1/models/{path}", content=b'{"instances": [[1, 2, 3, 4]]}', headers=headers)
    assert answer_of(answer)["predictions"][0]["same"] == [1, 2, 3, 4]


def test_a_body_of_unknown_length_is_answered_alike(http: httpx.Client) -> None:
    answer = http.post("/v1/models/picky:predict", content=iter([b'{"instances"', b": [4]}"]))
    assert answer_of(answer) == {"predictions": [44]}


@pytest.mark.parametrize("name", ["serving_default", "", "tensorflow/serving/predict"])
def test_the_default_signature_may_be_named(http: httpx.Client, name: str) -> None:
    assert answer_of(ask(http, "picky", signature_name=name, instances=[1])) == {"predictions": [11]}


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
def test_another_signature_is_refused_in_the_protocols_words(http: httpx.Client, verb: str) -> None:
    message = refusal(ask(http, "votes", verb, signature_name="other", instances=[[1, 2, 3]], examples=[{"x": 1}]))
    if verb != "regress":
        assert message.startswith('Serving signature name: "other" not found in signature def')


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("echo", {}, ["neither 'instances' nor 'inputs'"]),
        ("echo", {"instances": [[1, 2, 3, 4]], "inputs": [[1, 2, 3, 4]]}, ["both 'instances' and 'inputs'"]),
        ("echo", {"instances": []}, ["instances is empty"]),
        ("echo", {"instances": 7}, ["instances"]),
        ("echo", {"instances": None}, ["instances"]),
        ("echo", {"instances": {"x": [1, 2, 3, 4]}}, ["instances", "array"]),
        ("echo", {"instances": [[1, 2, 3]]}, ["'x'", "3 values", "4"]),
        ("echo", {"instances": [[1, 2, 3, 256]]}, ["'x'", "256"]),
        ("echo", {"instances": [[1, 2, 3, 0.5]]}, ["'x'", "whole numbers"]),
        ("echo", {"instances": [[1, 2, 3, 4], [1, 2]]}, ["'x'", "ragged"]),
        ("echo", {"instances": [{"y": [1, 2, 3, 4]}]}, ["instances[0]", "no 'x'"]),
        ("echo", {"instances": [{"x": [1, 2, 3, 4], "y": 1}]}, ["instances[0]", "'y'", "expected 'x'"]),
        ("echo", {"instances": [{"b64": "AAAA"}]}, ["'x'", "whole numbers"]),
        ("echo", {"inputs": {"y": 1}}, ["inputs", "no 'x'"]),
        ("echo", {"inputs": []}, ["inputs is empty"]),
        ("echo", {"instances": [[1, 2, 3, 4]], "signature_name": 7}, ["signature_name"]),
        ("two", {"instances": [[1, 2, 3]]}, ["instances[0]", "plain value", "'a', 'b'"]),
        ("two", {"instances": [TWO_ROWS[0], {"a": [1, 2, 3]}]}, ["instances[1]", "no 'b'"]),
        ("two", {"inputs": [1, 2]}, ["inputs", "plain value", "'a', 'b'"]),
        ("two", {"inputs": {"a": [[1, 2, 3]], "b": [[1, 2]] * 2}}, ["{'a': 1, 'b': 2}"]),
        ("two", {"inputs": {"a": [[1, 2, 3]], "b": [[1, 2]], "c": 1}}, ["'c'", "'a', 'b'"]),
        ("scores", {"instances": [{"b64": "!"}]}, ["instances[0].b64", "base64"]),
        ("scores", {"inputs": [{"b64": "AAAA"}]}, ["inputs[0]", "no image"]),
    ],
    ids=lambda value: str(value)[:32],
)
def test_a_request_that_does_not_fit_is_refused_and_named(
    http: httpx.Client, server: Server, model: str, body: dict[str, Any], said: list[str]
) -> None:
    message = refusal(ask(http, model, **body))
    for words in said:
        assert words in message
    server.assert_settled()


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"instances": [NaN]}', b'{"instances": ' + b"[" * 100_000])
def test_broken_json_is_refused(http: httpx.Client, body: bytes) -> None:
    refusal(http.post("/v1/models/echo:predict", content=body))


# ── images, text, items that differ in size ──────────────────────────────────────────────────────────────────────────


def test_images_come_as_base64_among_numbers(http: httpx.Client) -> None:
    pictures = [numbered(i) for i in range(3)]
    expected = quarters_of(np.stack(pictures)).tolist()
    items = [b64(encode(pictures[0])), pictures[1].tolist(), b64(encode(pictures[2], "BMP"))]
    assert answer_of(ask(http, "scores", instances=items)) == {"predictions": expected}
    assert answer_of(ask(http, "scores", instances=[{"image": item} for item in items])) == {"predictions": expected}
    assert answer_of(ask(http, "scores", inputs=items)) == {"outputs": expected}
    assert answer_of(ask(http, "scores", inputs={"image": items})) == {"outputs": expected}
    assert answer_of(ask(http, "scores", inputs=items[0])) == {"outputs": expected[:1]}


def test_large_images_are_decoded_in_a_thread(http: httpx.Client, server: Server) -> None:
    picture = np.full((2000, 2000), 9, np.uint8)
    assert answer_of(ask(http, "scores", instances=[b64(encode(picture))] * 3)) == {"predictions": [[9 * 196] * 4] * 3}
    broken = b64(encode(np.random.default_rng(0).integers(0, 256, (500, 500), np.uint8))[:-5000])
    assert "instances[1]" in refusal(ask(http, "scores", instances=[b64(encode(picture)), broken]))
    server.assert_settled()


def text64(text: str) -> dict[str, str]:
    return {"b64": base64.b64encode(text.encode()).decode()}


def test_base64_stands_for_text_anywhere_in_a_bytes_tensor(any_http: httpx.Client) -> None:
    assert answer_of(ask(any_http, "repeated", instances=["a", text64("ü"), "{"])) == {
        "predictions": ["aaaaa", "üüüüü", "{{{{{"]
    }
    assert answer_of(ask(any_http, "labels", inputs={"x": [text64("cat"), "dog"]})) == {"outputs": [1, 2]}
    rows = [{"a": ["x", text64("y")], "b": [text64("1"), "2"]}, {"a": ["z"], "b": ["3"]}]
    assert answer_of(ask(any_http, "words", instances=rows)) == {"predictions": [["x1", "y2"], ["z3"]]}
    assert "UTF-8" in refusal(ask(any_http, "repeated", instances=[{"b64": "/w=="}]))
    assert "base64" in refusal(ask(any_http, "repeated", instances=["a", {"b64": "?"}]))
    assert "'c64'" in refusal(ask(any_http, "words", instances=[{"a": [{"c64": "b64"}, {"b64": ""}], "b": ["", ""]}]))


def test_items_may_differ_in_size(any_http: httpx.Client) -> None:
    rows = [[1, 2], [], [3]]
    doubled = [[2, 4], [], [6]]
    expected = [{"double": row, "total": sum(row) / 2} for row in doubled]
    assert answer_of(ask(any_http, "ragged", instances=rows)) == {"predictions": expected}
    assert answer_of(ask(any_http, "ragged", inputs=rows)) == {"outputs": columns(expected)}
    assert "inputs[1]" in refusal(ask(any_http, "ragged", inputs=[[1], [[2]]]))


def test_without_a_batch_axis_an_item_is_a_run(any_http: httpx.Client) -> None:
    x = np.arange(6).reshape(3, 2).tolist()
    y = [[2 * value for value in row] for row in x]
    assert answer_of(ask(any_http, "fixed", instances=[x, y])) == {"predictions": [y, [[4 * v for v in r] for r in x]]}
    assert answer_of(ask(any_http, "fixed", inputs=x)) == {"outputs": y}
    matrix = {"x": [[1, 2, 3], [4, 0, 6]], "bias": 1}
    turned = {"turned": [[2, 5], [3, 1], [4, 7]], "where": [[0, 0, 0, 1, 1], [0, 1, 2, 0, 2]]}
    assert answer_of(ask(any_http, "matrix", inputs=matrix)) == {"outputs": turned}
    assert answer_of(ask(any_http, "matrix", instances=[matrix])) == {"predictions": [turned]}
    assert answer_of(ask(any_http, "constant", instances=[{}, {}])) == {"predictions": [[7, 8]] * 2}
    assert answer_of(ask(any_http, "constant", inputs={})) == {"outputs": [7, 8]}


def test_a_datatype_that_json_has_no_form_for_is_refused(any_http: httpx.Client) -> None:
    assert "BF16" in refusal(ask(any_http, "upper", instances=[[1, 2, 3]]))
    message = refusal(ask(any_http, "all-BF16", inputs={f"x{i}": [] for i in range(6)}))
    assert "/v2/models/all-BF16/infer" in message


# ── classify and regress ─────────────────────────────────────────────────────────────────────────────────────────────


def test_classify_gives_every_label_its_score_in_the_models_order(http: httpx.Client) -> None:
    rows = [[9, 1, 5], [0, 0, 255]]
    expected = [[[label, score] for label, score in zip(PARTIES, row, strict=True)] for row in rows]
    assert answer_of(ask(http, "votes", "classify", examples=[{"x": row} for row in rows])) == {"results": expected}
    sums = quarters_of(PICTURE)[0].tolist()
    examples = [{"image": b64(encode(PICTURE))}]
    pairs = [[label, score] for label, score in zip(QUARTERS, sums, strict=True)]
    assert answer_of(ask(http, "scores", "classify", examples=examples)) == {"results": [pairs]}


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """area: x FP32 [n, 2], columns width and height → y FP32 [n, 1] = 3 width + height. both: x FP32 [n] → y, z = x."""
    root: Path = tmp_path_factory.mktemp("regression")
    x, y, z = (TensorSpec(name, "FP32", (-1,)) for name in "xyz")
    area = Graph(
        [TensorSpec("x", "FP32", (-1, 2))],
        [TensorSpec("y", "FP32", (-1, 1))],
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        {"weights": np.array([[3], [1]], np.float32)},
    )
    publish(write_model(root, "area", area), area, TensorInput(("width", "height")))
    copies = [helper.make_node("Identity", ["x"], [name]) for name in "yz"]
    write_model(root, "both", Graph([x], [y, z], copies))
    write_model(root, "half", Graph([x], [y], copies[:1]))
    with (
        running_server(*FAST_START, "--repository", str(root)) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "body",
    [
        {"examples": [{"x": [2, 5]}, {"x": [1, 0]}]},
        {"examples": [{"width": 2, "height": 5}, {"height": 0, "width": 1}]},
        {"examples": [{"width": [2], "height": [5]}, {"height": [0], "width": [1]}]},
        {"signature_name": "tensorflow/serving/regress", "examples": [{"x": [[2, 5]]}, {"x": [[1, 0]]}]},
        {"signature_name": "serving_default", "examples": [{"x": [2, 5]}, {"x": [1, 0]}]},
    ],
    ids=["input", "columns", "columns as lists", "nested", "default"],
)
def test_regress_gives_a_number_for_each_example(regression: httpx.Client, body: dict[str, Any]) -> None:
    assert answer_of(ask(regression, "area", "regress", **body)) == {"results": [11, 3]}


def test_a_context_holds_for_every_example(regression: httpx.Client) -> None:
    body = {"context": {"height": 5}, "examples": [{"width": 2}, {"width": 1}]}
    assert answer_of(ask(regression, "area", "regress", **body)) == {"results": [11, 8]}
    assert answer_of(ask(regression, "half", "regress", examples=[{"x": 1.5}])) == {"results": [1.5]}
    message = refusal(ask(regression, "area", "regress", context={"width": 1}, examples=[{"width": 2, "height": 1}]))
    assert "examples[0]" in message
    assert "context" in message


def test_predict_takes_named_columns_too(regression: httpx.Client) -> None:
    assert answer_of(ask(regression, "area", instances=[{"width": 2, "height": 5}])) == {"predictions": [[11]]}


@pytest.mark.parametrize(
    ("model", "verb", "body", "said"),
    [
        ("area", "classify", {"examples": [{"x": [1, 2]}]}, ["'area'", "no labels", ":predict"]),
        ("both", "regress", {"examples": [{"x": 1}]}, ["2 outputs", ":predict"]),
        ("area", "regress", {}, ["examples"]),
        ("area", "regress", {"examples": []}, ["examples is empty"]),
        ("area", "regress", {"examples": [1]}, ["examples[0]", "object"]),
        ("area", "regress", {"examples": {"x": [1, 2]}}, ["examples", "array"]),
        ("area", "regress", {"examples": [{"width": 1}]}, ["examples[0]", "no 'height'"]),
        ("area", "regress", {"examples": [{"width": 1, "height": 2, "depth": 3}]}, ["examples[0]", "'depth'"]),
        ("area", "regress", {"examples": [{"x": [1, 2, 3]}]}, ["'x'", "3 values"]),
        ("area", "regress", {"examples": [{"width": "wide", "height": 1}]}, ["'x'", "numbers"]),
        ("area", "regress", {"examples": [{"x": [1, 2]}], "context": 7}, ["context"]),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_classified_or_regressed_says_why(
    regression: httpx.Client, model: str, verb: str, body: dict[str, Any], said: list[str]
) -> None:
    message = refusal(ask(regression, model, verb, **body))
    for words in said:
        assert words in message


def test_regress_is_for_one_number_an_item(http: httpx.Client, any_http: httpx.Client) -> None:
    assert "UINT64 [-1, 2]" in refusal(ask(http, "wide", "regress", examples=[{"x": [1, 2]}]))
    assert "BYTES" in refusal(ask(any_http, "repeated", "regress", examples=[{"x": "a"}]))


# ── what is not there ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["echo/versions/2:predict", "echo/versions/01:predict", "nothing:predict"])
def test_an_unknown_model_or_version_is_404(http: httpx.Client, path: str) -> None:
    message = refusal(http.post(f"/v1/models/{path}", json={"instances": [[1, 2, 3, 4]]}), 404)
    assert "ready: " in message


@pytest.mark.parametrize("path", ["echo:explain", "echo:Predict", "echo:", "echo/versions/1:explain"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_an_unknown_verb_is_404_and_the_message_lists_those_there_are(
    http: httpx.Client, path: str, method: str
) -> None:
    message = refusal(http.request(method, f"/v1/models/{path}"), 404)
    for verb in (":predict", ":classify", ":regress"):
        assert verb in message


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/labels/stable:predict"), ("GET", "/labels/stable"), ("GET", "/labels/a/metadata")]
)
def test_labels_are_404_and_the_message_lists_those_there_are(http: httpx.Client, method: str, path: str) -> None:
    message = refusal(http.request(method, f"/v1/models/echo{path}"), 404)
    assert message.endswith("labels: none")
    assert "no model" in refusal(http.request(method, f"/v1/models/nothing{path}"), 404)


# ── status and metadata ──────────────────────────────────────────────────────────────────────────────────────────────

AVAILABLE = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


def test_models_are_listed(http: httpx.Client) -> None:
    assert answer_of(http.get("/v1/models")) == answer_of(http.get("/v2/models"))


@pytest.mark.parametrize("path", ["/v1/models/echo", "/v1/models/echo/versions/1"])
def test_the_status_is_what_clients_of_both_protocols_read(http: httpx.Client, path: str) -> None:
    assert answer_of(http.get(path)) == {"name": "echo", "ready": True, "model_version_status": [AVAILABLE]}


@pytest.mark.parametrize("path", ["", "/metadata"])
def test_the_status_of_what_is_not_there_is_404(http: httpx.Client, path: str) -> None:
    assert "no model" in refusal(http.get(f"/v1/models/nothing{path}"), 404)
    assert "ready: 1" in refusal(http.get(f"/v1/models/echo/versions/7{path}"), 404)


def test_a_refused_version_says_why(serve: Serve, only: Callable[..., Path]) -> None:
    root = only("flags")
    (root / "broken" / "7").mkdir(parents=True)
    (root / "broken" / "7" / "model.onnx").write_bytes(b"no model")
    server = serve(models=root)
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        for path in ("/v1/models/broken", "/v1/models/broken/versions/7"):
            answer = http.get(path)
            assert (answer.status_code, answer.json()["name"], answer.json()["ready"]) == (503, "broken", False)
            assert answer.headers["retry-after"] == "1"
            (version,) = answer.json()["model_version_status"]
            assert (version["version"], version["state"]) == ("7", "END")
            assert version["status"]["error_code"] == "FAILED_PRECONDITION"
            assert "Protobuf" in version["status"]["error_message"]
        assert http.get("/v1/models/flags").json()["ready"] is True


@pytest.mark.parametrize("path", ["/v1/models/two/metadata", "/v1/models/two/versions/1/metadata"])
def test_metadata_is_a_signature(http: httpx.Client, path: str) -> None:
    metadata = answer_of(http.get(path))
    assert metadata["model_spec"] == {"name": "two", "signature_name": "", "version": "1"}
    (signature,) = metadata["metadata"]["signature_def"]["signature_def"].items()
    assert signature[0] == "serving_default"
    assert signature[1]["method_name"] == "tensorflow/serving/predict"
    inputs, outputs = signature[1]["inputs"], signature[1]["outputs"]
    assert {name: tensor["dtype"] for name, tensor in inputs.items()} == {"a": "DT_FLOAT", "b": "DT_INT32"}
    assert {name: tensor["dtype"] for name, tensor in outputs.items()} == {"total": "DT_FLOAT", "negated": "DT_INT32"}
    assert inputs["a"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
        "unknown_rank": False,
    }


def test_every_datatype_has_a_name_in_the_metadata(any_http: httpx.Client) -> None:
    for model in answer_of(any_http.get("/v1/models"))["models"]:
        signature = answer_of(any_http.get(f"/v1/models/{model}/metadata"))["metadata"]["signature_def"]
        tensors = signature["signature_def"]["serving_default"]["outputs"].values()
        assert all(tensor["dtype"].startswith("DT_") for tensor in tensors)


def test_answers_carry_what_all_predictions_do(server: Server) -> None:
    with Wire(server) as wire:
        wire.post("/v1/models/picky:predict", b'{"instances": [3]}', "X-Request-ID: mine")
        answer = wire.answer()
        assert (answer.status, answer.json()) == (200, {"predictions": [33]})
        assert answer.headers["x-request-id"] == "mine"
        assert "batch;desc=" in answer.headers["server-timing"]
        wire.post("/v1/models/picky:predict", b'{"instances": [99]}')
        assert "model failed" in wire.answer().json()["error"]
