"""Requests that are wrong in every way, from a seed: valid ones changed a little, any bytes, and broken framing.

Most start from a request that a model takes, so that they get past the first check, and a change is of one value more
often than of several. Plain `random`, not strategies: what a change costs is what bounds how many are tried.
"""

import base64
import io
import json
import struct
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

LENGTH = b"inference-header-content-length"


class Asked(NamedTuple):
    """One request as a frontend has it. `kind` is that of a Route."""

    kind: str
    model: str
    headers: dict[bytes, bytes]
    query: bytes
    body: bytes


class Framed(NamedTuple):
    """What is sent on one connection. `whole`: its framing is right, so that the connection is good for more."""

    sent: bytes
    whole: bool


INPUTS: dict[str, list[dict[str, Any]]] = {
    "rows": [{"name": "x", "shape": [1, 4], "datatype": "UINT8", "data": [1, 2, 3, 4]}],
    "flags": [{"name": "x", "shape": [1, 3], "datatype": "BOOL", "data": [True, False, True]}],
    "pair": [
        {"name": "a", "shape": [2, 2], "datatype": "FP16", "data": [[1.5, None], [0, 1e9]]},
        {"name": "b", "shape": [2, 3], "datatype": "INT8", "data": [1, 2, 3, -4, 5, 6]},
    ],
    "ragged": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]]}],
    "words": [{"name": "x", "shape": [2, 2], "datatype": "BYTES", "data": [["é", ""], ["a", "b"]]}],
    "matrix": [
        {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [[1, 2]]},
        {"name": "s", "shape": [], "datatype": "INT64", "data": [7]},
    ],
    "empty": [{"name": "x", "shape": [3, 0], "datatype": "INT32", "data": []}],
    "picture": [{"name": "x", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [9] * 192}],
}
# Rows of words are two strings of one byte, each behind its length.
BLOBS = {
    "rows": [b"\1\2\3\4"],
    "flags": [b"\1\0\1"],
    "pair": [bytes(8), bytes(6)],
    "ragged": [bytes(24)],
    "words": [struct.pack("<I1s", 1, b"a") * 4],
    "matrix": [bytes(16), bytes(8)],
    "empty": [b""],
    "picture": [bytes(192)],
}
_OUTPUT_OF = {"rows": "y", "flags": "y", "pair": "a", "picture": "y"}  # of the others x

_PARAMETERS = ["binary_data_size", "binary_data", "binary_data_output", "classification", "priority", "timeout"]
_KEYS = ["inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data", *_PARAMETERS]
_KEYS += ["instances", "b64", "examples", "context", "signature_name"]
_SCALARS: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 4, 255, 256, 2**31, 2**53, 2**62, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30),
    *(0.5, -0.0, 1e300, 1e-300, float("nan"), float("inf")),
    *("", "x", "y", "a", "UINT8", "FP16", "BF16", "BYTES", "7", "\ud800", "\0", "é" * 40),
]


def json_value(random: Random, depth: int = 3) -> Any:
    match random.randrange(6 if depth else 4):
        case 4:
            return [json_value(random, depth - 1) for _ in range(random.randrange(4))]
        case 5:
            return {random.choice(_KEYS): json_value(random, depth - 1) for _ in range(random.randrange(3))}
    return random.choice(_SCALARS)


def changed(random: Random, value: Any) -> bytes:
    """`value` as JSON, after up to three of its parts are replaced, taken out, given twice, or put beside others."""
    value = json.loads(json.dumps(value))
    for _ in range(random.choice([0, 1, 1, 1, 1, 2, 3])):
        _change(random, value)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    return damaged(random, text) if random.random() < 0.1 else text


def _change(random: Random, value: Any) -> None:
    places = [place for place in _places(value) if random.random() < 0.9 or place[1] != 0]
    if not places:
        return
    container, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del container[key]
        case 1 if isinstance(container, list):
            container.insert(key, json.loads(json.dumps(container[key])))
        case 1 | 2 if isinstance(container, dict):
            container[random.choice(_KEYS)] = json_value(random)
        case 3:
            container[key] = [container[key]]
        case _:
            container[key] = json_value(random)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside `value`; of a long list only the first few."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 4))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def damaged(random: Random, start: bytes) -> bytes:
    """Some bytes changed, a piece cut out or doubled, or the end missing."""
    data = bytearray(start)
    for _ in range(random.choice([0, 1, 1, 2, 4, 8])):
        if data:  # most of what matters in a file is at its front
            data[random.randrange(min(len(data), random.choice([16, 80, 10**6])))] = random.randrange(256)
    begin = random.randrange(len(data) + 1)
    end = min(len(data), begin + random.randrange(40))
    match random.randrange(6):
        case 0:
            del data[begin:end]
        case 1:
            data[begin:begin] = data[begin:end]
        case 2:
            del data[begin:]
    return bytes(data)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def infer_json(random: Random, model: str) -> Asked:
    request: dict[str, Any] = {"inputs": INPUTS[model]}
    if random.random() < 0.4:
        parameters = {"binary_data_output": True, "timeout": 10**6, "priority": 2}
        asked = {"name": _OUTPUT_OF.get(model, "x"), "parameters": {"binary_data": False, "classification": 2}}
        request |= {"id": "i", "parameters": parameters, "outputs": [asked]}
    if random.random() < 0.1:
        request = {"inputs": [x | {"shape": [0, *x["shape"][1:]], "data": []} for x in INPUTS[model]]} | request
    return Asked("infer", model, _now_and_then(random), b"", changed(random, request))


def infer_binary(random: Random, model: str) -> Asked:
    inputs = [
        {key: value for key, value in given.items() if key != "data"} | {"parameters": {"binary_data_size": len(blob)}}
        for given, blob in zip(INPUTS[model], BLOBS[model], strict=True)
    ]
    text, blobs = changed(random, {"inputs": inputs, "outputs": []}), b"".join(BLOBS[model])
    if random.random() < 0.3:
        blobs = damaged(random, blobs)
    length = len(text) + random.choice([0] * 8 + [-1, 1, 3])
    return Asked("infer", model, _now_and_then(random) | {LENGTH: b"%d" % length}, b"", text + blobs)


def predict_json(random: Random, model: str) -> Asked:
    data = INPUTS[model][0]["data"]
    instances = data if data and isinstance(data[0], list) else [data]
    if model == "picture" and random.random() < 0.5:
        instances = [{"b64": base64.b64encode(picture).decode()} for picture in PICTURES[:2]]
    headers = _now_and_then(random) | {b"content-type": b"application/json"}
    return Asked("predict", model, headers, random.choice(_QUERIES), changed(random, {"instances": instances}))


def predict_image(random: Random, model: str) -> Asked:
    headers = _now_and_then(random) | {b"content-type": random.choice([b"", b"image/png", b"image/*", b"text/plain"])}
    return Asked("predict", model, headers, random.choice(_QUERIES), damaged(random, random.choice(PICTURES)))


def predict_form(random: Random, model: str) -> Asked:
    """RFC 7578, with boundary `x`."""
    head = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\nContent-Type: %s\r\n\r\n%s\r\n'
    kinds = [b"image/png", b"application/octet-stream", b"text/plain", b""]
    contents = [*PICTURES, *BLOBS.get(model, [b""]), b"", b"\r\n--x"]
    parts = [head % (random.choice(kinds), random.choice(contents)) for _ in range(random.randrange(4))]
    body = b"".join(parts) + b"--x--\r\n"
    boundary = random.choice([b"x"] * 8 + [b"", b'"x', b"y", b"x" * 300])
    headers = _now_and_then(random) | {b"content-type": b"multipart/form-data; boundary=" + boundary}
    return Asked("predict", model, headers, b"", damaged(random, body) if random.random() < 0.7 else body)


def v1_json(random: Random, model: str) -> Asked:
    columns = {given["name"]: given["data"] for given in INPUTS[model]}
    rows = [{name: data[i] for name, data in columns.items()} for i in range(min(map(len, columns.values())))]
    first = next(iter(columns.values()))
    if model == "picture":
        image = {"b64": base64.b64encode(random.choice(PICTURES)).decode()}
        first, rows = random.choice([image, [image], [image, [9] * 192]]), [{"x": image}]
    verb = random.choice(["predict", "predict", "classify", "regress"])
    request: dict[str, Any] = random.choice([{"instances": first}, {"instances": rows}, {"inputs": columns}])
    if verb != "predict":
        request = {"examples": rows, "context": {}}
    if random.random() < 0.2:
        request["signature_name"] = random.choice(["serving_default", f"tensorflow/serving/{verb}", ""])
    return Asked(f"v1:{verb}", model, _now_and_then(random), b"", changed(random, request))


def any_bytes(random: Random, model: str) -> Asked:
    body = random.choice([random.randbytes(random.randrange(40)), *BLOBS[model], b"{}", b"[]", b"null", *PICTURES[:1]])
    return Asked(random.choice(["predict", "infer"]), model, _headers(random), random.choice(_QUERIES), body)


def compressed(random: Random, asked: Asked) -> Asked:
    encoding, window = random.choice([(b"gzip", 31), (b"deflate", 15), (b"GZIP ", 31), (b"deflate", -15)])
    compressor = zlib.compressobj(1, wbits=window)
    body = compressor.compress(asked.body) + compressor.flush()
    body = damaged(random, body) if random.random() < 0.3 else body
    return asked._replace(headers=asked.headers | {b"content-encoding": encoding}, body=body)


def _picture(file_format: str, mode: str) -> bytes:
    file = io.BytesIO()
    pixels = np.arange(24 * 20 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 24, 3)
    Image.fromarray(pixels).convert(mode).save(file, file_format)
    return file.getvalue()


PICTURES = [
    _picture(file_format, mode)
    for file_format, modes in {
        "PNG": ["RGB", "P", "LA", "I;16", "1"],
        "JPEG": ["RGB", "CMYK"],
        "GIF": ["P"],
        "BMP": ["RGB"],
        "WEBP": ["RGB"],
    }.items()
    for mode in modes
]

_QUERIES = [b""] * 6 + [b"top_k=1", b"top_k=-1", b"top_k=0", b"top_k=%FF", b"a=b&top_k=", b"\xff=&;"]
_VALUES: dict[bytes, Sequence[bytes]] = {
    b"content-type": [
        *(b"", b"application/json", b"application/octet-stream", b"image/png", b"text/plain", b";"),
        *(b"multipart/form-data", b"multipart/form-data; boundary=x", b"application/json; charset=utf-16"),
    ],
    LENGTH: [b"0", b"1", b"2", b"-1", b"+1", b"1e3", b"00", b"9" * 400, b" 1", b"\xb2", b"\xd9\xa1", b""],
    b"content-encoding": [b"gzip", b"deflate", b"identity", b"br", b"gzip, gzip", b"", b"\xff"],
    b"accept": [
        b"*/*",
        b"application/json",
        b"text/csv",
        b"application/x-ndjson",
        b"text/html;q=x",
        b";",
        b",",
        b"\xff",
    ],
    b"accept-encoding": [b"gzip", b"deflate;q=0", b"*;q=nan", b"gzip;q=", b"\xff"],
    b"x-request-id": [b"", b"a", b"a" * 200, b"\xff", b"a b"],
}


def _headers(random: Random) -> dict[bytes, bytes]:
    names = [name for name in _VALUES if random.random() < 0.4]
    return {name: random.choice(_VALUES[name]) for name in names}


def _now_and_then(random: Random) -> dict[bytes, bytes]:
    return _headers(random) if random.random() < 0.05 else {}


# ── on the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────


def framed(random: Random, model: str, asked: Asked) -> Framed:
    """The request for `model`, sent in a way that is right or not."""
    paths = [f"/v2/models/{model}/infer", f"/v2/models/{model}/versions/1/infer"]
    path = f"/predict/{model}" if asked.kind == "predict" else random.choice(paths)
    body, chunked = asked.body, b"transfer-encoding: chunked"
    length = b"content-length: %d" % len(body)
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    ways = {
        "whole": ([length], body),
        "chunked": ([chunked], chunks),
        "expect": ([length, b"expect: " + random.choice([b"100-continue", b"x"])], body),
        "short": ([b"content-length: %d" % (len(body) + 5)], body),
        "both": ([length, chunked], chunks),
        "broken chunk": ([chunked], random.choice([b"xyz\r\n", b"-1\r\n", b"\r\n"]) + body),
        "bad length": ([b"content-length: " + random.choice([b"-1", b"1e2", b"", b"9" * 30])], body),
    }
    way = random.choice(["whole", "whole", "chunked", *ways])
    more, payload = ways[way]
    headers = [b"%s: %s" % header for header in asked.headers.items()]
    head = b"\r\n".join([f"POST {path} HTTP/1.1".encode(), b"host: test", *headers, *more, b"", b""])
    return Framed(head + payload, way in ("whole", "chunked"))


_PATHS = [
    *("/", "/v2", "/v2/", "/v2/models", "/v2/models/stats", "/v2/logging", "/v2/trace/setting", "/v2/repository/index"),
    *("/v2/repository/r/index", "/v2/repository/models/two/load", "/v2/repository/r/models/two/unload", "/metrics"),
    *(
        f"/v2/models/two{more}"
        for more in ("", "/config", "/stats", "/ready", "/versions/1", "/infer", "/trace/setting")
    ),
    *("/v2/systemsharedmemory/region/a/register", "/v2/cudasharedmemory/status", "/docs", "/docs/openapi.json"),
    *("/health/live", "/predict/two", "/v1/models", "/v1/models/two", "/v1/models/two:predict"),
]
_ODD = ["%ff", "%00", "%2F", "%2e%2e", "/", "//", "..", "?a=%ff", "?", "#x", "%", "%zz", "é", "\x7f", ":predict", "*"]
_METHODS = ["GET", "GET", "POST", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "UNHEARD"]
_ODD_BODIES = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"[" * 9000,
    b"\xff",
    b'{"ready":7}',
    b'{"log_info":1}',
    b'{"trace_level":[]}',
]
_ODD_HEADERS = [
    *(b"accept: text/html", b"accept: \xff", b"content-type: application/json", b"content-type: multipart/form-data"),
    *(
        b"content-type: application/x-www-form-urlencoded",
        b"content-type: \xff",
        b"cookie: a=\xff",
        b"range: bytes=0-5",
    ),
    *(b"content-encoding: gzip", b"accept-encoding: gzip", b"origin: http://x", b"if-none-match: *", b"host: \xff"),
]


def any_path(random: Random) -> bytes:
    """A request to any of the paths, with odd pieces put into it."""
    path = random.choice(_PATHS)
    for _ in range(random.randrange(3)):
        at = random.randrange(1, len(path) + 1)
        path = path[:at] + random.choice(_ODD) + path[at:]
    body = random.choice(_ODD_BODIES)
    headers = [b"host: test", b"content-length: %d" % len(body), *random.sample(_ODD_HEADERS, random.randrange(3))]
    line = f"{random.choice(_METHODS)} {path} HTTP/1.1".encode()
    return b"\r\n".join([line, *headers, b"", b""]) + body
