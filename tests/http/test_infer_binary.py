"""POST /v2/models/{model}/infer with binary tensors: blobs behind the JSON, raw bodies, and what does not add up."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.http.test_infer_json import outputs_of, refusal, tensor

ECHO = "/v2/models/echo/infer"
LENGTH = "inference-header-content-length"
OCTETS = {"content-type": "application/octet-stream"}


def blob(array: np.ndarray, name: str, datatype: str, **more: Any) -> tuple[dict[str, Any], bytes]:
    """An input's JSON and its bytes."""
    data = array.tobytes()
    parameters = {"binary_data_size": len(data), **more}
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": parameters}, data


def post(http: httpx.Client, model: str, request: dict[str, Any], *blobs: bytes, **headers: str) -> httpx.Response:
    text = json.dumps(request).encode()
    path = f"/v2/models/{model}/infer"
    return http.post(path, content=text + b"".join(blobs), headers={LENGTH: str(len(text)), **headers})


def split(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An answer's JSON and its binary outputs; every byte must belong to one."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[LENGTH])
    text, rest = json.loads(answer.content[:length]), answer.content[length:]
    dtypes = {"UINT8": "u1", "FP32": "<f4", "INT32": "<i4", "FP16": "<f2", "BOOL": "?"}
    arrays = {}
    for output in text["outputs"]:
        if "data" not in output:
            size = output["parameters"]["binary_data_size"]
            arrays[output["name"]] = np.frombuffer(rest[:size], dtypes[output["datatype"]]).reshape(output["shape"])
            rest = rest[size:]
    assert not rest
    return text, arrays


X = np.array([[1, 2, 3, 4], [5, 6, 7, 255]], np.uint8)


def test_a_binary_input_gives_json_outputs_unless_asked(http: httpx.Client) -> None:
    given, data = blob(X, "x", "UINT8")
    outputs = outputs_of(post(http, "echo", {"inputs": [given], "id": "b"}, data))
    assert outputs["same"]["data"] == X.ravel().tolist()
    assert outputs["half"]["data"] == (X.ravel() / 2).tolist()


def test_the_header_with_json_alone_works(http: httpx.Client) -> None:
    outputs = outputs_of(post(http, "echo", {"inputs": [tensor([1, 2, 3, 4], [1, 4])]}))
    assert outputs["same"]["data"] == [1, 2, 3, 4]


def test_the_header_counts_more_than_the_content_type(http: httpx.Client) -> None:
    given, data = blob(X, "x", "UINT8")
    for content_type in ("application/octet-stream", "application/json"):
        answer = post(http, "echo", {"inputs": [given]}, data, **{"content-type": content_type})
        assert outputs_of(answer)["same"]["data"] == X.ravel().tolist()


A = np.array([[1.5, 2, 3], [10, 20, 30.25]], np.float32)
B = np.array([[4, 5], [-40, 50]], np.int32)
TOTAL = [15.5, 70.25]


@pytest.mark.parametrize("turned", [False, True], ids=["a first", "b first"])
def test_blobs_follow_in_the_order_of_the_inputs(http: httpx.Client, turned: bool) -> None:
    inputs = [blob(A, "a", "FP32"), blob(B, "b", "INT32")]
    if turned:
        inputs.reverse()
    answer = post(http, "two", {"inputs": [given for given, _ in inputs]}, *(data for _, data in inputs))
    outputs = outputs_of(answer)
    assert (outputs["total"]["data"], outputs["negated"]["data"]) == (TOTAL, (-B).ravel().tolist())


@pytest.mark.parametrize("binary", ["a", "b"])
def test_json_and_binary_inputs_mix(http: httpx.Client, binary: str) -> None:
    a, b = tensor(A.tolist(), [2, 3], "FP32", "a"), tensor(B.tolist(), [2, 2], "INT32", "b")
    given, data = blob(A, "a", "FP32") if binary == "a" else blob(B, "b", "INT32")
    inputs = [given, b] if binary == "a" else [a, given]
    outputs = outputs_of(post(http, "two", {"inputs": inputs}, data))
    assert (outputs["total"]["data"], outputs["negated"]["data"]) == (TOTAL, (-B).ravel().tolist())


@pytest.mark.parametrize(
    ("whole", "each", "binary"),
    [
        (None, {}, set()),
        (True, {}, {"same", "half"}),
        (False, {}, set()),
        (None, {"same": True}, {"same"}),
        (None, {"half": True}, {"half"}),
        (True, {"same": False}, {"half"}),
        (False, {"half": True}, {"half"}),
        (True, {"same": False, "half": False}, set()),
    ],
)
def test_an_outputs_own_binary_data_counts_more_than_that_of_the_request(
    http: httpx.Client, whole: bool | None, each: dict[str, bool], binary: set[str]
) -> None:
    request: dict[str, Any] = {
        "inputs": [tensor(X.tolist(), [2, 4])],
        "outputs": [
            {"name": name} | ({"parameters": {"binary_data": each[name]}} if name in each else {})
            for name in ("half", "same")
        ],
    }
    if whole is not None:
        request["parameters"] = {"binary_data_output": whole}
    answer = http.post(ECHO, json=request)
    if not binary:
        assert outputs_of(answer).keys() == {"same", "half"}
        return
    text, arrays = split(answer)
    assert [output["name"] for output in text["outputs"]] == ["half", "same"]
    assert arrays.keys() == binary
    for output in text["outputs"]:
        expected = X if output["name"] == "same" else X / 2
        got = arrays[output["name"]] if output["name"] in binary else np.reshape(output["data"], output["shape"])
        assert np.array_equal(got, expected)


def test_all_outputs_binary_without_naming_them(http: httpx.Client) -> None:
    request = {"inputs": [tensor(X.tolist(), [2, 4])], "parameters": {"binary_data_output": True}, "id": "i"}
    text, arrays = split(http.post(ECHO, json=request))
    assert (text["model_name"], text["model_version"], text["id"]) == ("echo", "1", "i")
    assert np.array_equal(arrays["same"], X)
    assert np.array_equal(arrays["half"], X / 2)


@pytest.mark.parametrize(
    "values", [[np.nan, 1.5], [np.inf, -np.inf], [-0.0, np.float32(1e-45)]], ids=["nan", "infinities", "tiny"]
)
def test_binary_floats_come_back_bit_for_bit(http: httpx.Client, values: list[float]) -> None:
    array = np.array([values], np.float32)
    given, data = blob(array, "x", "FP32")
    _, arrays = split(post(http, "floats", {"inputs": [given], "parameters": {"binary_data_output": True}}, data))
    assert arrays["y"].tobytes() == data
    finite = [value if np.isfinite(value) else None for value in array[0].tolist()]
    assert outputs_of(post(http, "floats", {"inputs": [given]}, data))["y"]["data"] == finite


@pytest.mark.parametrize(
    ("model", "datatype", "array", "expected"),
    [
        ("halves", "FP16", np.array([[0.5, -2, 3]], np.float16), np.array([[1, -4, 6]], np.float16)),
        ("flags", "BOOL", np.array([[True, False, True]]), np.array([[False, True, False]])),
    ],
)
def test_small_datatypes_are_binary_both_ways(
    http: httpx.Client, model: str, datatype: str, array: np.ndarray, expected: np.ndarray
) -> None:
    given, data = blob(array, "x", datatype)
    _, arrays = split(
        post(http, model, {"inputs": [given], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, data)
    )
    assert np.array_equal(arrays["y"], expected)
    assert arrays["y"].dtype == expected.dtype


RAW = [OCTETS, {LENGTH: "0"}, {LENGTH: "0", **OCTETS}, {"content-type": "Application/Octet-Stream; x=y"}]


@pytest.mark.parametrize("headers", RAW, ids=["content type", "header 0", "both", "spelt otherwise"])
@pytest.mark.parametrize("n", [1, 2, 300])
def test_a_raw_body_is_the_only_input_and_all_outputs_are_binary(http: httpx.Client, headers: dict, n: int) -> None:
    array = np.arange(4 * n, dtype=np.uint32).astype(np.uint8).reshape(n, 4)
    text, arrays = split(http.post(ECHO, content=array.tobytes(), headers=headers))
    assert [output["shape"] for output in text["outputs"]] == [[n, 4], [n, 4]]
    assert np.array_equal(arrays["same"], array)
    assert np.array_equal(arrays["half"], array / 2)


def test_a_request_in_json_that_is_called_octet_stream_is_no_raw_tensor(http: httpx.Client) -> None:
    """As tritonclient's asyncio client sends it."""
    body = json.dumps({"inputs": [tensor([1, 2, 3, 4], [1, 4])]}).encode()
    assert outputs_of(http.post(ECHO, content=body, headers=OCTETS))["same"]["data"] == [1, 2, 3, 4]
    message = refusal(http.post("/v2/models/two/infer", content=body, headers=OCTETS))
    assert "no input 'x'" in message


@pytest.mark.parametrize("text", [b"{123", b"{}  ", b'{"inputs": [1, 2]}  ', b"{" * 400], ids=len)
def test_a_raw_tensor_that_begins_like_json_is_one_all_the_same(http: httpx.Client, text: bytes) -> None:
    _, arrays = split(http.post(ECHO, content=text, headers=OCTETS))
    assert arrays["same"].tobytes() == text


@pytest.mark.parametrize("headers", RAW[:2])
@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("echo", b"", ["0 bytes", "multiple of 4"]),
        ("echo", b"12345", ["5 bytes", "multiple of 4", "UINT8 [4]"]),
        ("echo", b"1" * 4 * 1025, ["1025 items", "1024"]),
        ("two", b"1" * 20, ["Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'two'"]),
    ],
)
def test_a_raw_body_that_does_not_fit_is_refused(
    http: httpx.Client, headers: dict, model: str, body: bytes, said: list[str]
) -> None:
    message = refusal(http.post(f"/v2/models/{model}/infer", content=body, headers=headers))
    for words in said:
        assert words in message


@pytest.mark.parametrize("given", ["-1", "+5", "1.5", "abc", "0x10", "1e3", "", "9" * 19, "9" * 5000, "1 2", "١"])
def test_a_header_length_that_is_none_is_refused(http: httpx.Client, given: str) -> None:
    body = json.dumps({"inputs": [tensor([1, 2, 3, 4], [1, 4])]}).encode()
    message = refusal(http.post(ECHO, content=body, headers={LENGTH: given.encode()}))
    assert "Inference-Header-Content-Length" in message
    assert str(len(body)) in message


@pytest.mark.parametrize("error", [-1, 1])
def test_a_header_length_that_is_off_by_one_is_refused(http: httpx.Client, error: int) -> None:
    given, data = blob(X, "x", "UINT8")
    text = json.dumps({"inputs": [given]}).encode()
    refusal(http.post(ECHO, content=text + data, headers={LENGTH: str(len(text) + error)}))
    assert "Inference-Header-Content-Length" in refusal(
        http.post(ECHO, content=text + data, headers={LENGTH: str(len(text + data) + 1)})
    )


@pytest.mark.parametrize("size", [-8, 7, 9, 16, 2**64, 8.0, "8", True, [], "999 digits"])
def test_a_binary_size_that_does_not_add_up_is_refused(http: httpx.Client, size: Any) -> None:
    given, data = blob(X, "x", "UINT8")
    given["parameters"]["binary_data_size"] = 10**998 if size == "999 digits" else size
    message = refusal(post(http, "echo", {"inputs": [given]}, data))
    assert "'x'" in message
    assert "8" in message


def test_a_truncated_blob_is_refused(http: httpx.Client) -> None:
    given, data = blob(X, "x", "UINT8")
    message = refusal(post(http, "echo", {"inputs": [given]}, data[:-1]))
    assert all(words in message for words in ("'x'", "binary_data_size", "8", "7"))


def test_bytes_behind_the_last_blob_are_refused(http: httpx.Client) -> None:
    given, data = blob(X, "x", "UINT8")
    assert "1 bytes follow" in refusal(post(http, "echo", {"inputs": [given]}, data, b"!"))
    assert "3 bytes follow" in refusal(post(http, "echo", {"inputs": [tensor([1, 2, 3, 4], [1, 4])]}, b"???"))


def test_the_second_blob_is_checked_against_what_the_first_left(http: httpx.Client) -> None:
    (a, a_data), (b, b_data) = blob(A, "a", "FP32"), blob(B, "b", "INT32")
    message = refusal(post(http, "two", {"inputs": [a, b]}, a_data, b_data[:-4]))
    assert all(words in message for words in ("'b'", "16", "12"))


def test_a_shape_that_overflows_does_not_pass_for_its_remainder(http: httpx.Client) -> None:
    given, data = blob(X, "x", "UINT8")
    for shape in ([2**62 + 2, 4], [2**64 + 2, 4], [-2, 4], [0, 4], [2, -4], [2, 2**64 + 4]):
        assert "'x'" in refusal(post(http, "echo", {"inputs": [{**given, "shape": shape}]}, data))


def test_data_and_a_binary_size_together_are_read_as_binary(http: httpx.Client) -> None:
    """As Triton does; what must not happen is that the bytes are taken for the next input's."""
    given, data = blob(X, "x", "UINT8")
    answer = post(http, "echo", {"inputs": [{**given, "data": [9] * 8}]}, data)
    assert outputs_of(answer)["same"]["data"] == X.ravel().tolist()


def test_a_binary_bool_other_than_0_and_1_is_refused_or_true(http: httpx.Client) -> None:
    given = {"name": "x", "shape": [1, 3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}
    answer = post(http, "flags", {"inputs": [given]}, bytes([2, 255, 0]))
    if answer.status_code == 400:
        assert "'x'" in refusal(answer)
    else:
        assert outputs_of(answer)["y"]["data"] == [False, False, True]
