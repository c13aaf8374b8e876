"""Every datatype, in JSON and binary, with items of 0 to 5 axes, several inputs and outputs at once."""

import json
from typing import get_args

import httpx
import numpy as np
import pytest

from models.manifest import Datatype
from tests.http.test_infer_json import refusal
from tests.support.build_any import DOUBLED, ITEM_SHAPES
from tests.support.tensors import LENGTH, binary, binary_outputs, in_json, json_outputs, same, values

Inputs = dict[str, tuple[str, np.ndarray]]


def inputs_of(datatype: str, n: int, seed: int = 0) -> Inputs:
    generator = np.random.default_rng(seed)
    return {f"x{i}": (datatype, values(datatype, (n, *shape), generator)) for i, shape in enumerate(ITEM_SHAPES)}


def expected(inputs: Inputs) -> dict[str, np.ndarray]:
    return {
        name.replace("x", "y"): array + array if datatype in DOUBLED else array
        for name, (datatype, array) in inputs.items()
    }


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("datatype", get_args(Datatype))
def test_binary_tensors_of_0_to_5_axes_come_back(any_http: httpx.Client, datatype: str, n: int) -> None:
    inputs = inputs_of(datatype, n)
    assert same(binary_outputs(binary(any_http, f"all-{datatype}", inputs)), expected(inputs))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("datatype", sorted({*get_args(Datatype)} - {"BF16"}))
def test_json_tensors_of_0_to_5_axes_come_back(any_http: httpx.Client, datatype: str, n: int) -> None:
    inputs = inputs_of(datatype, n)
    assert same(json_outputs(in_json(any_http, f"all-{datatype}", inputs)), expected(inputs))


@pytest.mark.parametrize("datatype", get_args(Datatype))
def test_metadata_names_the_datatype_and_the_shapes(any_http: httpx.Client, datatype: str) -> None:
    metadata = any_http.get(f"/v2/models/all-{datatype}").json()
    for side, letter in (("inputs", "x"), ("outputs", "y")):
        assert metadata[side] == [
            {"name": f"{letter}{i}", "datatype": datatype, "shape": [-1, *shape]} for i, shape in enumerate(ITEM_SHAPES)
        ]
    assert metadata["parameters"]["batch_axis"] is True


def test_bf16_is_refused_in_json_both_ways_and_says_what_to_do(any_http: httpx.Client) -> None:
    bits = np.array([[0x3F80, 0x4000, 0x4040]], np.uint16)  # 1, 2, 3
    message = refusal(in_json(any_http, "upper", {"x": ("BF16", np.array([[1.0, 2.0, 3.0]]))}))
    assert all(words in message for words in ("'x'", "BF16", "binary"))
    assert same(binary_outputs(binary(any_http, "upper", {"x": ("BF16", bits)})), {"y": np.float32([[2, 4, 6]])})
    given = {"name": "x0", "shape": [1], "datatype": "BF16", "parameters": {"binary_data_size": 2}}
    text = json.dumps({"inputs": [given]}).encode()
    headers = {LENGTH: str(len(text))}
    message = refusal(any_http.post("/v2/models/all-BF16/infer", content=text + b"\0\0", headers=headers))
    assert "missing input" in message
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "BF16", "parameters": {"binary_data_size": array.nbytes}}
        for name, (_, array) in inputs_of("BF16", 1).items()
    ]
    blobs = b"".join(array.tobytes() for _, array in inputs_of("BF16", 1).values())
    text = json.dumps({"inputs": inputs, "outputs": [{"name": "y2"}]}).encode()
    headers = {LENGTH: str(len(text))}
    message = refusal(any_http.post("/v2/models/all-BF16/infer", content=text + blobs, headers=headers))
    assert all(words in message for words in ("'y2'", "BF16", "binary_data"))


def test_predict_takes_bf16_rows_and_refuses_what_json_cannot_carry(any_http: httpx.Client) -> None:
    bits = np.array([[0x3F80, 0x4000, 0x4040], [0xBF80, 0, 0]], np.uint16)
    answer = any_http.post("/predict/upper", content=bits.tobytes())
    assert answer.json()["predictions"] == [{"y": [2.0, 4.0, 6.0]}, {"y": [-2.0, 0.0, 0.0]}]
    assert "BF16" in refusal(any_http.post("/predict/upper", json={"instances": [[1, 2, 3]]}))


def test_strings_of_any_text_and_length_come_back(any_http: httpx.Client) -> None:
    a = np.array([["", "a\0b", "naïve"], ["日本語", "x" * 10_000, '"\\\n']], object)
    b = np.array([["1", "", "2"], ["3", "4", ""]], object)
    inputs = {"a": ("BYTES", a), "b": ("BYTES", b)}
    assert same(binary_outputs(binary(any_http, "words", inputs)), {"y": a + b})
    assert same(json_outputs(in_json(any_http, "words", inputs)), {"y": a + b})


def test_strings_become_numbers(any_http: httpx.Client) -> None:
    x = np.array(["dog", "cat", "cow", ""], object)
    assert same(json_outputs(in_json(any_http, "labels", {"x": ("BYTES", x)})), {"y": np.array([2, 1, -1, -1])})
    answer = any_http.post("/predict/labels", json={"instances": ["cat", "dog"]})
    assert answer.json()["predictions"] == [{"y": [1]}, {"y": [2]}]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x05\0\0\0abcd", ["5 bytes", "4 are left"]),
        (b"\x01\0\0\0a\x01\0", ["2 bytes", "length"]),
        (b"\x01\0\0\0a\x01\0\0\0b", ["2 elements", "expected 1"]),
        (b"", ["0 elements", "expected 1"]),
        (b"\x02\0\0\0\xff\xfe", ["UTF-8", "element 0"]),
        (b"\xff\xff\xff\xff", ["4294967295 bytes"]),
    ],
    ids=repr,
)
def test_binary_strings_that_do_not_add_up_are_refused(any_http: httpx.Client, data: bytes, said: list[str]) -> None:
    given = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [given]}).encode()
    headers = {LENGTH: str(len(text))}
    message = refusal(any_http.post("/v2/models/labels/infer", content=text + data, headers=headers))
    assert all(words in message for words in ("'x'", *said)), message


@pytest.mark.parametrize(
    "data",
    [b"[1]", b"[null]", b"[true]", b'["a", "b"]', b'[["a"], ["b", "c"]]', b'"a"', b"[[]]", b'["\\ud800"]', b"[{}]"],
)
def test_json_that_is_no_string_tensor_is_refused(any_http: httpx.Client, data: bytes) -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": %s}]}' % data
    message = refusal(any_http.post("/v2/models/labels/infer", content=body))
    assert any(words in message for words in ("'x'", "not valid JSON"))
