"""ModelInfer: a message becomes the request that the HTTP route has, and what comes back a message.

    raw_input_contents     one for each input, in their order: taken as binary tensors
    inputs[i].contents     elements in the field of their datatype; FP16 and BF16 have none

One or the other, for all inputs. Outputs are always in `raw_output_contents`: that is what clients read first, and a
copy where typed fields are a loop. Everything else, parameters too, is checked by `service/frontend/infer.py`.
Sources: the protocol's gRPC specification and grpc_service.proto of Triton.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from models.manifest import NUMPY_OF, Datatype
from service.batching import strings
from service.batching.claim import Claim, ServedModel
from service.errors import MalformedRequest, WrongTensor
from service.frontend.grpc.open_inference_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from service.frontend.http import Answer
from service.frontend.infer import InferInput, InferOutput, InferRequest, Parsed, Wanted, classes, parse_request
from service.frontend.prepared import Prepared, claim_rows
from service.frontend.shaped import joined
from service.frontend.tensors import whole_shape

PROTOBUF = b"application/grpc+proto"

InferInputTensor = ModelInferRequest.InferInputTensor
Write = Callable[[ModelInferResponse], bytes]

_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_RAW_ONLY = ("FP16", "BF16")


def prepare(model: ServedModel, message: ModelInferRequest, deadline: int, received_at: int, write: Write) -> Prepared:
    """Rows to commit. Raises ServiceError.

    deadline, received_at   monotonic ns
    write                   the answer's message as bytes
    """
    parsed = parse_request(model, *_request(message))
    if parsed.timeout_us:
        deadline = min(deadline, received_at + parsed.timeout_us * 1000)
    claim = claim_rows(model, parsed.n_items, parsed.rows, deadline)
    claim.priority = parsed.priority
    return Prepared(claim, partial(_encode, parsed, write))


def unary(message: ModelInferResponse) -> bytes:
    """For ModelInfer."""
    return message.SerializeToString()  # type: ignore[no-any-return]


def streamed(message: ModelInferResponse) -> bytes:
    """For ModelStreamInfer, where Triton's clients look whether more follows for the same request: never here."""
    message.parameters["triton_final_response"].bool_param = True
    return ModelStreamInferResponse(infer_response=message).SerializeToString()  # type: ignore[no-any-return]


def _encode(parsed: Parsed, write: Write, claim: Claim) -> Answer:
    facts = claim.model.facts
    message = ModelInferResponse(model_name=facts.name, model_version=facts.version, id=parsed.id)
    for wanted in parsed.wanted:
        datatype, shape, data = _output(claim, wanted)
        message.outputs.add(name=wanted.spec.name, datatype=datatype, shape=shape)
        message.raw_output_contents.append(data)
    return Answer(write(message), PROTOBUF)


def _output(claim: Claim, wanted: Wanted) -> tuple[str, list[int], bytes]:
    """Datatype, shape and elements of an output."""
    facts, spec = claim.model.facts, wanted.spec
    if wanted.classes:
        shape, elements = classes(claim, spec, wanted.classes)
        return "BYTES", shape, strings.pack(elements)
    if spec.name in claim.model.outputs:
        array = claim.read(spec.name)
        return spec.datatype, whole_shape(facts, spec, len(array)), array.tobytes()
    return spec.datatype, *joined(facts, spec, claim.read_shaped(spec.name))


def _request(message: ModelInferRequest) -> tuple[InferRequest, memoryview]:
    """As the HTTP route has it with every tensor binary. Raises MalformedRequest, WrongTensor."""
    blobs = _raw(message) if message.raw_input_contents else [_typed(tensor) for tensor in message.inputs]
    inputs = [
        InferInput(
            tensor.name,
            list(tensor.shape),
            tensor.datatype,
            {**_parameters(tensor.parameters), "binary_data_size": len(blob)},
        )
        for tensor, blob in zip(message.inputs, blobs, strict=True)
    ]
    outputs = [
        InferOutput(output.name, {**_parameters(output.parameters), "binary_data": True}) for output in message.outputs
    ]
    parameters = {**_parameters(message.parameters), "binary_data_output": True}
    binary = blobs[0] if len(blobs) == 1 else b"".join(blobs)
    return InferRequest(inputs, message.id, parameters, outputs), memoryview(binary)


def _raw(message: ModelInferRequest) -> list[bytes]:
    blobs = list(message.raw_input_contents)
    if len(blobs) != len(message.inputs):
        raise MalformedRequest(
            f"{len(blobs)} raw_input_contents for {len(message.inputs)} inputs; expected one for each, in their order"
        )
    for tensor in message.inputs:
        if tensor.contents.ListFields():
            raise MalformedRequest(
                f"input {tensor.name!r} has contents beside raw_input_contents; expected one of the two for all inputs"
            )
    return blobs


def _typed(tensor: InferInputTensor) -> bytes:
    """The elements as a binary tensor. A datatype that nobody knows has none: `parse_request` says so."""
    contents, wanted = tensor.contents, _FIELDS.get(tensor.datatype)
    if tensor.datatype in _RAW_ONLY:
        raise WrongTensor(
            f"input {tensor.name!r}: contents have no field for {tensor.datatype}; send it in raw_input_contents"
        )
    if wanted is None:
        return b""
    given = [field.name for field, _ in contents.ListFields()]
    if given not in ([], [wanted]):
        raise WrongTensor(f"input {tensor.name!r} is {tensor.datatype}: expected {wanted}, not {', '.join(given)}")
    elements = getattr(contents, wanted)
    if len(elements) != prod(tensor.shape):
        raise WrongTensor(
            f"input {tensor.name!r}: {wanted} has {len(elements)} values; expected {prod(tensor.shape)} for shape "
            f"{list(tensor.shape)}"
        )
    return strings.pack(elements) if tensor.datatype == "BYTES" else _numbers(tensor, wanted, elements)


def _numbers(tensor: InferInputTensor, field: str, elements: Iterable[Any]) -> bytes:
    """Raises WrongTensor where the field is wider than the datatype, and a value does not fit."""
    datatype: Datatype = tensor.datatype  # type: ignore[assignment]  # `_FIELDS` has it
    narrow, wide = NUMPY_OF[datatype], _WIDE.get(field, NUMPY_OF[datatype])
    array = np.array(elements, wide)
    if narrow != wide and array.size:
        limits = np.iinfo(narrow)
        for value in (int(array.min()), int(array.max())):
            if not limits.min <= value <= limits.max:
                raise WrongTensor(
                    f"input {tensor.name!r}: {field} has {value}; expected {limits.min} to {limits.max} for {datatype}"
                )
    return array.astype(narrow).tobytes()


_WIDE = {"int_contents": NUMPY_OF["INT32"], "uint_contents": NUMPY_OF["UINT32"]}


def _parameters(given: Mapping[str, InferParameter]) -> dict[str, Any]:
    """None where no choice is made."""
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in given.items()}
