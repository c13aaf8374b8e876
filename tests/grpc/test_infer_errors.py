"""What is refused over gRPC: the code, the field, what was expected; and that it is counted as for HTTP."""

from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from models.manifest import Datatype
from service.errors import EngineError, ServiceError
from service.frontend.grpc.codes import CODES
from service.frontend.grpc.open_inference_pb2 import ModelInferRequest
from tests.grpc.test_calls import refused
from tests.support.rpc import FIELDS, address, client, request, set_parameters
from tests.support.server import Server

BYTES = np.array([[1, 2, 3, 4]], np.uint8)


def echo(**more: object) -> ModelInferRequest:
    return request("echo", {"x": ("UINT8", BYTES)}, **more)


def assert_refused(
    rpc: SimpleNamespace, message: ModelInferRequest, *said: str, code: str = "INVALID_ARGUMENT"
) -> None:
    error = refused(rpc.ModelInfer, message)
    assert error.code() == grpc.StatusCode[code], error.details()
    assert all(words in error.details() for words in said), error.details()


def test_every_error_there_is_has_a_code() -> None:
    def leaves(kind: type[ServiceError]) -> set[type[ServiceError]]:
        return {kind}.union(*(leaves(below) for below in kind.__subclasses__()))

    assert {kind.status for kind in leaves(ServiceError)} <= CODES.keys()
    assert CODES[EngineError.status] == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model_name": "nothing"}, "'nothing'"),
        ({"model_version": "7"}, "'7'"),
    ],
    ids=str,
)
def test_models_that_are_not_there_are_not_found(rpc: SimpleNamespace, more: dict[str, str], said: str) -> None:
    assert_refused(rpc, echo(**more), said, code="NOT_FOUND")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, ["missing input 'x'"]),
        ({"y": ("UINT8", BYTES)}, ["no input 'y'", "'x'"]),
        ({"x": ("INT8", BYTES)}, ["'x'", "INT8", "expected UINT8"]),
        ({"x": ("NUMBERS", BYTES)}, ["'x'", "NUMBERS", "expected UINT8"]),
        ({"x": ("UINT8", BYTES[:, :3])}, ["'x'", "[1, 3]", "[n, 4]"]),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_refused_by_name(rpc: SimpleNamespace, inputs: dict, said: list[str]) -> None:
    assert_refused(rpc, request("echo", inputs), *said)


@pytest.mark.parametrize("shape", [[-1, 4], [2**62, 4], [2, 4], [4], [], [1, 4, 1]], ids=str)
@pytest.mark.parametrize("raw", [True, False])
def test_shapes_that_the_elements_do_not_fill_are_refused(rpc: SimpleNamespace, shape: list[int], raw: bool) -> None:
    message = echo(raw=raw)
    message.inputs[0].shape[:] = shape
    assert_refused(rpc, message, "'x'", str(shape)[1:-1])


def test_an_input_given_twice_is_refused(rpc: SimpleNamespace) -> None:
    message = echo()
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    assert_refused(rpc, message, "'x'", "twice")


def test_raw_and_typed_contents_do_not_mix(rpc: SimpleNamespace) -> None:
    message = echo()
    message.inputs[0].contents.uint_contents.extend([1, 2, 3, 4])
    assert_refused(rpc, message, "'x'", "contents", "raw_input_contents")


@pytest.mark.parametrize("n", [2, 3])
def test_raw_contents_are_one_for_each_input(rpc: SimpleNamespace, n: int) -> None:
    message = echo()
    for _ in range(n - 1):
        message.raw_input_contents.append(b"1234")
    assert_refused(rpc, message, f"{n} raw_input_contents", "1 inputs")


@pytest.mark.parametrize("data", [b"", b"123", b"12345"], ids=repr)
def test_raw_contents_of_the_wrong_length_are_refused(rpc: SimpleNamespace, data: bytes) -> None:
    message = echo()
    message.raw_input_contents[0] = data
    assert_refused(rpc, message, "'x'", f"{len(data)} bytes", "expected 4")


def test_contents_in_the_field_of_another_datatype_are_refused(rpc: SimpleNamespace) -> None:
    message = echo(raw=False)
    message.inputs[0].contents.Clear()
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    assert_refused(rpc, message, "'x'", "expected uint_contents", "fp32_contents")


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_typed_contents(rpc: SimpleNamespace, datatype: Datatype) -> None:
    message = request(f"all-{datatype}", {})
    message.inputs.add(name="x0", datatype=datatype, shape=[1]).contents.fp32_contents.append(1)
    assert_refused(rpc, message, "'x0'", datatype, "raw_input_contents")


@pytest.mark.parametrize(
    ("datatype", "value", "limits"),
    [
        ("UINT8", 256, "0 to 255"),
        ("UINT16", 65536, "0 to 65535"),
        ("INT8", -129, "-128 to 127"),
        ("INT8", 128, "-128 to 127"),
        ("INT16", 40_000, "-32768 to 32767"),
    ],
)
def test_typed_values_beyond_the_datatype_are_refused(
    rpc: SimpleNamespace, datatype: Datatype, value: int, limits: str
) -> None:
    message = request(f"all-{datatype}", {})
    tensor = message.inputs.add(name="x0", datatype=datatype, shape=[1])
    getattr(tensor.contents, FIELDS[datatype]).append(value)
    assert_refused(rpc, message, "'x0'", str(value), limits)


def test_bytes_that_are_no_text_are_refused(rpc: SimpleNamespace) -> None:
    message = request("labels", {})
    message.inputs.add(name="x", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"\xff\xfe")
    assert_refused(rpc, message, "'x'", "UTF-8")


@pytest.mark.parametrize("outputs", [["nothing"], ["same", "same"]], ids=str)
def test_outputs_that_there_are_not_or_twice_are_refused(rpc: SimpleNamespace, outputs: list[str]) -> None:
    assert_refused(rpc, echo(outputs=outputs), repr(outputs[-1]))


@pytest.mark.parametrize(
    "parameters",
    [{"priority": 255}, {"priority": -1}, {"priority": "1"}, {"priority": True}, {"timeout": -1}, {"timeout": 1.5}],
    ids=str,
)
def test_what_is_no_priority_or_timeout_is_refused_by_name(rpc: SimpleNamespace, parameters: dict) -> None:
    assert_refused(rpc, echo(parameters=parameters), f"parameters.{next(iter(parameters))}")


@pytest.mark.parametrize("k", [-1, "2", True], ids=repr)
def test_what_is_no_number_of_classes_is_refused(rpc: SimpleNamespace, k: object) -> None:
    message = echo(outputs=["same"])
    set_parameters(message.outputs[0].parameters, {"classification": k})
    assert_refused(rpc, message, "'same'", "classification")


def test_a_parameter_without_a_value_is_refused(rpc: SimpleNamespace) -> None:
    message = echo()
    message.parameters["priority"].SetInParent()
    assert_refused(rpc, message, "parameters.priority", "None")


def test_a_model_that_fails_is_our_fault_and_says_whose_request_it_was(rpc: SimpleNamespace) -> None:
    message = request("picky", {"x": ("INT64", np.array([10]))})
    assert_refused(rpc, message, "failed on this input", "request ", code="INTERNAL")
    good = rpc.ModelInfer(request("picky", {"x": ("INT64", np.array([3]))}))
    assert np.frombuffer(good.raw_output_contents[0], np.int64).tolist() == [33]


def test_bytes_that_are_no_message_are_the_clients_fault(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        for name in ("ModelInfer", "ServerLive", "ModelMetadata"):
            error = refused(channel.unary_unary(f"/inference.GRPCInferenceService/{name}"), b"\xff\xff\xff\xff")
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert f"{name}Request" in error.details()


def test_calls_that_there_are_not_are_unimplemented(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        for path in ("/inference.GRPCInferenceService/SystemSharedMemoryStatus", "/other.Service/Call"):
            assert refused(channel.unary_unary(path), b"").code() == grpc.StatusCode.UNIMPLEMENTED


def test_messages_larger_than_a_body_may_be_are_refused(server: Server) -> None:
    """Also those that are so only once they are inflated."""
    large = request("floats", {"x": ("FP32", np.zeros((9 << 20, 2), np.float32))})
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        with client(server, ("grpc.default_compression_algorithm", compression.value)) as rpc:
            error = refused(rpc.ModelInfer, large)
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in error.details()


def test_more_items_than_there_is_room_for_are_refused(rpc: SimpleNamespace) -> None:
    assert_refused(rpc, request("floats", {"x": ("FP32", np.zeros((5000, 2), np.float32))}), "5000 items")


def test_refusals_and_answers_are_counted_by_status(rpc: SimpleNamespace, server: Server) -> None:
    def counted() -> tuple[float, float]:
        metrics = server.metrics()
        return metrics["shoal_requests_total", "flags"], metrics["shoal_request_errors_total", "flags"]

    assert rpc.ModelInfer(request("flags", {"x": ("BOOL", np.array([[True, False, True]]))})).model_name == "flags"
    before = counted()
    rpc.ModelInfer(request("flags", {"x": ("BOOL", np.array([[True, False, True]]))}))
    refused(rpc.ModelInfer, request("flags", {"x": ("BOOL", np.array([[True, False]]))}))
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (2, 1)
