"""POST /v2/models/{model}[/versions/{version}]/infer: Open Inference Protocol v2, JSON and binary tensors.

    Inference-Header-Content-Length absent      the body is JSON, or, as application/octet-stream, one raw tensor;
                                                but what reads as a request in JSON to its end is one
    Inference-Header-Content-Length: n > 0      n bytes of JSON, then the binary tensors in the order of `inputs`
    Inference-Header-Content-Length: 0          the body is one raw tensor

A raw tensor needs a model with one input; its length gives the number of items, or, where items differ in size or
there is no batch axis, the one axis of any length. All outputs come back binary.
Request parameters `priority` (1 is the highest, 0 the default, which is 1) and `timeout` (microseconds) are those of
the schedule policy extension; output parameter `classification` is that of the extension of its name. The words of what
a raw body cannot be are Triton's: clients' tests look for them.
Sources: the protocol's REST specification and Triton's binary tensor data, classification and schedule policy
extensions.
"""

from functools import partial
from math import prod
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from models.manifest import NUMPY_OF, TensorSpec
from service.batching import strings
from service.batching.arena import Rows
from service.batching.claim import DEFAULT_PRIORITY, LOWEST_PRIORITY, Claim, ServedModel
from service.errors import MalformedRequest, WrongTensor
from service.frontend.classification import class_strings, classes_wanted, labels_of
from service.frontend.http import BINARY, JSON, Answer, Request, decode_json
from service.frontend.prepared import Prepared, claim_rows
from service.frontend.shaped import (
    flat_values,
    joined,
    raw_string,
    shape_of_raw,
    shaped_rows_from_bytes,
    shaped_rows_from_json,
)
from service.frontend.tensors import (
    check_bytes,
    check_datatype,
    check_shape,
    items_in,
    rows_from_json,
    to_json,
    whole_shape,
)

HEADER_LENGTH = b"inference-header-content-length"
_MOST_DIGITS = 18  # of any length there is; Python refuses to read numbers of thousands of digits
_LONGEST_TIMEOUT_US = 2**53  # what every JSON library reads exactly


class InferInput(Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class InferOutput(Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(Struct):
    inputs: list[InferInput]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[InferOutput] | None = None


class Wanted(Struct, frozen=True):
    """One output of the answer, in the order asked for. `classes`: how many of the best, as text; 0: as it is."""

    spec: TensorSpec
    binary: bool
    classes: int = 0


class Parsed(Struct, frozen=True):
    """A request that fits its model: rows for every input, equally many."""

    id: str
    rows: dict[str, Rows]
    n_items: int
    wanted: list[Wanted]
    priority: int = DEFAULT_PRIORITY
    timeout_us: int = 0


def parse(model: ServedModel, headers: dict[bytes, bytes], body: bytes) -> Parsed:
    """Raises MalformedRequest, WrongTensor; each names the field."""
    header_length = _header_length(headers, body)
    if header_length is None:
        return _parse_raw(model, body)
    request: InferRequest = decode_json(memoryview(body)[:header_length], InferRequest, "the inference request")
    return parse_request(model, request, memoryview(body)[header_length:])


def parse_request(model: ServedModel, request: InferRequest, binary: memoryview) -> Parsed:
    """As `parse`. `binary`: the bytes of the inputs with a `binary_data_size`, in their order."""
    specs = {spec.name: spec for spec in model.facts.inputs}
    rows: dict[str, Rows] = {}
    counts: dict[str, int] = {}
    for given in request.inputs:
        if (spec := specs.get(given.name)) is None:
            raise WrongTensor(f"no input {given.name!r}; expected {', '.join(map(repr, specs))}")
        if given.name in rows:
            raise WrongTensor(f"input {given.name!r} is given twice")
        counts[given.name] = check_shape(model.facts, spec, given.shape)
        rows[given.name], binary = _rows(model, spec, given, binary, counts[given.name])
    if missing := specs.keys() - rows.keys():
        raise WrongTensor(f"missing input {', '.join(map(repr, sorted(missing)))}")
    if len(binary):
        raise MalformedRequest(f"{len(binary)} bytes follow the last binary tensor; expected none")
    if len(set(counts.values())) > 1:
        raise WrongTensor(f"inputs have first dimensions {counts}; expected the same in all")
    return Parsed(
        request.id,
        rows,
        next(iter(counts.values()), 1),
        _wanted(model, request),
        _whole_number(request, "priority", LOWEST_PRIORITY) or DEFAULT_PRIORITY,
        _whole_number(request, "timeout", _LONGEST_TIMEOUT_US),
    )


def encode(parsed: Parsed, claim: Claim) -> Answer:
    facts = claim.model.facts
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for wanted in parsed.wanted:
        spec, binary = wanted.spec, wanted.binary
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype}
        data: bytes | list[Any]
        if wanted.classes:
            output["datatype"] = "BYTES"
            output["shape"], elements = classes(claim, spec, wanted.classes)
            data = strings.pack(elements) if binary else [element.decode() for element in elements]
        elif spec.name in claim.model.outputs:
            array = claim.read(spec.name)
            output["shape"] = whole_shape(facts, spec, len(array))
            data = array.tobytes() if binary else to_json(array)
        else:
            output["shape"], joint = joined(facts, spec, claim.read_shaped(spec.name))
            data = joint if binary else flat_values(spec, joint)
        if isinstance(data, bytes):
            blobs.append(data)
            output["parameters"] = {"binary_data_size": len(data)}
        else:
            output["data"] = data
        outputs.append(output)
    answer = {"model_name": facts.name, "model_version": facts.version, "outputs": outputs}
    if parsed.id:
        answer["id"] = parsed.id
    head = msgspec.json.encode(answer)
    if not blobs:
        return Answer(head, JSON)
    return Answer(b"".join([head, *blobs]), BINARY, headers=((HEADER_LENGTH, b"%d" % len(head)),))


def classes(claim: Claim, spec: TensorSpec, k: int) -> tuple[list[int], list[bytes]]:
    """Shape and elements of an output as its k best classes."""
    facts = claim.model.facts
    if spec.name in claim.model.outputs:
        rows = claim.read(spec.name)
    else:
        shape, joint = joined(facts, spec, claim.read_shaped(spec.name))
        n, item = (shape[0], shape[1:]) if facts.batch_axis else (1, shape)
        rows = np.frombuffer(joint, NUMPY_OF[spec.datatype]).reshape(n, prod(item))
    shape, elements = class_strings(rows, k, labels_of(facts, spec))
    return shape if facts.batch_axis else shape[1:], elements


def prepare(model: ServedModel, request: Request, body: bytes, deadline: int) -> Prepared:
    """Raises ServiceError."""
    parsed = parse(model, request.headers, body)
    if parsed.timeout_us:
        deadline = min(deadline, request.received_at + parsed.timeout_us * 1000)
    claim = claim_rows(model, parsed.n_items, parsed.rows, deadline)
    claim.priority = parsed.priority
    return Prepared(claim, partial(encode, parsed))


def _header_length(headers: dict[bytes, bytes], body: bytes) -> int | None:
    """How much of the body is JSON; None: it is one raw tensor."""
    given = headers.get(HEADER_LENGTH)
    if given is None:
        binary = headers.get(b"content-type", b"").split(b";")[0].strip().lower() == BINARY
        return None if binary and not _is_request(body) else len(body)
    if not given.isdigit() or len(given) > _MOST_DIGITS or int(given) > len(body):
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {given.decode('latin-1')!r}; "
            f"expected 0 to {len(body)}, the length of the body"
        )
    return int(given) or None


def _is_request(body: bytes) -> bool:
    """Whether a body called octet-stream is JSON all the same: aiohttp, under tritonclient's, calls all bytes that."""
    if not body.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(body, type=InferRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _parse_raw(model: ServedModel, body: bytes) -> Parsed:
    facts = model.facts
    if len(facts.inputs) != 1:
        raise WrongTensor(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(facts.inputs)} inputs in "
            f"{facts.name!r}"
        )
    spec = facts.inputs[0]
    wanted = [Wanted(output, True) for output in facts.outputs]
    if spec.datatype == "BYTES":
        return Parsed("", {spec.name: raw_string(facts, spec, body)}, 1, wanted)
    if spec.name not in model.inputs:
        rows = shaped_rows_from_bytes(facts, spec, body, shape_of_raw(facts, spec, len(body)), 1)
        return Parsed("", {spec.name: rows}, 1, wanted)
    n_items = items_in(facts, spec, body)
    if n_items > 1 and not facts.batch_axis:
        raise WrongTensor(f"{len(body)} bytes; expected {len(body) // n_items} for shape {list(spec.shape)}")
    return Parsed("", {spec.name: body}, n_items, wanted)


def _rows(
    model: ServedModel, spec: TensorSpec, given: InferInput, binary: memoryview, n_items: int
) -> tuple[Rows, memoryview]:
    """The input's rows, and the binary data that is left for the next."""
    check_datatype(spec, given.datatype)
    size = given.parameters.get("binary_data_size")
    if size is None:
        if not memoryview(given.data).nbytes:
            raise MalformedRequest(f"input {spec.name!r} has neither data nor parameters.binary_data_size")
        if spec.name in model.inputs:
            return rows_from_json(model.facts, spec, given.data, n_items, "data")[0], binary
        return shaped_rows_from_json(model.facts, spec, given.data, given.shape, n_items), binary
    if type(size) is not int or not 0 <= size <= len(binary):
        raise MalformedRequest(
            f"input {spec.name!r}: binary_data_size is {size!r}; "
            f"expected a number up to {len(binary)}, the bytes that are left"
        )
    data, left = binary[:size], binary[size:]
    if spec.name in model.inputs:
        return check_bytes(model.facts, spec, data, n_items), left
    return shaped_rows_from_bytes(model.facts, spec, data, given.shape, n_items), left


def _whole_number(request: InferRequest, name: str, most: int) -> int:
    """A request parameter of the schedule policy extension; 0 asks for the default."""
    value = request.parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise MalformedRequest(f"parameters.{name} is {value!r}; expected a whole number up to {most}")
    return value


def _wanted(model: ServedModel, request: InferRequest) -> list[Wanted]:
    all_binary = request.parameters.get("binary_data_output", False) is True
    specs = {spec.name: spec for spec in model.facts.outputs}
    if not request.outputs:
        return [_checked(Wanted(spec, all_binary)) for spec in specs.values()]
    wanted: dict[str, Wanted] = {}
    for output in request.outputs:
        if output.name not in specs:
            raise WrongTensor(f"no output {output.name!r}; expected {', '.join(map(repr, specs))}")
        if output.name in wanted:
            raise WrongTensor(f"output {output.name!r} is asked for twice")
        spec = specs[output.name]
        classes = classes_wanted(model.facts, spec, output.parameters.get("classification"))
        binary = output.parameters.get("binary_data", all_binary) is True
        wanted[output.name] = _checked(Wanted(spec, binary, classes))
    return list(wanted.values())


def _checked(wanted: Wanted) -> Wanted:
    if wanted.spec.datatype == "BF16" and not wanted.binary:
        raise WrongTensor(
            f"output {wanted.spec.name!r} is BF16, which JSON has no form for; "
            "ask for it with parameters.binary_data, or for all with parameters.binary_data_output"
        )
    return wanted
