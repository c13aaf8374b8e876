"""Requests and answers of the protocol: tensors as JSON and as bytes, and what every answer and refusal must have.

Arrays are numpy's; BF16 is its bits in uint16, BYTES are text in object arrays.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np

from tests.protocol.wire import Answer

LENGTH = "inference-header-content-length"
OCTETS = {"content-type": "application/octet-stream"}

NUMPY_OF = {
    "BOOL": np.dtype("?"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype(object),
} | {f"{kind}INT{8 * size}": np.dtype(f"<{kind.lower() or 'i'}{size}") for kind in ("U", "") for size in (1, 2, 4, 8)}


class Given(NamedTuple):
    """An input to send."""

    name: str
    datatype: str
    array: np.ndarray
    binary: bool = False


class Parts(NamedTuple):
    """A request's JSON, and the binary tensors behind it."""

    text: bytes
    blobs: bytes

    @property
    def body(self) -> bytes:
        return self.text + self.blobs

    @property
    def headers(self) -> dict[str, str]:
        return {LENGTH: f"{len(self.text)}"}


def infer_path(model: str, version: str | None = None) -> str:
    """`model` percent-encoded already."""
    return f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


def parts(inputs: Sequence[Given], **more: Any) -> Parts:
    """`more`: further members of the request."""
    texts, blobs = [], b""
    for given in inputs:
        text: dict[str, Any] = {"name": given.name, "shape": given.array.shape, "datatype": given.datatype}
        if given.binary:
            blob = to_bytes(given.array)
            text["parameters"] = {"binary_data_size": len(blob)}
            blobs += blob
        else:
            text["data"] = given.array.tolist() if given.array.ndim else [given.array.item()]
        texts.append(text)
    return Parts(json.dumps({"inputs": texts, **more}).encode(), blobs)


def post(http: httpx.Client, model: str, sent: Parts, **headers: str) -> httpx.Response:
    return http.post(infer_path(model), content=sent.body, headers=sent.headers | headers)


def infer(http: httpx.Client, model: str, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    """JSON alone, as `tensor` makes it."""
    return http.post(infer_path(model), json={"inputs": list(inputs), **more})


class Outputs(NamedTuple):
    """`text` is the answer's JSON; `arrays` the tensors by name, `binary` those that came as bytes."""

    text: dict[str, Any]
    arrays: dict[str, np.ndarray]
    binary: set[str]


def outputs(answer: httpx.Response | Answer) -> Outputs:
    """Of an answer that succeeded; all that the protocol says of its form holds, and every byte belongs to a tensor."""
    assert answer.status_code == 200 if isinstance(answer, httpx.Response) else answer.status == 200, answer.content
    length = answer.headers.get(LENGTH)
    text_bytes = answer.content if length is None else answer.content[: int(length)]
    text, rest = json.loads(text_bytes), answer.content[len(text_bytes) :]
    assert answer.headers["content-type"] == ("application/json" if length is None else "application/octet-stream")
    assert isinstance(text["model_name"], str)
    assert isinstance(text["model_version"], str)
    arrays, binary = {}, set()
    for output in text["outputs"]:
        name, datatype, shape = output["name"], output["datatype"], output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        assert (size is None) == ("data" in output), "data, or its size"
        if size is None:
            arrays[name] = from_json(datatype, shape, output["data"])
        else:
            assert len(rest) >= size
            arrays[name], rest = from_bytes(datatype, shape, rest[:size]), rest[size:]
            binary.add(name)
    assert not rest, "bytes behind the last tensor"
    assert (length is not None) == bool(binary), "the header is there where a tensor is binary"
    return Outputs(text, arrays, binary)


def refusal(answer: httpx.Response | Answer, status: int = 400) -> str:
    """The message of an error: JSON, without a charset, with the one member `error`."""
    found = answer.status_code if isinstance(answer, httpx.Response) else answer.status
    assert found == status, answer.content
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"error"}
    assert isinstance(body["error"], str)
    assert body["error"]
    return body["error"]


def to_bytes(array: np.ndarray) -> bytes:
    if array.dtype.kind != "O":
        return array.tobytes()
    encoded = [text.encode() for text in array.reshape(-1)]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def from_bytes(datatype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    if datatype != "BYTES":
        return np.frombuffer(data, NUMPY_OF[datatype]).reshape(shape)
    elements = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        assert len(data) >= 4 + size, "an element is cut short"
        elements.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return texts(elements, shape)


def from_json(datatype: str, shape: Sequence[int], data: Any) -> np.ndarray:
    """Nested or flat; null is NaN."""
    if datatype == "BYTES":
        flat = np.array(data, object).reshape(-1).tolist() if data else []
        return texts(flat, shape)
    return np.array(data, NUMPY_OF[datatype]).reshape(shape)


def texts(elements: Sequence[str], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def values(datatype: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Of all of the datatype's range, its ends among them; finite."""
    generator = np.random.default_rng(seed)
    size = int(np.prod(shape))
    if datatype == "BYTES":
        return texts([f"{'é' * (i % 3)}{generator.integers(1 << 30):x}"[: 4 * (i % 4)] for i in range(size)], shape)
    dtype = NUMPY_OF[datatype]
    if datatype == "BF16":
        return (generator.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind == "f":
        array = generator.standard_normal(size).astype(dtype)
    else:
        array = generator.integers(limits.min, limits.max, size, dtype, endpoint=True)
    array[:2] = [limits.min, limits.max][: min(size, 2)]
    return array.reshape(shape)


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    """Names, shapes, types, and every bit."""
    return found.keys() == expected.keys() and all(
        found[name].shape == array.shape
        and found[name].dtype == array.dtype
        and to_bytes(found[name]) == to_bytes(array)
        for name, array in expected.items()
    )
