"""Whatever a client sends is answered or refused: no body, header or image makes an error of ours, or loses a slot.

Two ways: in process, thousands of requests through everything between a whole body and an answer, with an engine that
the test plays; and over the wire, hundreds on connections of their own to the real server, where a request may also be
cut or framed wrongly. A failure names a seed that gives the same request again.
"""

import json
import string
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.manifest import Classification, ImageInput, TensorSpec
from service.frontend.head import Route
from service.settings import Images, Settings
from tests.http.conftest import FAST_START
from tests.property.fuzzing import (
    INPUTS,
    LENGTH,
    Asked,
    any_bytes,
    any_path,
    compressed,
    framed,
    infer_binary,
    infer_json,
    predict_form,
    predict_image,
    predict_json,
    v1_json,
)
from tests.support.build_any import build_any_repository
from tests.support.build_models import build_repository
from tests.support.played import PlayedFrontend, played_model
from tests.support.server import Server, running_server
from tests.support.wire import Wire

Make = Callable[[Random, str], Asked]

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 2**32)
REQUESTS = 300  # of each seed


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


def answered_or_refused(asked: Asked) -> int:
    """The status."""
    answer = FRONTEND.answer(Route(asked.kind, asked.model, None), asked.headers, asked.query, asked.body)
    assert answer.status == 200 or 400 <= answer.status < 500, (answer.status, answer.body, asked)
    assert FRONTEND.slots_held() == 0, asked
    found = dict(answer.headers)
    body = answer.body if b"content-encoding" not in found else zlib.decompress(answer.body, 32 + zlib.MAX_WBITS)
    if answer.content_type == b"application/json" or LENGTH in found:
        text = json.loads(body[: int(found[LENGTH])] if LENGTH in found else body)
        assert (answer.status == 200) != (text.keys() == {"error"}), asked
    else:  # one of the forms that /predict may be asked for
        assert answer.status == 200, asked
        body.decode()
    return answer.status


@pytest.mark.parametrize(
    "make", [infer_json, infer_binary, predict_json, predict_image, predict_form, v1_json, any_bytes]
)
def test_any_request_is_answered_or_refused(make: Make) -> None:
    answers: list[int] = []

    @given(SEEDS)
    @settings(QUICK, max_examples=40)
    def some_requests(seed: int) -> None:
        random = Random(seed)
        for _ in range(REQUESTS):
            model = random.choice([*INPUTS, "picture"]) if make != predict_image else "picture"
            asked = make(random, model)
            answers.append(answered_or_refused(compressed(random, asked) if random.random() < 0.05 else asked))

    some_requests()
    assert answers.count(200) > len(answers) / 50, "most are stopped by the first check: this tries little"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("rows", '{"inputs":[{"name":"\\ud800","shape":[1,4],"datatype":"UINT8","data":[1]}]}'),
        (
            "empty",
            '{"inputs":[{"name":"x","shape":[0,0],"datatype":"INT32","data":[]}],'
            '"outputs":[{"name":"x","parameters":{"classification":2}}]}',
        ),
    ],
    ids=["half a surrogate pair", "classes of nothing"],
)
def test_requests_that_were_errors_of_ours_or_nearly(model: str, text: str) -> None:
    answered_or_refused(Asked("infer", model, {}, b"", text.encode()))


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


SERVED = {"scores": "picture", "two": "pair", "ragged": "ragged", "words": "words", "matrix": "matrix"}


@given(SEEDS)
@settings(QUICK, max_examples=20)
def test_any_request_over_the_wire(server: Server, seed: int) -> None:
    """One answer of 200 or 4xx, or the end of the connection; where the answer leaves it open, it is good for more."""
    random = Random(seed)
    for _ in range(10):
        served, like = random.choice(list(SERVED.items()))
        make = random.choice([infer_json, infer_binary, predict_json, predict_image, predict_form, any_bytes])
        asked = make(random, like)
        exchange(server, *framed(random, served, compressed(random, asked) if random.random() < 0.1 else asked))


def exchange(server: Server, sent: bytes, whole: bool) -> None:
    with Wire(server, timeout_s=5) as wire:
        try:
            wire.send(sent)
            answer = wire.answer()
        except (ConnectionError, BrokenPipeError):
            return
        assert answer.status < 500, (answer.status, answer.body, sent)
        if whole and answer.headers.get("connection") != "close":
            wire.send(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            assert wire.answer().json() == {"live": True}, sent


@given(SEEDS)
@settings(QUICK, max_examples=30)
def test_any_path_over_the_wire(server: Server, seed: int) -> None:
    """Routes that are no predictions: no status of 5xx but that of what the server does not do, errors in our form."""
    random = Random(seed)
    for _ in range(30):
        sent = any_path(random)
        with Wire(server, timeout_s=5) as wire:
            try:
                wire.send(sent)
                answer = wire.answer()
            except (ConnectionError, BrokenPipeError):
                continue
        assert answer.status < 500 or answer.status == 501, (answer.status, answer.body, sent)
        if answer.status >= 400:
            assert answer.headers["content-type"] == "application/json", sent
            assert answer.json().keys() == {"error"}, sent


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
