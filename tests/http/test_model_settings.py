"""A model's own settings in a running server: they hold for it alone, and bad ones keep no other from serving."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.http.conftest import Serve
from tests.support.server import Server

ONE_AT_A_TIME = "[engine]\ninstances = 1\nthreads = 1\n[batching]\nmax_batch_size = 1\n"


@pytest.fixture
def with_settings(repository: Path, tmp_path: Path) -> Callable[..., Path]:
    """A repository of these models, each with this text in this file beside its version."""

    def make(file: str, **texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "1").symlink_to(repository / name / "1")
            (tmp_path / name / file).write_text(text)
        return tmp_path

    return make


def body(value: int) -> dict[str, object]:
    return {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [value]}]}


def client_of(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False)


async def test_a_models_timeout_holds_for_it_alone(serve: Serve, with_settings: Callable[..., Path]) -> None:
    models = with_settings("model.toml", slow=ONE_AT_A_TIME + "[requests]\ntimeout_ms = 20\n", picky="")
    server = serve(models=models)
    async with client_of(server) as client:
        answers = await asyncio.gather(*(client.post("/v2/models/slow/infer", json=body(i)) for i in range(6)))
        assert (await client.post("/v2/models/picky/infer", json=body(7))).json()["outputs"][0]["data"] == [77]
    late = [answer for answer in answers if answer.status_code != 200]
    assert len(late) >= 5  # each waits for the 100 ms of those before it
    assert {(answer.status_code, "deadline" in answer.json()["error"]) for answer in late} == {(504, True)}
    server.assert_settled()


async def test_a_bad_settings_file_is_told_and_the_others_serve(
    serve: Serve, with_settings: Callable[..., Path]
) -> None:
    models = with_settings("model.toml", slow="[engine]\nthread = 1\n", picky="")
    async with client_of(serve(models=models)) as client:
        index = {model["name"]: model for model in (await client.post("/v2/repository/index")).json()}
        assert index["slow"]["state"] == "UNAVAILABLE"
        assert "model.toml: engine.thread: no such setting" in index["slow"]["reason"]
        refused = await client.post("/v2/models/slow/infer", json=body(1))
        assert refused.status_code == 503
        assert "engine.thread" in refused.json()["error"]
        assert (await client.post("/v2/models/picky/infer", json=body(7))).status_code == 200


async def test_a_model_in_the_layout_of_triton_is_served_as_its_file_says(
    serve: Serve, with_settings: Callable[..., Path]
) -> None:
    config = 'backend: "onnxruntime" max_batch_size: 4 input [ { name: "x" } ] instance_group [ { count: 2 } ]'
    models = with_settings("config.pbtxt", picky=config, slow='backend: "tensorflow"')
    async with client_of(serve(models=models)) as client:
        about = (await client.get("/v2/models/picky")).json()["parameters"]
        assert (about["max_batch_size"], about["instances"]) == (4, 2)
        refused = await client.post("/v2/models/slow/infer", json=body(1))
        assert "config.pbtxt: backend: 'tensorflow' is not served here" in refused.json()["error"]
