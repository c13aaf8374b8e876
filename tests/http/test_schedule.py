"""The schedule policy extension: `priority` and `timeout` of a request."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.http.conftest import Serve
from tests.support.server import Server


def body(value: int, **parameters: object) -> dict[str, object]:
    tensor = {"name": "x", "shape": [1], "datatype": "INT64", "data": [value]}
    return {"inputs": [tensor], "parameters": parameters}


@pytest.mark.parametrize(
    "parameters",
    [{"priority": 255}, {"priority": -1}, {"priority": "1"}, {"priority": True}, {"timeout": -1}, {"timeout": 1.5}],
    ids=str,
)
def test_what_is_no_priority_or_timeout_is_refused_by_name(http: httpx.Client, parameters: dict[str, object]) -> None:
    answer = http.post("/v2/models/picky/infer", json=body(1, **parameters))
    assert answer.status_code == 400
    assert f"parameters.{next(iter(parameters))}" in answer.json()["error"]


@pytest.mark.parametrize(
    "parameters", [{"priority": 0}, {"priority": 254, "timeout": 0}, {"timeout": 10_000_000}], ids=str
)
def test_priorities_and_timeouts_that_fit_are_taken(http: httpx.Client, parameters: dict[str, object]) -> None:
    answer = http.post("/v2/models/picky/infer", json=body(7, **parameters))
    assert answer.json()["outputs"][0]["data"] == [77]


async def test_what_waits_runs_by_priority_and_not_past_its_timeout(serve: Serve, only: Callable[..., Path]) -> None:
    one_at_a_time = ("--engine.instances", "1", "--engine.threads", "1", "--batching.max-batch-size", "1")
    server: Server = serve(*one_at_a_time, models=only("slow"))
    order: list[str] = []

    async def ask(client: httpx.AsyncClient, name: str, **parameters: object) -> int:
        answer = await client.post("/v2/models/slow/infer", json=body(1, **parameters))
        order.append(name)
        return answer.status_code

    async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
        tasks = [asyncio.create_task(ask(client, "first"))]  # about 100 ms, while the others come
        await asyncio.sleep(0.03)
        for name, parameters in (
            ("low", {"priority": 9}),
            ("hasty", {"priority": 9, "timeout": 20_000}),
            ("middle", {"priority": 5}),
            ("high", {"priority": 1}),
        ):
            tasks.append(asyncio.create_task(ask(client, name, **parameters)))
            await asyncio.sleep(0.005)
        statuses = await asyncio.gather(*tasks)
    assert statuses == [200, 200, 504, 200, 200]
    assert order[0] in ("hasty", "first")
    assert [name for name in order if name not in ("hasty", "first")] == ["high", "middle", "low"]
