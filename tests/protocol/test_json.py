"""Inference with JSON alone: C2. Every answer is compared with that of its own input."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.protocol.exchange import infer, infer_path, outputs, refusal, tensor

ROWS = np.arange(32, dtype=np.int32).reshape(2, 16)
FLOATS = [[0.5, -1.25, 3e10, 0], [1, 2, 3, 4]]


def simple(**more: Any) -> dict[str, Any]:
    """A request to `simple`: ROWS and ten times ROWS."""
    inputs = [
        tensor("INPUT0", "INT32", [2, 16], ROWS.tolist()),
        tensor("INPUT1", "INT32", [2, 16], (10 * ROWS).ravel().tolist()),
    ]
    return {"inputs": inputs, **more}


SUM, DIFFERENCE = 11 * ROWS, -9 * ROWS


def test_several_inputs_and_outputs(http: httpx.Client) -> None:
    answer = outputs(http.post(infer_path("simple"), json=simple()))
    assert answer.text["model_name"] == "simple"
    assert answer.text["model_version"] == "1"
    assert np.array_equal(answer.arrays["OUTPUT0"], SUM)
    assert np.array_equal(answer.arrays["OUTPUT1"], DIFFERENCE)
    assert [(x["datatype"], x["shape"]) for x in answer.text["outputs"]] == [("INT32", [2, 16])] * 2


def test_inputs_are_told_apart_by_name_not_by_place(http: httpx.Client) -> None:
    request = simple()
    request["inputs"].reverse()
    assert np.array_equal(outputs(http.post(infer_path("simple"), json=request)).arrays["OUTPUT1"], DIFFERENCE)


@pytest.mark.parametrize(
    "data",
    [FLOATS, [x for row in FLOATS for x in row], [FLOATS], [[[x] for x in row] for row in FLOATS]],
    ids=["nested as its shape", "flat", "nested deeper in front", "nested deeper behind"],
)
def test_data_is_nested_or_flat_in_row_major_order(http: httpx.Client, data: Any) -> None:
    answer = outputs(infer(http, "floats", tensor("x", "FP32", [2, 4], data)))
    assert np.array_equal(answer.arrays["y"], np.array(FLOATS, np.float32))


@pytest.mark.parametrize("count", [0, 1, 7, 9, 16])
def test_the_number_of_elements_is_that_of_the_shape(http: httpx.Client, count: int) -> None:
    message = refusal(infer(http, "floats", tensor("x", "FP32", [2, 4], [0.5] * count)))
    assert "x" in message


@pytest.mark.parametrize("data", [[[1, 2, 3], [4, 5, 6, 7, 8]], [[1, 2, 3, 4], 5, 6, 7, 8], [1, [2, 3, 4, 5, 6, 7, 8]]])
def test_ragged_data_is_refused(http: httpx.Client, data: Any) -> None:
    refusal(infer(http, "floats", tensor("x", "FP32", [2, 4], data)))


@pytest.mark.parametrize("given", ["7", "é ü", "a" * 500, '"quoted" \\ \n'])
def test_the_id_comes_back_as_it_was(http: httpx.Client, given: str) -> None:
    assert outputs(http.post(infer_path("simple"), json=simple(id=given))).text["id"] == given


def test_an_id_that_is_no_string_is_refused(http: httpx.Client) -> None:
    refusal(http.post(infer_path("simple"), json=simple(id=7)))


@pytest.mark.parametrize("names", [["OUTPUT1"], ["OUTPUT0"], ["OUTPUT1", "OUTPUT0"], ["OUTPUT0", "OUTPUT1"]])
def test_outputs_come_in_the_order_they_were_asked_for(http: httpx.Client, names: list[str]) -> None:
    answer = outputs(http.post(infer_path("simple"), json=simple(outputs=[{"name": name} for name in names])))
    assert [x["name"] for x in answer.text["outputs"]] == names
    expected = {"OUTPUT0": SUM, "OUTPUT1": DIFFERENCE}
    assert all(np.array_equal(answer.arrays[name], expected[name]) for name in names)


@pytest.mark.parametrize("more", [{}, {"outputs": []}], ids=["absent", "empty"])
def test_without_outputs_all_come(http: httpx.Client, more: dict[str, Any]) -> None:
    assert outputs(http.post(infer_path("simple"), json=simple(**more))).arrays.keys() == {"OUTPUT0", "OUTPUT1"}


def test_the_version_can_be_in_the_path(http: httpx.Client) -> None:
    answer = outputs(http.post(infer_path("simple", "1"), json=simple()))
    assert answer.text["model_version"] == "1"
    assert np.array_equal(answer.arrays["OUTPUT0"], SUM)


def test_requests_of_different_shapes_answer_as_their_own(http: httpx.Client) -> None:
    for length in (1, 5, 2, 7):
        x = np.arange(2 * length, dtype=np.float32).reshape(2, length)
        answer = outputs(infer(http, "variable", tensor("x", "FP32", [2, length], x.tolist())))
        assert np.array_equal(answer.arrays["y"], x)


def test_a_model_without_a_batch_takes_its_own_shape(http: httpx.Client) -> None:
    x = [[1.5, 2, 3], [4, 5, 6]]
    assert outputs(infer(http, "unbatched", tensor("x", "FP32", [2, 3], x))).arrays["y"].tolist() == x
    refusal(infer(http, "unbatched", tensor("x", "FP32", [1, 2, 3], x)))


@pytest.mark.parametrize("content_type", [None, "application/json", "application/json; charset=utf-8", "text/plain"])
def test_json_needs_no_content_type(http: httpx.Client, content_type: str | None) -> None:
    """Clients send none, or what their library puts there."""
    headers = {} if content_type is None else {"content-type": content_type}
    answer = http.post(infer_path("simple"), content=json.dumps(simple()).encode(), headers=headers)
    assert np.array_equal(outputs(answer).arrays["OUTPUT0"], SUM)


def test_white_space_and_escapes_of_json_are_read(http: httpx.Client) -> None:
    text = json.dumps(simple(id="i"), indent=4).replace("INPUT0", "\\u0049NPUT0")
    assert np.array_equal(outputs(http.post(infer_path("simple"), content=text)).arrays["OUTPUT0"], SUM)


def test_members_that_the_protocol_does_not_know_are_left_alone(http: httpx.Client) -> None:
    request = simple(more={"a": [1]})
    request["inputs"][0]["more"] = 1
    assert np.array_equal(outputs(http.post(infer_path("simple"), json=request)).arrays["OUTPUT0"], SUM)


# ── strings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["", "a", "é€😀", "\0", 'quotes " and \\', "a\nb", "x" * 10_000])
def test_a_string_comes_back_as_it_was(http: httpx.Client, text: str) -> None:
    answer = outputs(infer(http, "texts", tensor("x", "BYTES", [1, 2], [text, "other"])))
    assert answer.arrays["y"].tolist() == [[text, "other"]]


@pytest.mark.parametrize("data", [[1], [None], [True], [["a", "b"]], [{"a": 1}], "a"])
def test_what_is_no_string_is_refused(http: httpx.Client, data: Any) -> None:
    refusal(infer(http, "texts", tensor("x", "BYTES", [1, 1], data)))


@pytest.mark.parametrize("body", [b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"'])
def test_a_string_that_is_not_utf_8_is_refused(http: httpx.Client, body: bytes) -> None:
    request = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":[%s]}]}' % body
    refusal(http.post(infer_path("texts"), content=request))


# ── JSON that is none, or not a request ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body", ["", " ", "{", "}", "nothing", "[1,", '{"inputs"', '{"inputs":[]}}', "\ufeff{}", "{'inputs': []}", "\0"]
)
def test_what_is_no_json_is_refused(http: httpx.Client, body: str) -> None:
    refusal(http.post(infer_path("simple"), content=body.encode()))


@pytest.mark.parametrize("body", ["null", "[]", "7", '"a"', "{}", '{"inputs":7}', '{"inputs":[7]}', '{"inputs":[[]]}'])
def test_json_that_is_no_request_is_refused(http: httpx.Client, body: str) -> None:
    refusal(http.post(infer_path("simple"), content=body))


@pytest.mark.parametrize("member", ["name", "shape", "datatype", "data"])
def test_an_input_has_all_its_members(http: httpx.Client, member: str) -> None:
    request = simple()
    del request["inputs"][0][member]
    refusal(http.post(infer_path("simple"), json=request))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("name", 7),
        ("shape", 16),
        ("shape", "[2, 16]"),
        ("shape", [2.0, 16.5]),
        ("shape", [[2, 16]]),
        ("shape", [True, 16]),
        ("datatype", 32),
        ("data", 7),
        ("data", {}),
        ("data", None),
        ("parameters", []),
    ],
)
def test_a_member_of_another_type_is_refused(http: httpx.Client, member: str, value: Any) -> None:
    request = simple()
    request["inputs"][0][member] = value
    refusal(http.post(infer_path("simple"), json=request))


@pytest.mark.parametrize("value", [7, {}, [7], [{}], [{"name": 7}], [{"name": "OUTPUT0", "parameters": 7}]])
def test_outputs_of_another_type_are_refused(http: httpx.Client, value: Any) -> None:
    refusal(http.post(infer_path("simple"), json=simple(outputs=value)))
