"""ModelInfer: every datatype and shape, typed and raw, both ways; every answer is checked against its own input."""

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from models.manifest import Datatype
from tests.support.build_any import DOUBLED, ITEM_SHAPES
from tests.support.rpc import Inputs, arrays, request, set_parameters
from tests.support.tensors import same, values

TYPED = sorted({*get_args(Datatype)} - {"FP16", "BF16"})


def inputs_of(datatype: str, n: int) -> Inputs:
    generator = np.random.default_rng(0)
    return {f"x{i}": (datatype, values(datatype, (n, *shape), generator)) for i, shape in enumerate(ITEM_SHAPES)}


def expected(inputs: Inputs) -> dict[str, np.ndarray]:
    return {
        name.replace("x", "y"): array + array if datatype in DOUBLED else array
        for name, (datatype, array) in inputs.items()
    }


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("datatype", get_args(Datatype))
def test_raw_tensors_of_0_to_5_axes_come_back(rpc: SimpleNamespace, datatype: str, n: int) -> None:
    inputs = inputs_of(datatype, n)
    answer = rpc.ModelInfer(request(f"all-{datatype}", inputs))
    assert same(arrays(answer), expected(inputs))
    assert (answer.model_name, answer.model_version) == (f"all-{datatype}", "1")


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("datatype", TYPED)
def test_typed_tensors_of_0_to_5_axes_come_back(rpc: SimpleNamespace, datatype: str, n: int) -> None:
    inputs = inputs_of(datatype, n)
    assert same(arrays(rpc.ModelInfer(request(f"all-{datatype}", inputs, raw=False))), expected(inputs))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 0), (1, 300)], ids=str)
def test_axes_of_any_length_come_back(rpc: SimpleNamespace, shape: tuple[int, int], raw: bool) -> None:
    x = floats(*shape)
    found = arrays(rpc.ModelInfer(request("ragged", {"x": ("FP32", x)}, raw)))
    assert same({"double": found["double"]}, {"double": x + x})
    assert np.allclose(found["total"], x.sum(axis=1), atol=1e-4)


@pytest.mark.parametrize("raw", [True, False])
def test_models_without_a_batch_axis_take_their_tensors_whole(rpc: SimpleNamespace, raw: bool) -> None:
    x, bias = floats(3, 5), np.array(0.5, np.float32)
    answer = rpc.ModelInfer(request("matrix", {"x": ("FP32", x), "bias": ("FP32", bias)}, raw))
    assert same(arrays(answer), {"turned": x.T + bias, "where": np.array(np.nonzero(x))})
    x = floats(3, 2)
    assert same(arrays(rpc.ModelInfer(request("fixed", {"x": ("FP32", x)}, raw))), {"y": x + x})


def test_a_model_may_have_no_input_at_all(rpc: SimpleNamespace) -> None:
    assert same(arrays(rpc.ModelInfer(request("constant", {}))), {"y": np.array([7, 8])})


@pytest.mark.parametrize("raw", [True, False])
def test_strings_of_any_text_and_length_come_back(rpc: SimpleNamespace, raw: bool) -> None:
    a = np.array([["", "a\0b", "naïve"], ["日本語", "x" * 10_000, '"\\\n']], object)
    b = np.array([["1", "", "2"], ["3", "4", ""]], object)
    answer = rpc.ModelInfer(request("words", {"a": ("BYTES", a), "b": ("BYTES", b)}, raw))
    assert same(arrays(answer), {"y": a + b})


@pytest.mark.parametrize("raw", [True, False])
def test_inputs_in_any_order_of_several_datatypes(rpc: SimpleNamespace, raw: bool) -> None:
    a, b = floats(4, 3), np.arange(8, dtype=np.int32).reshape(4, 2)
    found = arrays(rpc.ModelInfer(request("two", {"b": ("INT32", b), "a": ("FP32", a)}, raw)))
    assert np.array_equal(found["negated"], -b)
    assert np.allclose(found["total"], a.sum(axis=1) + b.sum(axis=1), atol=1e-5)


def test_outputs_come_in_the_order_asked_for_and_the_id_with_them(rpc: SimpleNamespace) -> None:
    x = np.array([[1, 2, 3, 4]], np.uint8)
    for outputs in (["half", "same"], ["same"], ["same", "half"]):
        answer = rpc.ModelInfer(request("echo", {"x": ("UINT8", x)}, outputs=outputs, id="an id"))
        assert [output.name for output in answer.outputs] == outputs
        assert answer.id == "an id"
        assert np.array_equal(arrays(answer)["same"], x)
    assert rpc.ModelInfer(request("echo", {"x": ("UINT8", x)})).id == ""


def test_a_version_may_be_named(rpc: SimpleNamespace) -> None:
    x = np.array([[9, 8, 7, 6]], np.uint8)
    answer = rpc.ModelInfer(request("echo", {"x": ("UINT8", x)}, model_version="1"))
    assert np.array_equal(arrays(answer)["same"], x)
    assert answer.model_version == "1"


def test_an_output_as_its_best_classes(rpc: SimpleNamespace) -> None:
    message = request("votes", {"x": ("UINT8", np.array([[5, 9, 7], [3, 1, 2]], np.uint8))}, outputs=["votes"])
    set_parameters(message.outputs[0].parameters, {"classification": 2})
    answer = rpc.ModelInfer(message)
    assert answer.outputs[0].datatype == "BYTES"
    assert arrays(answer)["votes"].tolist() == [["9:1:middle", "7:2:right"], ["3:0:left", "2:2:right"]]


@pytest.mark.parametrize("raw", [True, False])
def test_tensors_without_a_row_have_an_answer_without_one(rpc: SimpleNamespace, raw: bool) -> None:
    inputs = {"a": ("FP32", floats(0, 3)), "b": ("INT32", np.zeros((0, 2), np.int32))}
    answer = arrays(rpc.ModelInfer(request("two", inputs, raw)))
    assert same(answer, {"total": floats(0), "negated": np.zeros((0, 2), np.int32)})


def test_infinity_and_nan_come_back_as_they_are(rpc: SimpleNamespace) -> None:
    x = np.array([[np.nan, -np.inf], [np.inf, -0.0]], np.float32)
    for raw in (True, False):
        answer = rpc.ModelInfer(request("floats", {"x": ("FP32", x)}, raw))
        assert answer.raw_output_contents[0] == x.tobytes()
