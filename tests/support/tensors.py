"""Tensors of every datatype as the protocol carries them, for tests: arrays to JSON and bytes, and back.

BF16 is its bits in uint16; BYTES are text in object arrays.
"""

import json
import struct
from typing import Any

import httpx
import numpy as np

from models.manifest import NUMPY_OF

LENGTH = "inference-header-content-length"


def values(datatype: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Small enough to be doubled; BF16 is never NaN."""
    if datatype == "BYTES":
        texts = [
            f"{generator.integers(1 << 40):x}" * int(generator.integers(0, 4)) + "é" for _ in range(np.prod(shape))
        ]
        array = np.empty(len(texts), object)
        array[:] = texts
        return array.reshape(shape)
    dtype = NUMPY_OF[datatype]
    if datatype == "BF16":
        return (generator.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min // 2, limits.max // 2, shape, dtype)


def to_bytes(array: np.ndarray) -> bytes:
    if array.dtype.kind != "O":
        return array.tobytes()
    encoded = [text.encode() for text in array.reshape(-1)]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def from_bytes(datatype: str, shape: list[int], data: bytes) -> np.ndarray:
    if datatype != "BYTES":
        return np.frombuffer(data, NUMPY_OF[datatype]).reshape(shape)
    texts = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def binary(http: httpx.Client, model: str, inputs: dict[str, tuple[str, np.ndarray]]) -> httpx.Response:
    """All inputs and outputs binary."""
    given, blobs = [], []
    for name, (datatype, array) in inputs.items():
        blobs.append(to_bytes(array))
        parameters = {"binary_data_size": len(blobs[-1])}
        given.append({"name": name, "shape": array.shape, "datatype": datatype, "parameters": parameters})
    text = json.dumps({"inputs": given, "parameters": {"binary_data_output": True}}).encode()
    body = b"".join([text, *blobs])
    return http.post(f"/v2/models/{model}/infer", content=body, headers={LENGTH: str(len(text))})


def binary_outputs(answer: httpx.Response) -> dict[str, np.ndarray]:
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    outputs, rest = {}, answer.content[length:]
    for output in json.loads(answer.content[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = from_bytes(output["datatype"], output["shape"], rest[:size])
        rest = rest[size:]
    assert not rest
    return outputs


def in_json(http: httpx.Client, model: str, inputs: dict[str, tuple[str, np.ndarray]], **more: Any) -> httpx.Response:
    """`data` nested as the array is, so flat only where it has one axis."""
    given = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": datatype,
            "data": array.tolist() if array.ndim else [array[()]],
        }
        for name, (datatype, array) in inputs.items()
    ]
    body = json.dumps({"inputs": given, **more}, default=lambda number: number.item())
    return http.post(f"/v2/models/{model}/infer", content=body)


def json_outputs(answer: httpx.Response) -> dict[str, np.ndarray]:
    assert answer.status_code == 200, answer.text
    outputs = {}
    for output in answer.json()["outputs"]:
        dtype = object if output["datatype"] == "BYTES" else NUMPY_OF[output["datatype"]]
        outputs[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
    return outputs


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Element by element, shapes and types too."""
    return found.keys() == expected.keys() and all(
        found[name].shape == array.shape and found[name].dtype == array.dtype and bool((found[name] == array).all())
        for name, array in expected.items()
    )
