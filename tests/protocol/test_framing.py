"""Bodies that come in pieces, cut, or not as announced, written by hand: RFC 9112 §6, §7, RFC 9110 §10.1.1.

The answer is right or a refusal, and never that of another request. A connection is used again, or closed.
"""

import json

import numpy as np
import pytest

from tests.protocol.conftest import Connect
from tests.protocol.exchange import Given, infer_path, outputs, parts, refusal, same, tensor
from tests.protocol.wire import Connection, head

FLOATS = infer_path("floats")
X = np.array([[1.5, 2, 3, 4]], np.float32)
JSON_BODY = json.dumps({"inputs": [tensor("x", "FP32", [1, 4], X.ravel().tolist())]}).encode()
BINARY = parts([Given("x", "FP32", X, True)], parameters={"binary_data_output": True})
BINARY_HEADER = f"Inference-Header-Content-Length: {len(BINARY.text)}"
CHUNKED = "Transfer-Encoding: chunked"


def echoed(connection: Connection) -> bool:
    return same(outputs(connection.answer()).arrays, {"y": X})


def chunks(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_a_chunked_body_is_taken(connect: Connect, size: int) -> None:
    connection = connect()
    connection.send(head("POST", FLOATS, CHUNKED) + chunks(JSON_BODY, size))
    assert echoed(connection)
    connection.send(head("POST", FLOATS, CHUNKED, BINARY_HEADER) + chunks(BINARY.body, size))
    assert echoed(connection)


def test_chunks_may_have_extensions_and_trailers(connect: Connect) -> None:
    connection = connect()
    framed = b'%x;name="value"\r\n%s\r\n0\r\nTrailer: ignored\r\n\r\n' % (len(JSON_BODY), JSON_BODY)
    connection.send(head("POST", FLOATS, CHUNKED) + framed)
    assert echoed(connection)


def test_a_body_may_come_byte_by_byte(connect: Connect) -> None:
    connection = connect()
    for byte in head("POST", FLOATS, f"Content-Length: {len(JSON_BODY)}") + JSON_BODY:
        connection.send(bytes([byte]))
    assert echoed(connection)


def test_many_requests_sent_at_once_are_answered_in_order(connect: Connect) -> None:
    connection = connect()
    for number in range(20):
        body = json.dumps({"id": f"{number}", "inputs": [tensor("x", "FP32", [1, 4], [number] * 4)]}).encode()
        connection.post(FLOATS, body)
    for number in range(20):
        answer = outputs(connection.answer())
        assert answer.text["id"] == f"{number}"
        assert answer.arrays["y"].tolist() == [[number] * 4]


@pytest.mark.parametrize("missing", [1, 20])
def test_a_body_that_ends_early_is_refused_or_the_connection_closed(connect: Connect, missing: int) -> None:
    connection = connect()
    connection.post(FLOATS, JSON_BODY[:-missing], declared=len(JSON_BODY))
    connection.send_no_more()
    try:
        answer = connection.answer()
    except ConnectionError:
        return
    refusal(answer, answer.status)
    assert 400 <= answer.status < 500


def test_a_chunked_body_that_ends_early_is_refused_or_the_connection_closed(connect: Connect) -> None:
    connection = connect()
    connection.send(head("POST", FLOATS, CHUNKED) + chunks(JSON_BODY, 50)[:-5])
    connection.send_no_more()
    try:
        answer = connection.answer()
    except ConnectionError:
        return
    refusal(answer, answer.status)
    assert 400 <= answer.status < 500


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_content_length_below_the_body_cuts_it(connect: Connect, cut: int) -> None:
    """What is left is no request: it is refused, or the connection ends."""
    connection = connect()
    connection.post(FLOATS, JSON_BODY, declared=len(JSON_BODY) - cut)
    refusal(connection.answer())
    try:
        refusal(connection.answer())
    except (ConnectionError, TimeoutError):
        return


@pytest.mark.parametrize("length", ["-1", "abc", "1e2", "0x10", "+5", "9" * 30, "5, 6", ""])
def test_a_content_length_that_is_none_is_refused_and_the_connection_closed(connect: Connect, length: str) -> None:
    connection = connect()
    connection.send(head("POST", FLOATS, f"Content-Length: {length}") + JSON_BODY)
    answer = connection.answer()
    assert 400 <= answer.status < 500
    refusal(answer, answer.status)
    assert connection.ended()


def test_two_lengths_that_differ_are_refused(connect: Connect) -> None:
    """RFC 9112 §6.3: else two servers in a row see different requests."""
    connection = connect()
    connection.send(head("POST", FLOATS, f"Content-Length: {len(JSON_BODY)}", "Content-Length: 5") + JSON_BODY)
    answer = connection.answer()
    assert 400 <= answer.status < 500


@pytest.mark.parametrize(
    "broken", [b"xyz\r\n", b"-5\r\nabcde\r\n", b"5\r\nabcdefgh\r\n", b"\r\n", b"ffffffffffffffffff\r\n"]
)
def test_broken_chunks_are_refused_or_the_connection_closed(connect: Connect, broken: bytes) -> None:
    connection = connect()
    connection.send(head("POST", FLOATS, CHUNKED) + broken)
    try:
        answer = connection.answer()
    except ConnectionError:
        return
    assert 400 <= answer.status < 500
    assert connection.ended()


def test_expect_100_continue_is_told_to_go_on_before_the_body(connect: Connect) -> None:
    connection = connect()
    connection.send(head("POST", FLOATS, f"Content-Length: {len(JSON_BODY)}", "Expect: 100-continue"))
    assert connection.interim() == 100
    connection.send(JSON_BODY)
    assert echoed(connection)


def test_expect_100_continue_may_be_refused_at_once(connect: Connect) -> None:
    connection = connect()
    connection.send(head("POST", infer_path("absent"), "Content-Length: 100", "Expect: 100-continue"))
    status = connection.interim()
    if status == 100:
        connection.send(b" " * 100)
        status = connection.answer().status
    assert status == 404


def test_a_body_on_a_get_does_not_become_the_next_request(connect: Connect) -> None:
    connection = connect()
    hidden = head("GET", "/v2/models/absent")
    connection.send(head("GET", "/v2/health/live", f"Content-Length: {len(hidden)}") + hidden)
    assert connection.answer().status == 200
    connection.post(FLOATS, JSON_BODY)
    assert echoed(connection)


def test_an_answer_tells_its_length(connect: Connect) -> None:
    """Triton's C++ client makes room by it."""
    connection = connect()
    for path, body, *headers in ((FLOATS, JSON_BODY), (FLOATS, BINARY.body, BINARY_HEADER), (FLOATS, b"{")):
        connection.post(path, body, *headers)
        answer = connection.answer()
        assert "transfer-encoding" not in answer.headers
        assert int(answer.headers["content-length"]) == len(answer.content)


def test_a_client_that_leaves_before_its_answer_leaves_nothing_behind(connect: Connect) -> None:
    for _ in range(300):
        connection = connect()
        connection.post(FLOATS, JSON_BODY)
        connection.close()
    connection = connect()
    connection.post(FLOATS, JSON_BODY)
    assert echoed(connection)
