"""POST /v2/models/{model}/infer with JSON tensors: what is accepted, and what each refusal says."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

ECHO = "/v2/models/echo/infer"


def tensor(data: Any, shape: list[int], datatype: str = "UINT8", name: str = "x", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def infer(http: httpx.Client, model: str, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    return http.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **more})


def outputs_of(answer: httpx.Response) -> dict[str, dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in answer.headers
    return {output["name"]: output for output in answer.json()["outputs"]}


def refusal(answer: httpx.Response) -> str:
    """The message of a 400."""
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


@pytest.mark.parametrize("path", [ECHO, "/v2/models/echo/versions/1/infer"])
@pytest.mark.parametrize(
    "data",
    [[[1, 2, 3, 4], [5, 6, 7, 255]], [1, 2, 3, 4, 5, 6, 7, 255]],
    ids=["nested", "flat"],
)
def test_items_come_back_in_order_from_nested_and_flat_data(http: httpx.Client, path: str, data: list) -> None:
    answer = http.post(path, json={"inputs": [tensor(data, [2, 4])], "id": "seven"})
    assert outputs_of(answer) == {
        "same": {"name": "same", "datatype": "UINT8", "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 255]},
        "half": {"name": "half", "datatype": "FP32", "shape": [2, 4], "data": [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 127.5]},
    }
    assert {key: answer.json()[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "echo",
        "model_version": "1",
        "id": "seven",
    }


@pytest.mark.parametrize("content_type", [None, "application/json", "application/json; charset=utf-8", "text/plain"])
def test_json_needs_no_content_type(http: httpx.Client, content_type: str | None) -> None:
    body = json.dumps({"inputs": [tensor([1, 2, 3, 4], [1, 4])]}).encode()
    answer = http.post(ECHO, content=body, headers={"content-type": content_type} if content_type else {})
    assert outputs_of(answer)["same"]["data"] == [1, 2, 3, 4]


def test_an_answer_to_a_request_without_id_has_none(http: httpx.Client) -> None:
    assert "id" not in infer(http, "echo", tensor([1, 2, 3, 4], [1, 4])).json()


def test_more_items_than_a_batch_holds_are_split_and_joined(http: httpx.Client) -> None:
    data = [i % 256 for i in range(4 * 500)]
    assert outputs_of(infer(http, "echo", tensor(data, [500, 4])))["same"]["data"] == data


@pytest.mark.parametrize("names", [["half"], ["same"], ["half", "same"], ["same", "half"]])
def test_requested_outputs_come_in_the_requested_order(http: httpx.Client, names: list[str]) -> None:
    answer = infer(http, "echo", tensor([2, 4, 6, 8], [1, 4]), outputs=[{"name": name} for name in names])
    data = {"same": [2, 4, 6, 8], "half": [1, 2, 3, 4]}
    assert [(output["name"], output["data"]) for output in answer.json()["outputs"]] == [(n, data[n]) for n in names]


def test_an_empty_list_of_outputs_asks_for_all(http: httpx.Client) -> None:
    assert outputs_of(infer(http, "echo", tensor([1, 2, 3, 4], [1, 4]), outputs=[])).keys() == {"same", "half"}


@pytest.mark.parametrize("turned", [False, True])
def test_inputs_are_told_apart_by_name(http: httpx.Client, turned: bool) -> None:
    inputs = [
        tensor([[1.5, 2, 3], [10, 20, 30.25]], [2, 3], "FP32", "a"),
        tensor([[4, 5], [-40, 50]], [2, 2], "INT32", "b"),
    ]
    outputs = outputs_of(infer(http, "two", *(reversed(inputs) if turned else inputs)))
    assert outputs["total"] == {"name": "total", "datatype": "FP32", "shape": [2], "data": [15.5, 70.25]}
    assert outputs["negated"] == {"name": "negated", "datatype": "INT32", "shape": [2, 2], "data": [-4, -5, 40, -50]}


def test_whole_numbers_are_fine_for_floats(http: httpx.Client) -> None:
    assert outputs_of(infer(http, "floats", tensor([1, -2], [1, 2], "FP32")))["y"]["data"] == [1.0, -2.0]


def test_fp16_is_read_and_written_as_numbers(http: httpx.Client) -> None:
    outputs = outputs_of(infer(http, "halves", tensor([0.1, 2, -3.5], [1, 3], "FP16")))
    assert outputs["y"]["datatype"] == "FP16"
    assert outputs["y"]["data"] == [float(np.float16(0.1) * 2), 4.0, -7.0]


def test_bool_is_read_and_written_as_true_and_false(http: httpx.Client) -> None:
    outputs = outputs_of(infer(http, "flags", tensor([True, False, True], [1, 3], "BOOL")))
    assert outputs["y"] == {"name": "y", "datatype": "BOOL", "shape": [1, 3], "data": [False, True, False]}


@pytest.mark.parametrize("row", [[0, 2**64 - 1], [2**63, 1], [2**53 + 1, 2**53 - 1]])
def test_the_largest_whole_numbers_keep_every_digit(http: httpx.Client, row: list[int]) -> None:
    assert outputs_of(infer(http, "wide", tensor(row, [1, 2], "UINT64")))["y"]["data"] == row


@pytest.mark.parametrize("data", [[None, 1.5], [[1.5, None]], [None, None]])
def test_null_is_nan_both_ways(http: httpx.Client, data: list) -> None:
    flat = data[0] if isinstance(data[0], list) else data
    assert outputs_of(infer(http, "floats", tensor(data, [1, 2], "FP32")))["y"]["data"] == flat


def test_what_is_too_large_for_fp16_is_infinite_and_written_as_null(http: httpx.Client) -> None:
    assert outputs_of(infer(http, "halves", tensor([1e6, 1, 40000], [1, 3], "FP16")))["y"]["data"] == [None, 2, None]


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        ("echo", [tensor([1, 2, 3, 256], [1, 4])], ["'x'", "256", "0 to 255", "UINT8"]),
        ("echo", [tensor([1, 2, 3, -1], [1, 4])], ["'x'", "-1", "0 to 255", "UINT8"]),
        ("picky", [tensor([2**63], [1], "INT64")], ["'x'", str(2**63), "INT64"]),
        ("wide", [tensor([1, 2**64], [1, 2], "UINT64")], ["'x'"]),
        ("wide", [tensor([2**63, -1], [1, 2], "UINT64")], ["'x'"]),
        ("echo", [tensor([1, 2, 3, 3.7], [1, 4])], ["'x'", "`float`", "whole numbers"]),
        ("echo", [tensor([1, 2, 3, 4.0], [1, 4])], ["'x'", "`float`", "whole numbers"]),
        ("echo", [tensor([1, 2, 3, "4"], [1, 4])], ["'x'", "whole numbers"]),
        ("echo", [tensor([1, 2, 3, None], [1, 4])], ["'x'", "null", "whole numbers"]),
        ("echo", [tensor([True, False, True, True], [1, 4])], ["'x'", "`bool`", "whole numbers"]),
        ("echo", [tensor([1, 2, 3, True], [1, 4])], ["'x'", "whole numbers"]),
        ("echo", [tensor([1, 2, 3, {}], [1, 4])], ["'x'", "whole numbers"]),
        ("floats", [tensor([1.5, "2.5"], [1, 2], "FP32")], ["'x'", "numbers"]),
        ("floats", [tensor([None, "2.5"], [1, 2], "FP32")], ["'x'", "numbers"]),
        ("floats", [tensor([None, True], [1, 2], "FP32")], ["'x'", "numbers"]),
        ("floats", [tensor([1.5, True], [1, 2], "FP32")], ["'x'", "numbers"]),
        ("floats", [tensor([1.5, [2.5]], [1, 2], "FP32")], ["'x'", "numbers", "`array`"]),
        ("floats", [tensor([None, [2.5]], [1, 2], "FP32")], ["'x'", "numbers", "`array`"]),
        ("flags", [tensor([1, 0, 1], [1, 3], "BOOL")], ["'x'", "true or false"]),
        ("flags", [tensor([True, 0, True], [1, 3], "BOOL")], ["'x'", "true or false"]),
        ("echo", [tensor([[1, 2, 3, 4], [5, 6]], [2, 4])], ["'x'", "ragged"]),
        ("echo", [tensor([1, 2, 3], [1, 4])], ["'x'", "3 values", "4", "[1, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [2, 4])], ["'x'", "4 values", "8", "[2, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [1, 5])], ["'x'", "[1, 5]", "[n, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [4])], ["'x'", "[4]", "[n, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [1, 1, 4])], ["'x'", "[1, 1, 4]", "[n, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [])], ["'x'", "[]", "[n, 4]"]),
        ("echo", [tensor([], [0, 3])], ["'x'", "[0, 3]", "[n, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [0, 4])], ["'x'", "4 values", "expected 0"]),
        ("echo", [tensor([1, 2, 3, 4], [-1, 4])], ["'x'", "[-1, 4]", "[n, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [-1, -4])], ["'x'", "[-1, -4]", "[n, 4]"]),
        ("echo", [tensor([1, 2, 3, 4], [2**62, 4])], ["'x'", "4 values", str(2**64)]),
        ("echo", [tensor([1, 2, 3, 4], [2**64, 4])], ["'x'", "4 values", str(2**66)]),
        ("echo", [tensor([1, 2, 3, 4], [2**64 + 1, 4])], ["'x'", "4 values"]),
        ("echo", [tensor([1, 2, 3, 4], [1.5, 4])], ["shape", "int", "float"]),
        ("echo", [tensor([1, 2, 3, 4], "1,4")], ["shape", "array", "str"]),
        ("echo", [tensor([0] * 8004, [2001, 4])], ["2001 items", "1024"]),
        ("echo", [tensor([1, 2, 3, 4], [1, 4], "FP32")], ["'x'", "FP32", "UINT8"]),
        ("echo", [tensor([1, 2, 3, 4], [1, 4], "uint8")], ["'x'", "uint8", "UINT8"]),
        ("echo", [tensor(["abcd"], [1, 4], "BYTES")], ["'x'", "BYTES", "UINT8"]),
        ("echo", [tensor([1, 2, 3, 4], [1, 4], name="y")], ["'y'", "'x'"]),
        ("echo", [tensor([1, 2, 3, 4], [1, 4])] * 2, ["'x'", "twice"]),
        ("two", [tensor([1, 2, 3], [1, 3], "FP32", "a")], ["missing", "'b'"]),
        ("echo", [], ["missing", "'x'"]),
        (
            "two",
            [tensor([1, 2, 3], [1, 3], "FP32", "a"), tensor([1, 2, 3, 4], [2, 2], "INT32", "b")],
            ["first dimension", "same"],
        ),
        ("echo", [{"name": "x", "shape": [1, 4], "datatype": "UINT8"}], ["'x'", "data"]),
        ("echo", [tensor(None, [1, 4])], ["'x'", "data", "array", "null"]),
        ("echo", [tensor(7, [1, 4])], ["'x'", "data", "array", "int"]),
        ("echo", [tensor("AQIDBA==", [1, 4])], ["'x'", "data", "array", "str"]),
        ("echo", [{"name": "x", "shape": [1, 4], "data": [1, 2, 3, 4]}], ["datatype", "inputs[0]"]),
        ("echo", [{"name": "x", "datatype": "UINT8", "data": [1, 2, 3, 4]}], ["shape", "inputs[0]"]),
        ("echo", [{"shape": [1, 4], "datatype": "UINT8", "data": [1, 2, 3, 4]}], ["name", "inputs[0]"]),
        ("echo", [7], ["inputs[0]", "object", "int"]),
        ("echo", [tensor([1, 2, 3, 4], [1, 4], parameters=[])], ["parameters", "object", "array"]),
    ],
)
def test_an_input_that_does_not_fit_is_refused_and_named(
    http: httpx.Client, model: str, inputs: list[dict[str, Any]], said: list[str]
) -> None:
    message = refusal(infer(http, model, *inputs))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([{"name": "other"}], ["'other'", "'same', 'half'"]),
        ([{"name": "same"}, {"name": "same"}], ["'same'", "twice"]),
        ([{}], ["name", "outputs[0]"]),
        ("same", ["outputs", "array", "str"]),
    ],
)
def test_outputs_that_cannot_be_given_are_refused_and_named(http: httpx.Client, outputs: Any, said: list[str]) -> None:
    message = refusal(infer(http, "echo", tensor([1, 2, 3, 4], [1, 4]), outputs=outputs))
    for words in said:
        assert words in message


DIGITS = b"9" * 5000  # more than Python's int() takes


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", ["JSON"]),
        (b"{", ["not valid JSON"]),
        (b'{"inputs": [', ["not valid JSON"]),
        (b"\xff\xfe", ["JSON"]),
        (b"PK\x03\x04", ["not valid JSON"]),
        (b"[]", ["object", "array"]),
        (b"null", ["object", "null"]),
        (b'"x"', ["object", "str"]),
        (b"{}", ["inputs"]),
        (b'{"inputs": {}}', ["inputs", "array"]),
        (b'{"inputs": [], "id": 7}', ["id", "str", "int"]),
        (b'{"inputs": [], "parameters": 7}', ["parameters", "object", "int"]),
        (b'{"inputs": []} {}', ["JSON"]),
        (b'{"inputs": [{"name": "x\xff"}]}', ["JSON"]),
        (b"[" * 100_000, ["the inference request"]),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["the inference request"]),
        (b'{"parameters": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b'}, "inputs": []}', ["nested too deeply"]),
        (b'{"parameters": {"a": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001 + b', "inputs": []}', ["nested"]),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_a_body_that_is_no_request_is_refused(http: httpx.Client, body: bytes, said: list[str]) -> None:
    message = refusal(http.post(ECHO, content=body))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    "data",
    [
        *(b"[" * 100_000 + b"]" * 100_000, b"[" * 70 + b"1" + b"]" * 70, b"[" * 500 + b"1,2,3,4" + b"]" * 500),
        *(b"[1, 2, 3, NaN]", b"[1, 2, 3, Infinity]", b"[1, 2, 3, 1e999]", b"[1, 2, 3, -1e999]"),
        *(b"[1, 2, 3, " + DIGITS + b"]", b"[1, 2, 3, -" + DIGITS + b"]", b"[1, 2, 3, 0." + DIGITS + b"]"),
        *(b"[[1, 2], [3, 4], []]", b"[[], [], [], []]", b"[[[]]]", b'["1", "2", "3", "4"]', b"[01, 2, 3, 4]"),
    ],
    ids=lambda value: repr(value[:24]),
)
@pytest.mark.parametrize("model", ["echo", "wide"])
def test_data_that_is_no_tensor_is_refused(http: httpx.Client, model: str, data: bytes) -> None:
    datatype, shape = (b"UINT8", b"[1, 4]") if model == "echo" else (b"UINT64", b"[2, 2]")
    body = b'{"inputs": [{"name": "x", "shape": %s, "datatype": "%s", "data": %s}]}' % (shape, datatype, data)
    message = refusal(http.post(f"/v2/models/{model}/infer", content=body))
    assert any(words in message for words in ("'x'", "JSON", "nested"))


@pytest.mark.parametrize("where", ["shape", "parameters"])
def test_a_number_of_five_thousand_digits_is_refused(http: httpx.Client, where: str) -> None:
    shape = b"[%s, 4]" % DIGITS if where == "shape" else b"[1, 4]"
    size = DIGITS if where == "parameters" else b"null"
    body = (
        b'{"inputs": [{"name": "x", "shape": %s, "datatype": "UINT8", "data": [1, 2, 3, 4], '
        b'"parameters": {"binary_data_size": %s}}]}' % (shape, size)
    )
    refusal(http.post(ECHO, content=body))


def test_an_item_that_fails_in_the_model_is_500_and_the_next_is_answered(http: httpx.Client) -> None:
    assert infer(http, "picky", tensor([10], [1], "INT64")).status_code == 500
    assert outputs_of(infer(http, "picky", tensor([9, 3], [2], "INT64")))["y"]["data"] == [99, 33]
