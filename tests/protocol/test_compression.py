"""gzip and deflate, of requests and of answers, in every pair: C3, RFC 9110 §8.4. deflate is the zlib container."""

import gzip
import json
import time
import zlib
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from tests.protocol.conftest import Connect
from tests.protocol.exchange import Given, Parts, infer_path, outputs, parts, refusal, same, values
from tests.protocol.wire import Answer

FLOATS = infer_path("floats")
X = values("FP32", (600, 4))  # large enough that a server finds an answer worth compressing
ENCODERS: dict[str, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}
DECODERS: dict[str, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}


def exchange(connect: Connect, sent: Parts, there: str, back: str | None, *headers: str) -> Answer:
    """The answer, decompressed; by hand, since clients decompress what they did not ask for too."""
    more = [f"Inference-Header-Content-Length: {len(sent.text)}", f"Content-Encoding: {there}", *headers]
    more += [] if back is None else [f"Accept-Encoding: {back}"]
    connection = connect()
    connection.post(FLOATS, ENCODERS[there](sent.body), *more)
    answer = connection.answer()
    encoding = answer.headers.get("content-encoding", "identity")
    assert encoding in (back or "identity", "identity")
    return Answer(answer.status, answer.headers, DECODERS[encoding](answer.content))


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("back", [None, *ENCODERS])
@pytest.mark.parametrize("there", ENCODERS)
def test_every_pair(connect: Connect, there: str, back: str | None, binary: bool) -> None:
    """The header of the length is that of the JSON before it was compressed, both ways."""
    sent = parts([Given("x", "FP32", X, binary)], parameters={"binary_data_output": binary})
    answer = exchange(connect, sent, there, back)
    assert same(outputs(answer).arrays, {"y": X})


@pytest.mark.parametrize("back", ["gzip", "deflate"])
def test_a_large_answer_is_compressed_for_who_asks(connect: Connect, back: str) -> None:
    sent = parts([Given("x", "FP32", np.zeros((600, 4), np.float32), True)])
    answer = exchange(connect, sent, "identity", back)
    assert answer.headers["content-encoding"] == back
    assert int(answer.headers["content-length"]) < len(answer.content)
    assert same(outputs(answer).arrays, {"y": np.zeros((600, 4), np.float32)})


@pytest.mark.parametrize("accepted", [None, "", "identity", "br", "gzip;q=0", "gzip;q=0, deflate;q=0.0", "zstd, *;q=0"])
def test_an_answer_is_not_compressed_for_who_does_not_ask(connect: Connect, accepted: str | None) -> None:
    connection = connect()
    sent = parts([Given("x", "FP32", X)])
    connection.post(FLOATS, sent.text, *([] if accepted is None else [f"Accept-Encoding: {accepted}"]))
    answer = connection.answer()
    assert answer.headers.get("content-encoding", "identity") == "identity"
    assert same(outputs(answer).arrays, {"y": X})


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzipped", "gzip, gzip", "gzip, br", "UTF-8"])
def test_an_encoding_that_the_server_does_not_know_is_refused(http: httpx.Client, encoding: str) -> None:
    answer = http.post(FLOATS, content=parts([Given("x", "FP32", X)]).text, headers={"content-encoding": encoding})
    assert "Unsupported content-encoding" in refusal(answer)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_the_encodings_case_does_not_matter(http: httpx.Client, name: str) -> None:
    body = ENCODERS[name](parts([Given("x", "FP32", X)]).text)
    answer = http.post(FLOATS, content=body, headers={"content-encoding": name.upper()})
    assert same(outputs(answer).arrays, {"y": X})


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_body_that_is_not_what_it_says_is_refused(http: httpx.Client, name: str) -> None:
    text = parts([Given("x", "FP32", X)]).text
    whole = ENCODERS[name](text)
    broken = bytearray(whole)
    broken[len(broken) // 2] ^= 0xFF
    for body in (text, b"", whole[:-1], whole[: len(whole) // 2], bytes(broken), whole[1:]):
        refusal(http.post(FLOATS, content=body, headers={"content-encoding": name}))


def test_the_header_is_checked_against_the_body_that_it_was(http: httpx.Client) -> None:
    sent = parts([Given("x", "FP32", X, binary=True)])
    body = gzip.compress(sent.body)
    for length in (len(sent.body) + 1, 2**40, len(sent.text) - 1):
        headers = {"inference-header-content-length": f"{length}", "content-encoding": "gzip"}
        refusal(http.post(FLOATS, content=body, headers=headers))


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_body_that_grows_beyond_all_bounds_is_refused_soon(http: httpx.Client, name: str) -> None:
    """256 MiB out of a quarter of one, four times: a server that unpacks them whole needs that much and seconds."""
    compressor = zlib.compressobj(9, wbits=31 if name == "gzip" else 15)
    megabyte = b" " * (1 << 20)
    bomb = b"".join(compressor.compress(megabyte) for _ in range(256)) + compressor.flush()
    assert len(bomb) < 1 << 20
    started = time.monotonic()
    for _ in range(4):
        answer = http.post(FLOATS, content=bomb, headers={"content-encoding": name})
        assert answer.status_code in (400, 413)
        refusal(answer, answer.status_code)
    assert time.monotonic() - started < 10
    assert http.get("/v2/health/live").status_code == 200


def test_an_error_is_json_whatever_was_asked_for(connect: Connect) -> None:
    connection = connect()
    connection.post(FLOATS, gzip.compress(b"{"), "Content-Encoding: gzip", "Accept-Encoding: gzip")
    answer = connection.answer()
    encoding = answer.headers.get("content-encoding", "identity")
    assert json.loads(DECODERS[encoding](answer.content)).keys() == {"error"}
    assert answer.status == 400
