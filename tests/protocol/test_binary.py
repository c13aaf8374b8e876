"""Binary tensors and raw bodies: C3. The header gives the length of the JSON; what follows are the tensors' bytes."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.protocol.conftest import Needs
from tests.protocol.exchange import (
    LENGTH,
    OCTETS,
    Given,
    Parts,
    infer_path,
    outputs,
    parts,
    post,
    refusal,
    same,
    tensor,
    texts,
    values,
)

X = np.array([[0.5, -1.25, 3e10, 0], [1, 2, 3, 4]], np.float32)
A = np.arange(32, dtype=np.int32).reshape(2, 16)
B = 100 + A
ALL_BINARY = {"parameters": {"binary_data_output": True}}


@pytest.fixture(autouse=True)
def the_server_takes_binary_tensors(needs: Needs) -> None:
    needs("binary_tensor_data")


def floats(binary: bool = True, **more: Any) -> Parts:
    return parts([Given("x", "FP32", X, binary)], **more)


# ── the header ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_header_may_count_the_whole_body(http: httpx.Client) -> None:
    """Triton's C++ client always sends it, also where there is no binary tensor."""
    assert same(outputs(post(http, "floats", floats(binary=False))).arrays, {"y": X})


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream", "text/plain"])
def test_the_header_tells_more_than_the_content_type(http: httpx.Client, content_type: str) -> None:
    answer = post(http, "floats", floats(**ALL_BINARY), **{"content-type": content_type})
    assert same(outputs(answer).arrays, {"y": X})


@pytest.mark.parametrize("name", [LENGTH, "Inference-Header-Content-Length", "INFERENCE-HEADER-CONTENT-LENGTH"])
def test_the_headers_case_does_not_matter(http: httpx.Client, name: str) -> None:
    sent = floats()
    answer = http.post(infer_path("floats"), content=sent.body, headers={name: f"{len(sent.text)}"})
    assert same(outputs(answer).arrays, {"y": X})


@pytest.mark.parametrize("given", ["-1", "-0", "1.5", "abc", "0x10", "1e3", "", "9" * 19, "9" * 400, "1 2", "1,2", "²"])
def test_a_header_that_is_no_length_is_refused(http: httpx.Client, given: str) -> None:
    answer = http.post(infer_path("floats"), content=floats().body, headers={LENGTH: given.encode("latin-1")})
    refusal(answer)


@pytest.mark.parametrize("beyond", [1, 1000, 2**31, 2**32, 2**63, 2**64])
def test_a_header_beyond_the_body_is_refused(http: httpx.Client, beyond: int) -> None:
    sent = floats()
    refusal(http.post(infer_path("floats"), content=sent.body, headers={LENGTH: f"{len(sent.body) + beyond}"}))


@pytest.mark.parametrize("error", [-20, -1, 1, 8])
def test_a_header_within_the_body_that_is_not_the_jsons_is_refused(http: httpx.Client, error: int) -> None:
    sent = floats()
    refusal(http.post(infer_path("floats"), content=sent.body, headers={LENGTH: f"{len(sent.text) + error}"}))


def test_json_may_have_white_space_up_to_the_header(http: httpx.Client) -> None:
    sent = floats()
    padded = Parts(sent.text + b" \n\t" * 10, sent.blobs)
    assert same(outputs(post(http, "floats", padded)).arrays, {"y": X})


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 31, 33, 16, 64, 2**31, 2**64, -32, 32.0, "32", True, None, [32]])
def test_a_size_that_is_not_the_tensors_is_refused(http: httpx.Client, size: Any) -> None:
    request = json.loads(floats().text)
    request["inputs"][0]["parameters"]["binary_data_size"] = size
    refusal(post(http, "floats", Parts(json.dumps(request).encode(), floats().blobs)))


@pytest.mark.parametrize("blobs", [b"", X.tobytes()[:-1], X.tobytes()[:16], X.tobytes() + b"\0", X.tobytes() * 2])
def test_bytes_that_are_missing_or_too_many_are_refused(http: httpx.Client, blobs: bytes) -> None:
    refusal(post(http, "floats", Parts(floats().text, blobs)))


def test_bytes_behind_json_tensors_are_refused(http: httpx.Client) -> None:
    refusal(post(http, "floats", Parts(floats(binary=False).text, b"\0")))


# ── order and mixture ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("names", [("INPUT0", "INPUT1"), ("INPUT1", "INPUT0")])
@pytest.mark.parametrize("binary", [(True, True), (True, False), (False, True)])
def test_bytes_follow_in_the_order_of_the_inputs(
    http: httpx.Client, names: tuple[str, str], binary: tuple[bool, bool]
) -> None:
    arrays = {"INPUT0": A, "INPUT1": B}
    given = [Given(name, "INT32", arrays[name], as_bytes) for name, as_bytes in zip(names, binary, strict=True)]
    answer = outputs(post(http, "simple", parts(given)))
    assert same(answer.arrays, {"OUTPUT0": A + B, "OUTPUT1": A - B})


@pytest.mark.parametrize("whole", [None, True, False])
@pytest.mark.parametrize("each", [None, True, False])
def test_an_outputs_own_flag_counts_more_than_the_requests(
    http: httpx.Client, whole: bool | None, each: bool | None
) -> None:
    parameters = {} if each is None else {"parameters": {"binary_data": each}}
    more: dict[str, Any] = {"outputs": [{"name": "OUTPUT1", **parameters}, {"name": "OUTPUT0"}]}
    if whole is not None:
        more["parameters"] = {"binary_data_output": whole}
    given = [Given("INPUT0", "INT32", A, True), Given("INPUT1", "INT32", B, False)]
    answer = outputs(post(http, "simple", parts(given, **more)))
    expected = {name for name, own in (("OUTPUT1", each), ("OUTPUT0", None)) if (whole if own is None else own)}
    assert answer.binary == expected
    assert list(answer.arrays) == ["OUTPUT1", "OUTPUT0"]
    assert same(answer.arrays, {"OUTPUT1": A - B, "OUTPUT0": A + B})


def test_a_request_in_json_may_ask_for_bytes(http: httpx.Client) -> None:
    request = json.loads(floats(binary=False, **ALL_BINARY).text) | {"id": "seven"}
    answer = outputs(http.post(infer_path("floats"), json=request))
    assert answer.binary == {"y"}
    assert answer.text["id"] == "seven"
    assert same(answer.arrays, {"y": X})


# ── strings ──────────────────────────────────────────────────────────────────────────────────────────────────────────

WORDS = texts(["", "a", "é€", "\0", "x" * 3000, "last"], (2, 3))


def test_strings_have_their_length_in_front(http: httpx.Client) -> None:
    sent = parts([Given("x", "BYTES", WORDS, True)], **ALL_BINARY)
    assert sent.blobs[:9] == b"\0\0\0\0\1\0\0\0a"
    assert same(outputs(post(http, "texts", sent)).arrays, {"y": WORDS})


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\0",
        b"\0\0\0",
        b"\1\0\0\0",
        b"\2\0\0\0a",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\xffa",
        b"\0\0\0\0\0",
        b"\0" * 8,
    ],
    ids=repr,
)
def test_strings_that_do_not_add_up_to_one_are_refused(http: httpx.Client, blob: bytes) -> None:
    text = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    refusal(post(http, "texts", Parts(json.dumps({"inputs": [text]}).encode(), blob)))


# ── raw bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────

RAW = {LENGTH: "0", **OCTETS}


def test_a_raw_body_is_the_only_input_and_every_output_is_binary(http: httpx.Client) -> None:
    answer = outputs(http.post(infer_path("floats"), content=X[:1].tobytes(), headers=RAW))
    assert answer.binary == {"y"}
    assert same(answer.arrays, {"y": X[:1]})


def test_the_length_of_a_raw_body_gives_the_axis_of_any_length(http: httpx.Client) -> None:
    """The batch is 1 then."""
    x = values("FP32", (1, 8))
    answer = outputs(http.post(infer_path("variable"), content=x.tobytes(), headers=RAW))
    assert same(answer.arrays, {"y": x})


def test_a_raw_body_for_a_model_without_a_batch(http: httpx.Client) -> None:
    x = values("FP32", (2, 3))
    answer = outputs(http.post(infer_path("unbatched"), content=x.tobytes(), headers=RAW))
    assert same(answer.arrays, {"y": x})


@pytest.mark.parametrize("text", ["a", "some longer text é", "\4\0\0\0text"])
def test_a_raw_body_is_the_only_string_without_a_length_in_front(http: httpx.Client, text: str) -> None:
    answer = outputs(http.post(infer_path("text"), content=text.encode(), headers=RAW))
    assert same(answer.arrays, {"y": texts([text], (1, 1))})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("simple", "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in"),
        ("picture", "can not be deduced because there are more than one variable-sized dimension"),
        ("texts", "the model must have input shape [1]"),
    ],
)
def test_a_raw_body_whose_tensor_does_not_follow_is_refused_in_tritons_words(
    http: httpx.Client, model: str, words: str
) -> None:
    assert words in refusal(http.post(infer_path(model), content=b"12345678", headers=RAW))


@pytest.mark.parametrize("size", [0, 1, 15, 17])
def test_a_raw_body_that_is_no_whole_item_is_refused(http: httpx.Client, size: int) -> None:
    refusal(http.post(infer_path("floats"), content=b"\0" * size, headers=RAW))


def test_a_header_of_0_in_front_of_json_is_a_raw_body(http: httpx.Client) -> None:
    request = json.dumps({"inputs": [tensor("x", "FP32", [1, 4], [1, 2, 3, 4])]}).encode()
    refusal(http.post(infer_path("floats"), content=request + b" " * (1 - len(request) % 2), headers={LENGTH: "0"}))
