"""The client that the docs show: its page's code as it stands, and every way through it against the real server."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest

from tests.support.build_any import build_any_repository
from tests.support.server import Server, running_server

ROOT = Path(__file__).parents[2]
FAST_START = ("--port", "0", "--engine.tune-budget-s", "0")
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/client.md").read_text(), re.DOTALL)


@pytest.fixture
def client_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`import client`, as beside a copy of it."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import client

    yield client
    del sys.modules["client"]


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    with running_server(*FAST_START, "--repository", str(ROOT / "models")) as server:
        yield server


@pytest.fixture(scope="module")
def any_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(
        *FAST_START, "--repository", str(build_any_repository(tmp_path_factory.mktemp("any")))
    ) as server:
        yield server


def test_the_page_works_as_it_stands(
    client_module: ModuleType, bundled: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert len(BLOCKS) >= 5
    exec("".join(BLOCKS).replace("http://localhost:8000", bundled.url), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert re.fullmatch(r"7 0\.9\d+", printed[0])
    assert printed[3].startswith("400 input 'image' has datatype FP64; expected UINT8 ")


def test_golden_rows_come_back_in_both_forms(client_module: ModuleType, bundled: Server) -> None:
    for name, version in (("mnist", "3"), ("linear_regression", "1")):
        with np.load(ROOT / "models" / name / version / "golden.npz") as golden:
            inputs = {key.removeprefix("inputs."): golden[key] for key in golden.files if key.startswith("inputs.")}
            outputs = {key.removeprefix("outputs."): golden[key] for key in golden.files if key.startswith("outputs.")}
        with client_module.Client(bundled.url) as client:
            for infer in (client.infer_json, client.infer_binary):
                answered = infer(name, inputs, version)
                assert answered.keys() == outputs.keys()
                for key, expected in outputs.items():
                    assert answered[key].dtype == expected.dtype
                    np.testing.assert_allclose(answered[key], expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("code", ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "O"])
@pytest.mark.parametrize("infer", ["infer_json", "infer_binary"])
def test_every_datatype_goes_there_and_back(
    client_module: ModuleType, any_server: Server, infer: str, code: str
) -> None:
    values = ["", "é", "two words"] if code == "O" else np.array([0, 1, 1]).astype(code)
    with client_module.Client(any_server.url) as client:
        model = "words" if code == "O" else f"all-{client_module.DATATYPE_OF[np.dtype(code)]}"
        assert client.ready(model)
        if code == "O":
            texts = np.array([values], object)
            answered = getattr(client, infer)(model, {"a": texts, "b": texts})
            assert answered["y"].tolist() == [[text * 2 for text in values]]
            return
        shapes = ((), (3,), (2, 3), (2, 1, 3), (1, 2, 3, 2), (2, 1, 2, 1, 3))
        inputs = {f"x{i}": np.resize(values, (2, *shape)) for i, shape in enumerate(shapes)}
        answered = getattr(client, infer)(model, inputs)
    factor = 2 if code in ("f2", "f4", "f8", "i4", "i8") else 1
    for i in range(len(shapes)):
        np.testing.assert_array_equal(answered[f"y{i}"], inputs[f"x{i}"] * np.array(factor, code))
        assert answered[f"y{i}"].dtype == np.dtype(code)


def test_big_endian_and_strided_arrays_are_sent_as_what_they_hold(
    client_module: ModuleType, any_server: Server
) -> None:
    x = np.arange(24, dtype=">f4").reshape(2, 12)[:, ::3]
    scale = np.array([1, 2, 3, 4], ">f4")
    with client_module.Client(any_server.url) as client:
        for infer in (client.infer_json, client.infer_binary):
            np.testing.assert_array_equal(infer("mixed", {"x": x, "scale": scale})["y"], x * scale)


def test_nan_and_infinity_survive_as_bytes_and_are_refused_as_json(
    client_module: ModuleType, any_server: Server
) -> None:
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    with client_module.Client(any_server.url) as client:
        np.testing.assert_array_equal(client.infer_binary("ragged", {"x": x})["double"], x)
        with pytest.raises(ValueError, match="not JSON compliant"):
            client.infer_json("ragged", {"x": x})


def test_an_error_carries_status_message_and_request_id(client_module: ModuleType, bundled: Server) -> None:
    with client_module.Client(bundled.url) as client:
        for call in (
            lambda: client.ready("nothing"),
            lambda: client.predict("nothing", b"x"),
            lambda: client.infer_json("nothing", {}),
            lambda: client.infer_binary("a b?c", {}),
        ):
            with pytest.raises(client_module.ShoalError) as raised:
                call()
            assert raised.value.status == 404
            assert "mnist" in raised.value.message, "the message lists those that answer"
            assert raised.value.request_id in str(raised.value)
            assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", raised.value.request_id)


def answering(*answers: httpx.Response) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """These answers in turn, and the requests that came."""
    left, seen = list(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return left.pop(0)

    return httpx.MockTransport(answer), seen


def full(wait: str = "0") -> httpx.Response:
    return httpx.Response(503, headers={"Retry-After": wait, "X-Request-ID": "r-1"}, json={"error": "no room"})


LABELS = {"predictions": [{"label": "a", "probability": 1, "top": [{"label": "a", "probability": 1}]}]}


def test_a_full_server_is_asked_again(client_module: ModuleType) -> None:
    transport, seen = answering(full(), full("3600"), httpx.Response(200, json=LABELS))
    client = client_module.Client("http://test", transport=transport, longest_wait_s=0.01)
    assert client.predict("m", b"image") == [("a", 1)]
    assert [request.content for request in seen] == [b"image"] * 3


def test_the_last_attempt_is_raised(client_module: ModuleType) -> None:
    transport, seen = answering(full(), full())
    client = client_module.Client("http://test", transport=transport, attempts=2)
    with pytest.raises(client_module.ShoalError, match="503: no room"):
        client.predict("m", b"image")
    assert len(seen) == 2


def test_only_503_is_sent_again(client_module: ModuleType) -> None:
    transport, seen = answering(httpx.Response(504, text="a proxy's page"))
    with pytest.raises(client_module.ShoalError, match="504: a proxy's page"):
        client_module.Client("http://test", transport=transport).predict("m", b"image")
    assert len(seen) == 1


def test_a_server_that_is_not_ready_is_no_error(client_module: ModuleType) -> None:
    transport, seen = answering(full(), full())
    client = client_module.Client("http://test", transport=transport)
    assert not client.ready()
    assert not client.ready("m", "2")
    assert [request.url.path for request in seen] == ["/v2/health/ready", "/v2/models/m/versions/2/ready"]
