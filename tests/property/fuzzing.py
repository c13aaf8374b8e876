"""Strategies for requests that are wrong in every way: any bytes, valid ones changed a little, and broken framing.

A mutation starts from a request that a model takes, so that most get past the first check.
"""

import base64
import io
import json
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from PIL import Image

LENGTH = b"inference-header-content-length"

_INPUTS: dict[str, list[dict[str, Any]]] = {
    "rows": [{"name": "x", "shape": [1, 4], "datatype": "UINT8", "data": [1, 2, 3, 4]}],
    "flags": [{"name": "x", "shape": [1, 3], "datatype": "BOOL", "data": [True, False, True]}],
    "pair": [
        {"name": "a", "shape": [2, 2], "datatype": "FP16", "data": [[1.5, None], [0, 1e9]]},
        {"name": "b", "shape": [2, 3], "datatype": "INT8", "data": [1, 2, 3, -4, 5, 6]},
    ],
    "ragged": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]]}],
    "words": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["é", ""]}],
    "matrix": [
        {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [[1, 2]]},
        {"name": "s", "shape": [], "datatype": "INT64", "data": [7]},
    ],
    "empty": [{"name": "x", "shape": [3, 0], "datatype": "INT32", "data": []}],
    "picture": [{"name": "x", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [9] * 192}],
}
_SIZED = {"shape": [1, 4], "parameters": {"binary_data_size": 4}, "datatype": "UINT8", "name": "x"}

_PARAMETERS = ["binary_data_size", "binary_data", "binary_data_output", "classification", "priority", "timeout"]
_KEYS = [
    "inputs",
    "outputs",
    "parameters",
    "id",
    "name",
    "shape",
    "datatype",
    "data",
    *_PARAMETERS,
    "instances",
    "examples",
    "b64",
]

MODEL_NAMES = st.sampled_from([*_INPUTS, "absent"])
QUERIES = st.sampled_from([b"", b"", b"top_k=1", b"top_k=-1", b"top_k=0", b"top_k=%FF", b"a=b&top_k=", b"\xff=&;"])

_numbers = st.integers(-3, 5) | st.sampled_from([2**31, 2**53, 2**62, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30])
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    _numbers,
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.sampled_from(["x", "y", "a", "UINT8", "FP16", "BF16", "BYTES", "", "\ud800", "\0"]),
)
JSON_VALUES = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=12,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside `value`."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


@st.composite
def _changed(draw: st.DrawFn, start: Callable[[], Any]) -> str:
    """`start()` as JSON, after up to three of its parts are replaced, taken out, given twice or renamed."""
    value = start()
    for _ in range(draw(st.integers(0, 3))):
        places = _places(value)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "remove", "double", "add"])):
            case "replace":
                container[key] = draw(JSON_VALUES)
            case "remove":
                del container[key]
            case "double" if isinstance(container, list):
                container.append(container[key])
            case _ if isinstance(container, dict):
                container[draw(st.sampled_from(_KEYS))] = draw(JSON_VALUES)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 4)) == 0:  # broken syntax
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.sampled_from(["", ",", "{", "]", '"', "\\", "NaN", "\x00", "1e999"])) + text[cut:]
        text = text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text
    return text


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _request(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    whole = {"inputs": inputs, "id": "i", "parameters": {"binary_data_output": True, "timeout": 1000}}
    return _copy(whole | {"outputs": [{"name": "y", "parameters": {"binary_data": True, "classification": 1}}]})


def _plain(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    return _copy({"inputs": inputs})


INFER_TEXTS = st.sampled_from([*_INPUTS.values(), [_SIZED]]).flatmap(
    lambda inputs: _changed(lambda: _plain(inputs)) | _changed(lambda: _request(inputs))
)
PREDICT_TEXTS = st.sampled_from(list(_INPUTS.values())).flatmap(
    lambda inputs: _changed(lambda: _copy({"instances": [inputs[0].get("data", [])]}))
)


def _picture(file_format: str, mode: str) -> bytes:
    file = io.BytesIO()
    pixels = np.arange(24 * 20 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 24, 3)
    Image.fromarray(pixels).convert(mode).save(file, file_format)
    return file.getvalue()


_PICTURES = [
    _picture(file_format, mode)
    for file_format, mode in [
        ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
        ("GIF", "P"), ("BMP", "RGB"), ("WEBP", "RGB"),
    ]
]  # fmt: skip


@st.composite
def _damaged(draw: st.DrawFn, starts: list[bytes]) -> bytes:
    """One of `starts` with up to eight bytes changed, a piece cut out or doubled, or its end missing."""
    data = bytearray(draw(st.sampled_from(starts)))
    for _ in range(draw(st.integers(0, 8))):
        # Most of what matters in a file is at its front.
        data[draw(st.integers(0, min(len(data), 80) - 1) | st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    begin = draw(st.integers(0, len(data)))
    piece = data[begin : begin + draw(st.integers(0, 40))]
    match draw(st.sampled_from(["keep", "keep", "cut", "double", "end"])):
        case "cut":
            del data[begin : begin + len(piece)]
        case "double":
            data[begin:begin] = piece
        case "end":
            del data[begin:]
    return bytes(data)


IMAGES = _damaged(_PICTURES)


def _form(parts: list[bytes]) -> bytes:
    """With the boundary x."""
    head = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(head + part + b"\r\n" for part in parts) + b"--x--\r\n"


FORMS = st.lists(st.sampled_from(_PICTURES) | IMAGES, max_size=5).map(_form) | _damaged(
    [_form(_PICTURES[:1]), _form([b"\1\2\3\4", b"\5\6\7\x08"])]
)

_B64 = {"b64": base64.b64encode(_PICTURES[0]).decode()}


def _by_row(inputs: list[dict[str, Any]]) -> list[Any]:
    """Objects with a value for each input; of nested data the first items."""
    columns = {given["name"]: given["data"] for given in inputs}
    return [{name: data[i] for name, data in columns.items() if i < len(data)} for i in range(2)]


def _v1(model: str, inputs: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """Verb, model and a request that fits, or nearly so."""
    columns = {given["name"]: given["data"] for given in inputs}
    requests: list[dict[str, Any]] = [
        {"instances": inputs[0]["data"]},
        {"instances": _by_row(inputs), "signature_name": "serving_default"},
        {"inputs": columns},
        {"inputs": inputs[0]["data"]},
    ]
    if model == "picture":
        requests += [{"instances": [_B64, {"x": _B64}]}, {"inputs": _B64}, {"inputs": {"x": [_B64, [9] * 192]}}]
    examples = [{"examples": _by_row(inputs)[:1], "context": {}}, {"examples": [{"x": _B64}, {"x": [9] * 192}]}]
    return [
        *(("v1:predict", model, request) for request in requests),
        *((verb, model, request) for verb in ("v1:classify", "v1:regress") for request in examples),
    ]


V1_REQUESTS = st.sampled_from([entry for model, inputs in _INPUTS.items() for entry in _v1(model, inputs)]).flatmap(
    lambda entry: st.tuples(st.just(entry[0]), st.just(entry[1]), _changed(lambda: _copy(entry[2])))
)
"""Verb, model and body."""

_BINARY = json.dumps({"inputs": [_SIZED]}).encode()
_WHOLE = [
    _BINARY + b"\1\2\3\4",
    zlib.compress(_BINARY),
    b"\1\2\3\4",
    *(json.dumps({"inputs": inputs}).encode() for inputs in _INPUTS.values()),
]
BODIES = st.one_of(st.binary(max_size=300), _damaged(_WHOLE), st.sampled_from([b"", b"{}", b"[]", b"null", *_WHOLE]))

_any_value = st.binary(max_size=20).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b""))
_VALUES: dict[bytes, st.SearchStrategy[bytes]] = {
    b"content-type": st.sampled_from(
        [b"", b"application/json", b"application/octet-stream", b"image/png", b"text/plain", b"multipart/form-data",
         b"multipart/form-data; boundary=x", b"application/json; charset=utf-16", b";", b"application/x-npy"]
    ) | _any_value,
    LENGTH: st.sampled_from(
        [b"0", b"1", b"%d" % len(_BINARY), b"-1", b"+1", b"1e3", b"00", b"9" * 400, b" 1", b"\xb2", b"\xd9\xa1"]
    ) | _any_value,
    b"content-encoding": st.sampled_from([b"gzip", b"deflate", b"identity", b"br", b"gzip, gzip", b""]) | _any_value,
    b"accept": st.sampled_from([b"*/*", b"application/octet-stream", b"text/html;q=x", b";", b","]) | _any_value,
    b"accept-encoding": st.sampled_from([b"gzip", b"deflate;q=0", b"*;q=nan", b"gzip;q="]) | _any_value,
    b"x-request-id": _any_value,
}  # fmt: skip
HEADERS = st.fixed_dictionaries({}, optional=_VALUES)


class Framing(NamedTuple):
    """What is sent on one connection. `whole`: its framing is right, so that the connection is good for more."""

    sent: bytes
    whole: bool


_SERVED = {"scores": "picture", "two": "pair", "ragged": "ragged", "words": "words", "matrix": "matrix"}


@st.composite
def framings(draw: st.DrawFn) -> Framing:
    model = draw(st.sampled_from(list(_SERVED)))
    path = draw(
        st.sampled_from([f"/predict/{model}", f"/v2/models/{model}/infer", f"/v2/models/{model}/versions/1/infer"])
    )
    inputs = _INPUTS[_SERVED[model]]
    body = draw(BODIES | IMAGES | _changed(lambda: _plain(inputs)).map(lambda text: text.encode("utf-8", "replace")))
    headers = [b"%s: %s" % header for header in draw(HEADERS).items()]
    kind = draw(st.sampled_from(["whole", "whole", "chunked", "expect", "short", "both", "broken chunk", "bad length"]))
    line = f"POST {path} HTTP/1.1".encode()
    length = b"content-length: %d" % len(body)
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    match kind:
        case "whole":
            more, payload = [length], body
        case "chunked":
            more, payload = [b"transfer-encoding: chunked"], chunks
        case "expect":
            more, payload = [length, b"expect: " + draw(st.sampled_from([b"100-continue", b"x"]))], body
        case "short":
            more, payload = [b"content-length: %d" % (len(body) + 5)], body
        case "both":
            more, payload = [length, b"transfer-encoding: chunked"], chunks
        case "broken chunk":
            more, payload = [b"transfer-encoding: chunked"], b"xyz\r\n" + body
        case _:
            more, payload = [b"content-length: " + draw(st.sampled_from([b"-1", b"1e2", b"", b"9" * 30]))], body
    head = b"\r\n".join([line, b"host: test", *headers, *more, b"", b""])
    return Framing(head + payload, kind in ("whole", "chunked"))
