"""Many requests of all kinds at once: each gets the answer to its own input, and nothing is left behind."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.test_headers import server_timing
from tests.http.test_predict import greys_of
from tests.support.pictures import encode, quarters
from tests.support.server import Server

OCTETS = {"content-type": "application/octet-stream"}
N_REQUESTS = 500
Kind = Callable[[httpx.AsyncClient, int], Awaitable[httpx.Response]]


def row_of(i: int) -> list[int]:
    """Four bytes that say which request this is."""
    return [i % 251, i // 251, 7 * i % 256, 255 - i % 256]


async def echo_json(client: httpx.AsyncClient, i: int) -> httpx.Response:
    rows = [row_of(i + k) for k in range(1 + i % 3)]
    inputs = [{"name": "x", "shape": [len(rows), 4], "datatype": "UINT8", "data": rows}]
    answer = await client.post("/v2/models/echo/infer", json={"inputs": inputs, "id": str(i)})
    assert answer.json()["id"] == str(i)
    same, half = answer.json()["outputs"]
    flat = [value for row in rows for value in row]
    assert same["data"] == flat
    assert half["data"] == [value / 2 for value in flat]
    return answer


async def echo_raw(client: httpx.AsyncClient, i: int) -> httpx.Response:
    body = b"".join(bytes(row_of(i + k)) for k in range(1 + i % 5))
    answer = await client.post("/v2/models/echo/infer", content=body, headers=OCTETS)
    outputs = answer.content[int(answer.headers["inference-header-content-length"]) :]
    assert outputs[: len(body)] == body
    assert np.frombuffer(outputs[len(body) :], "<f4").tolist() == [value / 2 for value in body]
    return answer


async def echo_predict(client: httpx.AsyncClient, i: int) -> httpx.Response:
    answer = await client.post("/predict/echo", content=bytes(row_of(i)), headers=OCTETS)
    assert answer.json()["predictions"][0]["same"] == row_of(i)
    return answer


async def two_binary(client: httpx.AsyncClient, i: int) -> httpx.Response:
    a, b = np.array([[i, 0.5, -1]], np.float32), np.array([[2 * i, -i]], np.int32)
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype,
            "parameters": {"binary_data_size": 4 * array.size},
        }
        for name, array, datatype in (("b", b, "INT32"), ("a", a, "FP32"))
    ]
    text = json.dumps({"inputs": inputs}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    answer = await client.post("/v2/models/two/infer", content=text + b.tobytes() + a.tobytes(), headers=headers)
    total, negated = answer.json()["outputs"]
    assert total["data"] == [2 * i - 0.5]
    assert negated["data"] == [-2 * i, i]
    return answer


async def image(client: httpx.AsyncClient, i: int) -> httpx.Response:
    greys = row_of(i)
    answer = await client.post("/predict/scores", content=encode(quarters(*greys), ["PNG", "BMP"][i % 2]))
    assert greys_of(answer) == greys
    return answer


async def picky(client: httpx.AsyncClient, i: int) -> httpx.Response:
    value = i % 12
    answer = await client.post("/predict/picky", json={"instances": [value]})
    if value > 9:
        assert answer.status_code == 500
    else:
        assert answer.json()["predictions"] == [{"y": [11 * value]}]
    return answer


async def slow(client: httpx.AsyncClient, i: int) -> httpx.Response:
    answer = await client.post("/predict/slow", json={"instances": [i]})
    assert answer.json()["predictions"] == [{"y": [i]}]
    return answer


async def refused(client: httpx.AsyncClient, i: int) -> httpx.Response:
    answer = await client.post("/predict/echo", json={"instances": [[i % 256, -1, -1, -1]]})
    assert answer.status_code == 400
    assert "-1" in answer.json()["error"]
    return answer


KINDS: list[tuple[Kind, int]] = [
    *((echo_json, 5), (echo_raw, 5), (echo_predict, 5), (two_binary, 4), (image, 4), (picky, 4), (slow, 1)),
    (refused, 1),
]


async def test_five_hundred_requests_of_all_kinds_at_once_each_get_their_own_answer(server: Server) -> None:
    chosen = random.Random(0).choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=N_REQUESTS)
    limits = httpx.Limits(max_connections=N_REQUESTS)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60, trust_env=False) as client:
        answers = await asyncio.gather(*(kind(client, i) for i, kind in enumerate(chosen)))
    assert len({answer.headers["x-request-id"] for answer in answers}) == N_REQUESTS
    batches = [server_timing(answer.headers).get("batch", 0) for answer in answers]
    assert max(batches) > 1, "nothing was batched"
    server.assert_settled()


# ── no body makes a 500 ──────────────────────────────────────────────────────────────────────────────────────────────

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner)
)
tensors = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "a", "b"]) | anything},
    optional={
        "shape": st.just([1, 4]) | st.lists(st.integers(-2, 5), max_size=3) | anything,
        "datatype": st.sampled_from(["UINT8", "FP32", "INT32"]) | anything,
        "data": st.just([1, 2, 3, 4]) | st.lists(scalars, min_size=4, max_size=4) | anything,
        "parameters": st.dictionaries(st.just("binary_data_size"), anything) | anything,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | anything},
    optional={
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["same", "half"])})) | anything,
        "parameters": st.dictionaries(st.just("binary_data_output"), anything) | anything,
        "id": anything,
        "instances": st.lists(st.lists(scalars, min_size=4, max_size=4)) | anything,
    },
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(body=requests.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), path=st.integers(0, 3))
def test_no_body_whatever_is_our_fault(http: httpx.Client, body: bytes, path: int) -> None:
    where = ["/predict/echo", "/predict/floats", "/v2/models/echo/infer", "/v2/models/two/infer"][path]
    answer = http.post(where, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400), (answer.status_code, answer.text)
    answer.json()


@pytest.mark.parametrize("path", ["/predict/echo", "/v2/models/echo/infer"])
def test_a_very_long_query_or_path_is_answered(http: httpx.Client, path: str) -> None:
    answer = http.post(f"{path}?{'x=1&' * 5000}", json={"instances": [[1, 2, 3, 4]]})
    assert answer.status_code in (200, 400)
    assert http.post(f"{path}{'x' * 10_000}").status_code == 404
