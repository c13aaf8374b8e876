"""Every datatype in every shape, as JSON, as bytes and mixed; what JSON cannot carry; tensors without elements.

C2 and C3. Inputs are the ends of the datatype's range and what lies between; each comes back bit for bit.
"""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.protocol.exchange import (
    LENGTH,
    NUMPY_OF,
    Given,
    infer,
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
from tests.protocol.models import ITEM_SHAPES, ONNX_OF, identity_name

IN_JSON = [datatype for datatype in ONNX_OF if datatype != "BF16"]
FLOATS = ["FP16", "FP32", "FP64"]
WHOLE = [datatype for datatype in ONNX_OF if "INT" in datatype]


def arrays_of(datatype: str, n: int) -> list[np.ndarray]:
    """One for each shape of items."""
    return [values(datatype, (n, *shape), seed) for seed, shape in enumerate(ITEM_SHAPES)]


def answer_to(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"y{i}": array for i, array in enumerate(arrays)}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("datatype", IN_JSON)
def test_in_json_both_ways(http: httpx.Client, datatype: str, n: int) -> None:
    arrays = arrays_of(datatype, n)
    sent = parts([Given(f"x{i}", datatype, array) for i, array in enumerate(arrays)])
    answer = outputs(http.post(infer_path(identity_name(datatype)), content=sent.text))
    assert not answer.binary
    assert same(answer.arrays, answer_to(arrays))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("datatype", ONNX_OF)
def test_in_binary_both_ways(http: httpx.Client, datatype: str, n: int) -> None:
    arrays = arrays_of(datatype, n)
    given = [Given(f"x{i}", datatype, array, binary=True) for i, array in enumerate(arrays)]
    sent = parts(given, parameters={"binary_data_output": True})
    answer = outputs(post(http, identity_name(datatype), sent))
    assert answer.binary == answer.arrays.keys()
    assert same(answer.arrays, answer_to(arrays))


@pytest.mark.parametrize("datatype", IN_JSON)
def test_json_and_binary_in_one_request_and_one_answer(http: httpx.Client, datatype: str) -> None:
    arrays = arrays_of(datatype, 2)
    given = [Given(f"x{i}", datatype, array, binary=i % 2 == 0) for i, array in enumerate(arrays)]
    asked = [{"name": f"y{i}", "parameters": {"binary_data": i % 3 == 0}} for i in range(len(arrays))]
    answer = outputs(post(http, identity_name(datatype), parts(given, outputs=asked)))
    assert answer.binary == {"y0", "y3"}
    assert same(answer.arrays, answer_to(arrays))


# ── what JSON cannot carry, or only with care ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("datatype", FLOATS)
def test_what_is_not_finite_comes_back_in_binary_bit_for_bit(http: httpx.Client, datatype: str) -> None:
    special = [np.nan, np.inf, -np.inf, -0.0]
    arrays = [np.resize(np.array(special, NUMPY_OF[datatype]), (2, *shape)) for shape in ITEM_SHAPES]
    given = [Given(f"x{i}", datatype, array, binary=True) for i, array in enumerate(arrays)]
    answer = outputs(post(http, identity_name(datatype), parts(given, parameters={"binary_data_output": True})))
    assert same(answer.arrays, answer_to(arrays))


def test_an_answer_that_is_not_finite_is_json_that_strict_parsers_read(http: httpx.Client) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1.5]], np.float32)
    answer = post(http, "floats", parts([Given("x", "FP32", x, binary=True)]))

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    data = json.loads(answer.content, parse_constant=constant)["outputs"][0]["data"]
    assert data == [None, None, None, 1.5]


def test_null_is_nan(http: httpx.Client) -> None:
    y = outputs(infer(http, "floats", tensor("x", "FP32", [1, 4], [None, 1, None, 2]))).arrays["y"]
    assert np.array_equal(y, np.array([[np.nan, 1, np.nan, 2]], np.float32), equal_nan=True)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "nan", "1e", "0x1", "+1", "01", ".5"])
def test_tokens_that_are_no_json_are_refused(http: httpx.Client, token: str) -> None:
    body = f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,{token}]}}]}}'
    refusal(http.post(infer_path("floats"), content=body))


@pytest.mark.parametrize("datatype", FLOATS)
def test_a_float_is_rounded_to_the_nearest_and_written_so_that_it_is_read_as_the_same(
    http: httpx.Client, datatype: str
) -> None:
    numbers = [0.1, 1 / 3, 2.0**-14, 1e-7, 65504.0]
    arrays = [np.resize(np.array(numbers), (1, *shape)) for shape in ITEM_SHAPES]
    given = [tensor(f"x{i}", datatype, array.shape, array.tolist()) for i, array in enumerate(arrays)]
    answer = outputs(infer(http, identity_name(datatype), *given))
    assert same(answer.arrays, answer_to([array.astype(NUMPY_OF[datatype]) for array in arrays]))


def test_bf16_has_no_form_in_json(http: httpx.Client) -> None:
    arrays = arrays_of("BF16", 1)
    refusal(http.post(infer_path("identity_bf16"), content=parts([Given("x0", "BF16", arrays[0])]).text))
    given = [Given(f"x{i}", "BF16", array, binary=True) for i, array in enumerate(arrays)]
    assert "binary_data" in refusal(post(http, "identity_bf16", parts(given)))


def test_bytes_that_are_no_text_are_no_json(http: httpx.Client) -> None:
    """In binary they may be taken; an answer in JSON cannot be made of them."""
    text = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}
    body = json.dumps({"inputs": [text]}).encode()
    answer = http.post(infer_path("texts"), content=body + b"\2\0\0\0\xff\xfe", headers={LENGTH: f"{len(body)}"})
    refusal(answer)


# ── wrong elements ───────────────────────────────────────────────────────────────────────────────────────────────────


def with_first(datatype: str, element: Any) -> list[dict[str, Any]]:
    """Inputs whose first element is that one."""
    given = []
    for i, shape in enumerate(ITEM_SHAPES):
        data = values(datatype, (1, *shape), i).ravel().tolist()
        given.append(tensor(f"x{i}", datatype, [1, *shape], [element, *data[1:]]))
    return given


@pytest.mark.parametrize("datatype", WHOLE)
@pytest.mark.parametrize("beyond", [-1, 1], ids=["below", "above"])
def test_a_whole_number_out_of_range_is_refused(http: httpx.Client, datatype: str, beyond: int) -> None:
    limits = np.iinfo(NUMPY_OF[datatype])
    number = (limits.min if beyond < 0 else limits.max) + beyond
    refusal(infer(http, identity_name(datatype), *with_first(datatype, number)))


@pytest.mark.parametrize("element", [1.5, 1e3, "1", True, None, [], {}], ids=str)
@pytest.mark.parametrize("datatype", ["UINT8", "INT64"])
def test_what_is_no_whole_number_is_not_made_one(http: httpx.Client, datatype: str, element: Any) -> None:
    refusal(infer(http, identity_name(datatype), *with_first(datatype, element)))


@pytest.mark.parametrize("element", ["1.5", True, [], {}], ids=str)
@pytest.mark.parametrize("datatype", FLOATS)
def test_what_is_no_number_is_not_made_one(http: httpx.Client, datatype: str, element: Any) -> None:
    refusal(infer(http, identity_name(datatype), *with_first(datatype, element)))


@pytest.mark.parametrize("element", [0, 1, "true", None, []], ids=str)
def test_what_is_no_truth_value_is_not_made_one(http: httpx.Client, element: Any) -> None:
    refusal(infer(http, "identity_bool", *with_first("BOOL", element)))


@pytest.mark.parametrize("datatype", [*(x for x in ONNX_OF if x != "FP32"), "fp32", "FLOAT", "STRING", ""])
def test_another_datatype_than_the_models_is_refused(http: httpx.Client, datatype: str) -> None:
    refusal(infer(http, "floats", tensor("x", datatype, [1, 4], [1, 0, 1, 0])))


# ── tensors without elements ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", IN_JSON)
def test_a_tensor_may_have_no_row(http: httpx.Client, datatype: str, binary: bool) -> None:
    arrays = arrays_of(datatype, 0)
    given = [Given(f"x{i}", datatype, array, binary) for i, array in enumerate(arrays)]
    sent = parts(given, parameters={"binary_data_output": binary})
    answer = outputs(post(http, identity_name(datatype), sent))
    assert same(answer.arrays, answer_to(arrays))


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("n", [1, 3])
def test_an_axis_of_any_length_may_have_none(http: httpx.Client, n: int, binary: bool) -> None:
    for model, datatype, shape in [
        ("variable", "FP32", (n, 0)),
        ("picture", "UINT8", (n, 0, 5)),
        ("texts", "BYTES", (n, 0)),
    ]:
        x = texts([], shape) if datatype == "BYTES" else np.zeros(shape, NUMPY_OF[datatype])
        sent = parts([Given("x", datatype, x, binary)], parameters={"binary_data_output": binary})
        assert same(outputs(post(http, model, sent)).arrays, {"y": x})


@pytest.mark.parametrize("shape", [[0, 3], [0], [0, 4, 1], [1, 0]])
def test_no_element_is_no_excuse_for_another_shape(http: httpx.Client, shape: list[int]) -> None:
    refusal(infer(http, "floats", tensor("x", "FP32", shape, [])))
