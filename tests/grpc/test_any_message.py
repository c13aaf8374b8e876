"""Whatever a message holds, it is never our fault: an answer, or an error that names a field."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import get_args

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.manifest import Datatype
from service.frontend.grpc.open_inference_pb2 import ModelInferRequest
from tests.support.rpc import FIELDS, address
from tests.support.server import Server

THEIRS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
MODELS = ["echo", "two", "flags", "ragged", "words", "labels", "matrix", "fixed", "constant", "wide", "all-INT8"]

small = st.integers(-3, 5)
values = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1).map(str),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1).map(str),
    "fp32_contents": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "fp64_contents": st.floats(allow_nan=False, allow_infinity=False),
    "bytes_contents": st.sampled_from(["", "YQ==", "//4="]),  # base64: nothing, "a", no UTF-8
}
contents = st.fixed_dictionaries({}, optional={name: st.lists(value, max_size=6) for name, value in values.items()})
parameter = st.sampled_from(
    [{}, {"int64Param": "1"}, {"int64Param": "-1"}, {"boolParam": True}, {"stringParam": "x"}, {"doubleParam": 0.5}]
)
parameters = st.dictionaries(
    st.sampled_from(["priority", "timeout", "classification", "binary_data_size", "binary_data", "other"]), parameter
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "a", "b", "bias", "x0", ""]),
        "datatype": st.sampled_from([*get_args(Datatype), "", "STRING"]),
        "shape": st.lists(small | st.sampled_from([2**62, -(2**63)]), max_size=4).map(lambda axes: [*map(str, axes)]),
    },
    optional={"contents": contents, "parameters": parameters},
)
messages = st.fixed_dictionaries(
    {"modelName": st.sampled_from([*MODELS, "", "nothing"]), "inputs": st.lists(tensors, max_size=3)},
    optional={
        "modelVersion": st.sampled_from(["", "1", "9", "é"]),
        "id": st.text(st.characters(codec="utf-8"), max_size=5),
        "parameters": parameters,
        "outputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["same", "half", "y", "total", ""])}, optional={"parameters": parameters}
            ),
            max_size=2,
        ),
        "rawInputContents": st.lists(st.sampled_from(["", "AQ==", "AQIDBA==", "AAAAAAAAAAA="]), max_size=3),
    },
)


@pytest.fixture(scope="module")
def infer(server: Server) -> Iterator[SimpleNamespace]:
    with grpc.insecure_channel(address(server)) as channel:
        yield SimpleNamespace(call=channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"))


def assert_never_our_fault(infer: SimpleNamespace, data: bytes) -> None:
    answer = infer.call.future(data, timeout=10)
    assert answer.code() in (grpc.StatusCode.OK, *THEIRS), (answer.code(), answer.details())
    assert answer.code() == grpc.StatusCode.OK or answer.details()


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(message=messages)
def test_no_message_whatever_is_our_fault(infer: SimpleNamespace, message: dict[str, object]) -> None:
    assert_never_our_fault(infer, ParseDict(message, ModelInferRequest()).SerializeToString())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    datatype=st.sampled_from(sorted(FIELDS)), shape=st.lists(st.integers(0, 3), min_size=1, max_size=6), data=st.data()
)
def test_contents_of_any_length_for_any_shape(
    infer: SimpleNamespace, datatype: str, shape: list[int], data: st.DataObject
) -> None:
    elements = data.draw(st.lists(values[FIELDS[datatype]], max_size=8))
    tensor = {"name": "x0", "datatype": datatype, "shape": [*map(str, shape)], "contents": {FIELDS[datatype]: elements}}
    message = {"modelName": f"all-{datatype}", "inputs": [tensor]}
    assert_never_our_fault(infer, ParseDict(message, ModelInferRequest()).SerializeToString())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60))
def test_no_bytes_whatever_are_our_fault(infer: SimpleNamespace, data: bytes) -> None:
    assert_never_our_fault(infer, data)
