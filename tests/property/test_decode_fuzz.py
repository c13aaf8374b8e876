"""Whatever a client sends is answered or refused: no body, header or image makes an error of ours, or loses a slot.

Two ways: in process, thousands of requests through everything between a whole body and an answer, with an engine that
the test plays; and over the wire, hundreds on connections of their own to the real server, where a request may also be
cut or framed wrongly.
"""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models.manifest import Classification, ImageInput, TensorSpec
from service.frontend.head import Route
from service.settings import Images, Settings
from tests.http.conftest import FAST_START
from tests.property.fuzzing import (
    BODIES,
    FORMS,
    HEADERS,
    IMAGES,
    INFER_TEXTS,
    LENGTH,
    MODEL_NAMES,
    PREDICT_TEXTS,
    QUERIES,
    V1_REQUESTS,
    Framing,
    framings,
)
from tests.support.build_any import build_any_repository
from tests.support.build_models import build_repository
from tests.support.played import PlayedFrontend, played_model
from tests.support.server import Server, running_server
from tests.support.wire import Wire

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def played_frontend() -> PlayedFrontend:
    """The models that `fuzzing.py` writes requests for."""
    picture = TensorSpec("x", "UINT8", (-1, 8, 8, 3))
    scores = TensorSpec("y", "FP32", (-1, 3))
    a, b = TensorSpec("a", "FP16", (-1, 2)), TensorSpec("b", "INT8", (-1, 3))
    ragged, words = TensorSpec("x", "FP32", (-1, -1)), TensorSpec("x", "BYTES", (-1, -1))
    matrix, scale = TensorSpec("x", "FP64", (-1, -1)), TensorSpec("s", "INT64", ())
    return PlayedFrontend(
        [
            played_model("rows", (TensorSpec("x", "UINT8", (-1, 4)),), (scores, TensorSpec("z", "INT64", (-1,)))),
            played_model("flags", (TensorSpec("x", "BOOL", (-1, 3)),), (TensorSpec("y", "BF16", (-1, 3)),)),
            played_model("pair", (a, b), (a, b)),
            played_model("ragged", (ragged,), (ragged, scores)),
            played_model("words", (words,), (words,)),
            played_model("matrix", (matrix, scale), (matrix, scale), batch_axis=False),
            played_model("empty", (TensorSpec("x", "INT32", (-1, 0)),), (TensorSpec("x", "INT32", (-1, 0)),)),
            played_model(
                "picture", (picture,), (scores,), True, ImageInput(8, 8, 3), Classification("y", ("a", "b", "c"))
            ),
        ],
        Settings(images=Images(max_pixels=100_000, decode_in_thread_pixels=2_000)),
    )


FRONTEND = played_frontend()


def answered_or_refused(kind: str, model: str, headers: dict[bytes, bytes], query: bytes, body: bytes) -> None:
    answer = FRONTEND.answer(Route(kind, model, None), headers, query, body)
    assert answer.status == 200 or 400 <= answer.status < 500, (answer.status, answer.body)
    assert FRONTEND.slots_held() == 0
    length = dict(answer.headers).get(LENGTH)
    text = json.loads(answer.body if length is None else answer.body[: int(length)])
    assert (answer.status == 200) != (text.keys() == {"error"})


@given(st.sampled_from(["predict", "infer"]), MODEL_NAMES, HEADERS, QUERIES, BODIES)
@settings(QUICK, max_examples=400)
def test_any_bytes_with_any_headers(
    kind: str, model: str, headers: dict[bytes, bytes], query: bytes, body: bytes
) -> None:
    answered_or_refused(kind, model, headers, query, body)


@given(MODEL_NAMES, HEADERS, INFER_TEXTS, st.binary(max_size=40), st.integers(-2, 2) | st.none())
@example("rows", {}, '{"inputs":[{"name":"\\ud800","shape":[1,4],"datatype":"UINT8","data":[1]}]}', b"", None)
@settings(QUICK, max_examples=1000)
def test_inference_requests_that_are_nearly_right(
    model: str, headers: dict[bytes, bytes], text: str, blob: bytes, error: int | None
) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    if error is not None:
        headers = headers | {LENGTH: b"%d" % (len(encoded) + error)}
    answered_or_refused("infer", model, headers, b"", encoded + blob)


@given(MODEL_NAMES, QUERIES, PREDICT_TEXTS)
@settings(QUICK, max_examples=400)
def test_instances_that_are_nearly_right(model: str, query: bytes, text: str) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    answered_or_refused("predict", model, {b"content-type": b"application/json"}, query, encoded)


@given(V1_REQUESTS)
@settings(QUICK, max_examples=1000)
def test_v1_requests_that_are_nearly_right(asked: tuple[str, str, str]) -> None:
    kind, model, text = asked
    answered_or_refused(kind, model, {}, b"", text.encode("utf-8", "surrogatepass"))


@given(st.sampled_from(["picture", "rows", "ragged", "flags"]), FORMS)
@settings(QUICK, max_examples=400)
def test_forms_that_are_nearly_right(model: str, body: bytes) -> None:
    answered_or_refused("predict", model, {b"content-type": b"multipart/form-data; boundary=x"}, b"", body)


@given(IMAGES, st.sampled_from([b"", b"image/png", b"image/*", b"application/octet-stream", b"image/heic; q=1"]))
@settings(QUICK, max_examples=400)
def test_images_with_broken_bytes(image: bytes, content_type: bytes) -> None:
    answered_or_refused("predict", "picture", {b"content-type": content_type}, b"", image)


# ── over the wire ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Small limits: what a client leaves unfinished is given up soon."""
    built, root = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("repository")
    _link(build_repository(built / "models"), root, "scores", "two")
    _link(build_any_repository(built / "any"), root, "ragged", "words", "matrix")
    limits = ("--server.max-body-bytes", "20000", "--server.body-timeout-s", "0.2", "--images.max-pixels", "100000")
    with running_server(*FAST_START, "--repository", str(root), *limits) as server:
        yield server
        server.assert_settled()


def _link(source: Path, root: Path, *names: str) -> None:
    for name in names:
        (root / name).symlink_to(source / name)


@given(framings())
@settings(QUICK, max_examples=250)
def test_any_request_over_the_wire(server: Server, framing: Framing) -> None:
    """One answer of 200 or 4xx, or the end of the connection; where the answer leaves it open, it is good for more."""
    with Wire(server, timeout_s=5) as wire:
        try:
            wire.send(framing.sent)
            answer = wire.answer()
        except (ConnectionError, BrokenPipeError):
            return
        assert answer.status < 500, (answer.status, answer.body)
        if framing.whole and answer.headers.get("connection") != "close":
            wire.send(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            assert wire.answer().json() == {"live": True}


@pytest.mark.parametrize("character", sorted(set(string.punctuation + "\0\x7f\xff")))
def test_a_request_line_with_any_character(server: Server, character: str) -> None:
    with Wire(server) as wire:
        wire.send(
            f"POST /v2/models/two{character}/infer HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{{}}".encode(
                "latin-1"
            )
        )
        answer = wire.answer()
    assert 400 <= answer.status < 500
    assert answer.json().keys() == {"error"}


def nested(depth: int) -> Any:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [30, 1_000, 9_000])
@pytest.mark.parametrize("path", ["/v2/models/two/infer", "/predict/ragged", "/v2/models/words/infer"])
def test_json_nested_ever_deeper(server: Server, path: str, depth: int) -> None:
    data = nested(depth)
    for body in (
        data,
        f'{{"inputs":{data}}}',
        f'{{"instances":{data}}}',
        f'{{"inputs":[],"parameters":{{"a":{data}}}}}',
    ):
        with Wire(server) as wire:
            wire.post(path, body.encode(), "Content-Type: application/json")
            answer = wire.answer()
        assert answer.status == 400
        assert answer.json().keys() == {"error"}
