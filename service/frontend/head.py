"""The head of a prediction request, parsed once: a client that keeps its connection sends the same bytes each time.

`parse_head` is a pure function of those bytes, so its answers are kept. What it does not take (None) is not wrong: it
is for uvicorn, which parses again and knows chunked bodies, `Expect`, upgrades and every way to be malformed.
"""

import functools
from typing import NamedTuple
from urllib.parse import unquote

import httptools

MOST_BYTES = 8192  # a longer head is uvicorn's
_KEPT = 1024  # heads; one that carries an id of its request is seen once and pushes another out
_MOST_DIGITS = 15


V1_VERBS = ("predict", "classify", "regress")


class Route(NamedTuple):
    """Where a prediction goes. `version` may be a label; None: as the model's routing has it, or that with `label`."""

    kind: str  # predict, infer, or v1: and one of V1_VERBS
    model: str
    version: str | None
    label: str | None = None


class Head(NamedTuple):
    route: Route
    headers: dict[bytes, bytes]
    query: bytes
    body_bytes: int
    keep_alive: bool


def find_route(path: str) -> Route | None:
    """None: not a prediction."""
    match path.split("/"):
        case ["", "predict", name]:
            return Route("predict", name, None)
        case ["", "predict", name, "versions", version]:
            return Route("predict", name, version)
        case ["", "v2", "models", name, "infer"]:
            return Route("infer", name, None)
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return Route("infer", name, version)
        case ["", "v1", "models", *rest] if rest:
            return _v1_route(*rest)
    return None


def _v1_route(*path: str) -> Route | None:
    """Of what follows /v1/models/; the verb is behind the last colon."""
    last, colon, verb = path[-1].rpartition(":")
    if not colon or verb not in V1_VERBS:
        return None
    match (*path[:-1], last):
        case (name,):
            return Route(f"v1:{verb}", name, None)
        case (name, "versions", version):
            return Route(f"v1:{verb}", name, version)
        case (name, "labels", label):
            return Route(f"v1:{verb}", name, None, label)
    return None


@functools.lru_cache(_KEPT)
def parse_head(head: bytes) -> Head | None:
    """`head` is everything before the empty line. None unless it is a plain POST of a known length to a prediction."""
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head + b"\r\n\r\n")
        target = httptools.parse_url(seen.url)
        path = unquote(target.path.decode("ascii"))
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeDecodeError):
        return None
    headers = dict(seen.headers)
    length = headers.get(b"content-length", b"")
    if (
        seen.heads != 1  # none: the parser wants more; two: it sees another request in these bytes
        or seen.body_begun
        or parser.get_method() != b"POST"
        or parser.get_http_version() != "1.1"
        or not length.isdigit()
        or len(length) > _MOST_DIGITS
        or not headers.keys().isdisjoint((b"transfer-encoding", b"expect", b"upgrade"))
    ):
        return None
    route = find_route(path)
    if route is None:
        return None
    return Head(route, headers, target.query or b"", int(length), parser.should_keep_alive())


class _Seen:
    """What httptools calls while it parses."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.heads = 0
        self.body_begun = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_body(self, _: bytes) -> None:
        self.body_begun = True
