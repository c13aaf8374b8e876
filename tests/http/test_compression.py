"""Compressed bodies both ways: which encodings, the length in the header, and what bounds them."""

import gzip
import json
import time
import zlib
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from tests.http.conftest import Serve
from tests.support.server import Server
from tests.support.wire import Wire

INFER = "/v2/models/echo/infer"
LENGTH = "inference-header-content-length"
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}
UNPACK: dict[str | None, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}


def rows(n: int) -> np.ndarray:
    return np.arange(4 * n, dtype=np.uint32).astype(np.uint8).reshape(n, 4)


def binary_body(array: np.ndarray) -> tuple[bytes, int]:
    """A request for everything in binary, and how long its JSON is."""
    tensor = {"name": "x", "shape": list(array.shape), "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + array.tobytes(), len(head)


def raw(answer: httpx.Response) -> bytes:
    """The body as it was sent."""
    return b"".join(answer.iter_raw())


@pytest.mark.parametrize("n", [1, 400, 1000])
@pytest.mark.parametrize("wanted", ["gzip", "deflate", "identity", None])
@pytest.mark.parametrize("sent", ["gzip", "deflate", "identity", None])
def test_every_pair_of_encodings_carries_the_same_tensors(
    http: httpx.Client, sent: str | None, wanted: str | None, n: int
) -> None:
    body, length = binary_body(rows(n))
    headers = {LENGTH: str(length), "accept-encoding": wanted or ""}
    if sent:
        body, headers = PACK[sent](body), {**headers, "content-encoding": sent}
    with http.stream("POST", INFER, content=body, headers=headers) as answer:
        whole = raw(answer)
    assert answer.status_code == 200, whole
    assert int(answer.headers["content-length"]) == len(whole)
    encoding = answer.headers.get("content-encoding")
    assert encoding == (wanted if wanted in ("gzip", "deflate") and n > 1 else None)
    plain = UNPACK[encoding](whole)
    head = json.loads(plain[: int(answer.headers[LENGTH])])
    assert [output["name"] for output in head["outputs"]] == ["same", "half"]
    assert np.array_equal(np.frombuffer(plain[int(answer.headers[LENGTH]) :][: 4 * n], np.uint8), rows(n).ravel())


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip, deflate", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("gzip;q=0", None),
        ("br, zstd", None),
        ("*", "gzip"),
        ("*;q=0.1, gzip;q=0", "deflate"),
        ("GZIP", "gzip"),
        (";;,q=1,", None),
    ],
)
def test_the_answer_has_the_encoding_that_is_wanted_most(http: httpx.Client, accept: str, encoding: str | None) -> None:
    tensor = {"name": "x", "shape": [400, 4], "datatype": "UINT8", "data": rows(400).tolist()}
    with http.stream("POST", INFER, json={"inputs": [tensor]}, headers={"accept-encoding": accept}) as answer:
        whole = raw(answer)
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers.get("vary") == ("accept-encoding" if encoding else None)
    assert json.loads(UNPACK[encoding](whole))["outputs"][0]["data"] == rows(400).ravel().tolist()


def test_images_and_json_of_predict_may_be_compressed(http: httpx.Client) -> None:
    body = gzip.compress(b'{"instances": [[1, 2, 3, 4]]}')
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    answer = http.post("/predict/echo", content=body, headers=headers)
    assert answer.json()["predictions"][0]["same"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("encoding", "body", "said"),
    [
        ("br", b"x", ["Unsupported content-encoding", "'br'", "gzip, deflate or identity"]),
        ("gzip, gzip", b"x", ["Unsupported content-encoding"]),
        ("gzip", b"{}{}", ["not valid gzip"]),
        ("gzip", b"", ["middle of its gzip"]),
        ("gzip", gzip.compress(b"{}")[:-1], ["middle of its gzip"]),
        ("gzip", gzip.compress(b"{}") + b"more", ["4 bytes follow"]),
        ("gzip", gzip.compress(b"{}") * 2, ["bytes follow"]),
        ("deflate", gzip.compress(b"{}"), ["not valid deflate"]),
        ("deflate", zlib.compress(b"{}")[:-2], ["middle of its deflate"]),
        ("gzip", gzip.compress(b"{" + b" " * 100_000), ["not valid JSON"]),
    ],
)
def test_what_cannot_be_decompressed_is_refused(
    http: httpx.Client, server: Server, encoding: str, body: bytes, said: list[str]
) -> None:
    answer = http.post(INFER, content=body, headers={"content-encoding": encoding})
    assert answer.status_code == 400, answer.text
    assert all(words in answer.json()["error"] for words in said), answer.text
    server.assert_settled()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_is_bounded_by_what_it_becomes(serve: Serve, encoding: str) -> None:
    server = serve("--server.max-body-bytes", "1000000")
    fits, longer, bomb = (PACK[encoding](b"1" * 4 * n) for n in (200, 250_001, 100_000_000))
    headers = {"content-encoding": encoding, "content-type": "application/octet-stream"}
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        assert http.post(INFER, content=fits, headers=headers).status_code == 200
        for body in (longer, bomb):
            answer = http.post(INFER, content=body, headers=headers)
            assert answer.status_code == 413
            assert "1000000 bytes once decompressed" in answer.json()["error"]
        assert http.post(INFER, content=fits, headers=headers).status_code == 200
    server.assert_settled()


def test_a_client_that_leaves_while_its_answer_is_compressed_holds_nothing(http: httpx.Client, server: Server) -> None:
    tensor = {"name": "x", "shape": [1000, 4], "datatype": "UINT8", "data": rows(1000).tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    for i in range(30):
        with Wire(server) as wire:
            wire.post(INFER, body, "Accept-Encoding: gzip")
            time.sleep(i / 5000)  # from before it is committed to after it is answered
    server.assert_settled()
    assert http.post(INFER, content=body).status_code == 200
