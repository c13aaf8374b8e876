"""A gRPC client of the protocol, made from our own descriptors: stubs, requests from arrays, arrays from answers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict

from service.frontend.grpc import health_pb2, open_inference_pb2
from service.frontend.grpc.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from tests.support.server import Server
from tests.support.tensors import from_bytes, to_bytes

FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
NO_LIMIT = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

Inputs = Mapping[str, tuple[str, np.ndarray]]


def address(server: Server) -> str:
    """As `serve` has announced it."""
    (found,) = [match.group(1) for line in server.printed if (match := re.match(r"  gRPC      (\S+)$", line))]
    return found


def stub(channel: grpc.Channel | grpc.aio.Channel) -> SimpleNamespace:
    """Every call by its name, messages both ways."""
    calls = {}
    for file in (open_inference_pb2, health_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                make = channel.stream_stream if method.client_streaming else channel.unary_unary
                calls[method.name] = make(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=method.output_type._concrete_class.FromString,
                )
    return SimpleNamespace(**calls)


@contextmanager
def client(server: Server, *options: tuple[str, Any]) -> Iterator[SimpleNamespace]:
    """On a connection of its own."""
    alone = ("grpc.use_local_subchannel_pool", 1)
    with grpc.insecure_channel(address(server), options=[*NO_LIMIT, alone, *options]) as channel:
        yield stub(channel)


def request(
    model: str, inputs: Inputs, raw: bool = True, outputs: Sequence[str] = (), **more: Any
) -> ModelInferRequest:
    """`more`: fields as protobuf's JSON has them, `parameters` as plain values."""
    parameters = more.pop("parameters", {})
    message = ModelInferRequest(model_name=model)
    ParseDict(more, message)
    set_parameters(message.parameters, parameters)
    for name, (datatype, array) in inputs.items():
        tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            message.raw_input_contents.append(to_bytes(array))
        else:
            flat = array.reshape(-1).tolist()
            elements = [text.encode() for text in flat] if datatype == "BYTES" else flat
            getattr(tensor.contents, FIELDS[datatype]).extend(elements)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def set_parameters(field: Any, parameters: Mapping[str, object]) -> None:
    for name, value in parameters.items():
        kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        setattr(field[name], kinds[type(value)], value)


def arrays(answer: ModelInferResponse) -> dict[str, np.ndarray]:
    """Outputs in the order of the answer."""
    assert len(answer.outputs) == len(answer.raw_output_contents)
    return {
        output.name: from_bytes(output.datatype, list(output.shape), data)
        for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
