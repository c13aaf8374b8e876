"""Paths, verbs, metadata and health: C1 and C4. What extensions answer is in a file of its own."""

from urllib.parse import quote

import httpx
import pytest

from tests.protocol.conftest import Needs
from tests.protocol.exchange import infer, infer_path, outputs, refusal, tensor
from tests.protocol.models import ODD_NAME, ONNX_OF, identity_name

MODEL = "/v2/models/simple"
GETS = ["/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/ready", f"{MODEL}/versions/1"]


# ── paths and verbs ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [*GETS, f"{MODEL}/versions/1/ready"])
def test_what_is_asked_for_is_json_without_a_charset(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", GETS)
def test_what_is_asked_for_with_get_is_asked_for_with_nothing_else(http: httpx.Client, path: str, method: str) -> None:
    refusal(http.request(method, path), 405)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", [infer_path("simple"), infer_path("simple", "1")])
def test_inference_is_a_post(http: httpx.Client, path: str, method: str) -> None:
    refusal(http.request(method, path), 405)


@pytest.mark.parametrize(
    "path",
    [
        "/v3",
        "/v2/nothing",
        "/v2/health",
        "/v2/health/dead",
        f"{MODEL}/nothing",
        f"{MODEL}/versions",
        f"{MODEL}/versions/1/nothing",
        f"{MODEL}/versions/1/infer/more",
        "/v2/models/simple/infer/",
        "/v2//models/simple/ready/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404_in_json(http: httpx.Client, path: str, method: str) -> None:
    refusal(http.request(method, path), 404)


@pytest.mark.parametrize("path", ["", "/ready", "/versions/1", "/versions/1/ready"])
def test_an_unknown_model_is_404_in_json(http: httpx.Client, path: str) -> None:
    refusal(http.get(f"/v2/models/absent{path}"), 404)


@pytest.mark.parametrize("path", [infer_path("absent"), infer_path("absent", "1"), infer_path("simple", "99")])
def test_inference_on_an_unknown_model_or_version_is_404_in_json(http: httpx.Client, path: str) -> None:
    refusal(http.post(path, json={"inputs": []}), 404)


@pytest.mark.parametrize("version", ["0", "99", "-1", "v10", "latest", "1.0", "01"])
def test_a_version_that_is_not_there_is_404_whatever_its_form(http: httpx.Client, version: str) -> None:
    refusal(http.get(f"{MODEL}/versions/{version}"), 404)
    refusal(http.get(f"{MODEL}/versions/{version}/ready"), 404)


def test_a_models_name_is_percent_decoded_once(http: httpx.Client) -> None:
    encoded = quote(ODD_NAME, safe="")
    metadata = http.get(f"/v2/models/{encoded}")
    assert metadata.json()["name"] == ODD_NAME
    assert http.get(f"/v2/models/{encoded}/ready").status_code == 200
    answer = outputs(infer(http, encoded, tensor("x", "INT64", [2], [3, -4])))
    assert answer.text["model_name"] == ODD_NAME
    assert answer.arrays["y"].tolist() == [3, -4]
    refusal(http.get(f"/v2/models/{quote(encoded, safe='')}"), 404)


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_version_the_newest_answers(http: httpx.Client) -> None:
    answer = outputs(infer(http, "versioned", tensor("x", "INT64", [1], [7])))
    assert answer.text["model_version"] == "2"
    assert answer.arrays["y"].tolist() == [27]


def test_every_version_that_metadata_lists_answers_as_itself(http: httpx.Client) -> None:
    versions = http.get("/v2/models/versioned").json()["versions"]
    assert "2" in versions
    for version in versions:
        assert http.get(f"/v2/models/versioned/versions/{version}/ready").status_code == 200
        request = {"inputs": [tensor("x", "INT64", [1], [7])]}
        answer = outputs(http.post(infer_path("versioned", version), json=request))
        assert answer.text["model_version"] == version
        assert answer.arrays["y"].tolist() == [7 + 10 * int(version)]


# ── metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_server_metadata_has_name_version_and_extensions(http: httpx.Client) -> None:
    metadata = http.get("/v2").json()
    assert isinstance(metadata["name"], str)
    assert isinstance(metadata["version"], str)
    assert len(metadata["extensions"]) == len(set(metadata["extensions"]))


def test_both_spellings_of_the_root_are_the_same(http: httpx.Client) -> None:
    """The specification's text has /v2, its OpenAPI document /v2/."""
    assert http.get("/v2/").json() == http.get("/v2").json()


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
def test_model_metadata_lists_every_tensor_with_the_batch_in_its_shape(http: httpx.Client, path: str) -> None:
    metadata = http.get(path).json()
    assert metadata["name"] == "simple"
    assert "1" in metadata["versions"]
    assert isinstance(metadata["platform"], str)
    for side, names in (("inputs", ["INPUT0", "INPUT1"]), ("outputs", ["OUTPUT0", "OUTPUT1"])):
        assert metadata[side] == [{"name": name, "datatype": "INT32", "shape": [-1, 16]} for name in names]


@pytest.mark.parametrize("datatype", ONNX_OF)
def test_metadata_names_every_datatype_as_the_protocol_does(http: httpx.Client, datatype: str) -> None:
    metadata = http.get(f"/v2/models/{identity_name(datatype)}").json()
    assert {x["datatype"] for x in metadata["inputs"] + metadata["outputs"]} == {datatype}


@pytest.mark.parametrize(
    ("model", "shape"), [("variable", [-1, -1]), ("picture", [-1, -1, -1]), ("unbatched", [2, 3]), ("text", [-1, 1])]
)
def test_an_axis_of_any_length_is_minus_one(http: httpx.Client, model: str, shape: list[int]) -> None:
    metadata = http.get(f"/v2/models/{model}").json()
    assert [x["shape"] for x in metadata["inputs"] + metadata["outputs"]] == [shape, shape]


def test_all_models_are_listed(http: httpx.Client, elsewhere: str | None) -> None:
    """KServe's: `{"models": [...]}`."""
    answer = http.get("/v2/models")
    if elsewhere is not None and answer.status_code == 404:
        pytest.skip("the server lists no models: only KServe's protocol has the path")
    assert {"simple", "floats", ODD_NAME} <= set(answer.json()["models"])


# ── health ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_live_is_200_for_clients_that_look_at_the_status_or_at_the_body(http: httpx.Client) -> None:
    answer = http.get("/v2/health/live")
    assert answer.status_code == 200
    assert answer.json()["live"] is True


def test_ready_has_what_every_dialect_looks_for(http: httpx.Client) -> None:
    """`ready` is KServe's; `live` is what the specification's text prints there."""
    answer = http.get("/v2/health/ready")
    assert answer.status_code == 200
    assert (answer.json()["ready"], answer.json()["live"]) == (True, True)


@pytest.mark.parametrize("path", [f"{MODEL}/ready", f"{MODEL}/versions/1/ready"])
def test_a_ready_model_says_its_name(http: httpx.Client, path: str) -> None:
    body = http.get(path).json()
    assert (body["name"], body["ready"]) == ("simple", True)


# ── paths of extensions ──────────────────────────────────────────────────────────────────────────────────────────────


def test_no_model_can_take_the_name_of_a_path(http: httpx.Client, needs: Needs) -> None:
    """/v2/models/stats is the statistics of all, not the metadata of a model called stats."""
    needs("statistics")
    assert http.get("/v2/models/stats").json().keys() == {"model_stats"}
