"""Which heads are predictions that need no uvicorn; and that none is read otherwise than uvicorn's parser reads it."""

import pytest

from service.frontend.head import Route, parse_head

PLAIN = b"POST /predict/mnist?top_k=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Type: text/plain"


def test_a_plain_post_of_known_length_is_parsed() -> None:
    head = parse_head(PLAIN)
    assert head is not None
    assert head.route == Route("predict", "mnist", None)
    assert head.query == b"top_k=1"
    assert head.body_bytes == 5
    assert head.headers == {b"host": b"x", b"content-length": b"5", b"content-type": b"text/plain"}
    assert head.keep_alive
    assert parse_head(PLAIN) is head, "equal bytes are parsed once"


@pytest.mark.parametrize(
    ("target", "route"),
    [
        (b"/predict/a%20b", Route("predict", "a b", None)),
        (b"/predict/m/versions/canary", Route("predict", "m", "canary")),
        (b"/v2/models/m/infer", Route("infer", "m", None)),
        (b"/v2/models/m/versions/3/infer", Route("infer", "m", "3")),
        (b"/v1/models/m:predict", Route("v1:predict", "m", None)),
        (b"/v1/models/m%3Aclassify", Route("v1:classify", "m", None)),
        (b"/v1/models/a:b:regress", Route("v1:regress", "a:b", None)),
        (b"/v1/models/m/versions/3:predict", Route("v1:predict", "m", "3")),
        (b"/v1/models/m/labels/stable%3apredict", Route("v1:predict", "m", None, "stable")),
    ],
)
def test_routes(target: bytes, route: Route) -> None:
    head = parse_head(b"POST %s HTTP/1.1\r\nContent-Length: 0" % target)
    assert head is not None
    assert head.route == route


def test_a_client_that_wants_the_connection_closed_is_seen() -> None:
    head = parse_head(PLAIN + b"\r\nConnection: close")
    assert head is not None
    assert not head.keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"GET /predict/mnist HTTP/1.1\r\nContent-Length: 5",
        b"POST /health/live HTTP/1.1\r\nContent-Length: 5",
        b"POST /v1/models/m:explain HTTP/1.1\r\nContent-Length: 5",
        b"POST /v1/models/m HTTP/1.1\r\nContent-Length: 5",
        b"POST /v1/models/m:predict/more HTTP/1.1\r\nContent-Length: 5",
        b"POST /v1/models/m/tags/1:predict HTTP/1.1\r\nContent-Length: 5",
        b"POST /predict/mnist HTTP/1.0\r\nContent-Length: 5",
        b"POST /predict/mnist HTTP/1.1\r\nHost: x",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length: five",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length: -5",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"POST /predict/mnist HTTP/1.1\r\nTransfer-Encoding: chunked",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length: 5\r\nConnection: upgrade\r\nUpgrade: websocket",
        b"POST /predict/mnist HTTP/1.1\nContent-Length: 5\n\nhello\r\nX: y",  # a parser may see the body begin here
        b"POST /predict/\xff HTTP/1.1\r\nContent-Length: 5",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length: 0\n\nPOST /predict/a HTTP/1.1\r\nContent-Length: 0",
        b"POST /predict/mnist HTTP/1.1\r\nContent-Length : 5",
        b"nonsense",
        b"",
    ],
)
def test_everything_else_is_for_uvicorn(head: bytes) -> None:
    assert parse_head(head) is None
