"""Items whose shapes vary, models without a batch axis, and models whose first axis only looks like one."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.http.conftest import Serve
from tests.http.test_infer_json import refusal
from tests.support.build_any import build_any_repository
from tests.support.server import Server
from tests.support.tensors import LENGTH, binary, binary_outputs, in_json, json_outputs, same

OCTETS = {"content-type": "application/octet-stream"}


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def ragged_answer(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"double": x + x, "total": x.sum(axis=1, dtype=np.float32)}


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].shape == array.shape and np.allclose(found[name], array, atol=1e-4)
        for name, array in expected.items()
    )


@pytest.mark.parametrize("length", [1, 2, 7, 200])
@pytest.mark.parametrize("n", [1, 5, 100])
def test_an_axis_may_have_any_length(any_http: httpx.Client, n: int, length: int) -> None:
    x = floats(n, length)
    assert close(binary_outputs(binary(any_http, "ragged", {"x": ("FP32", x)})), ragged_answer(x))
    assert close(json_outputs(in_json(any_http, "ragged", {"x": ("FP32", x)})), ragged_answer(x))


async def test_many_shapes_at_once_each_get_their_own_answer(any_server: Server) -> None:
    generator = np.random.default_rng(0)

    async def ask(client: httpx.AsyncClient, i: int) -> None:
        x = floats(int(generator.integers(1, 4)), int(generator.integers(1, 6)), seed=i)
        inputs = [{"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.tolist()}]
        answer = await client.post("/v2/models/ragged/infer", json={"inputs": inputs})
        assert close(json_outputs(answer), ragged_answer(x))

    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(base_url=any_server.url, timeout=30, trust_env=False, limits=limits) as client:
        await asyncio.gather(*(ask(client, i) for i in range(400)))
    any_server.assert_settled()


def test_two_axes_may_vary_and_come_back_turned(any_http: httpx.Client) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    answer = binary_outputs(binary(any_http, "pictures", {"x": ("UINT8", x)}))
    assert close(answer, {"turned": x.transpose(0, 2, 1, 3), "mean": x.mean(axis=(1, 2), dtype=np.float32)})


def test_one_input_may_vary_and_another_not(any_http: httpx.Client) -> None:
    a, b = np.arange(12).reshape(2, 6), np.arange(4).reshape(2, 2)
    inputs = {"a": ("INT64", a), "b": ("INT64", b)}
    assert same(binary_outputs(binary(any_http, "pair", inputs)), {"joined": np.concatenate([a, b], 1)})


def test_an_axis_may_be_empty(any_http: httpx.Client) -> None:
    x = floats(2, 0)
    expected = {"double": x, "total": np.zeros(2, np.float32)}
    assert same(binary_outputs(binary(any_http, "ragged", {"x": ("FP32", x)})), expected)
    for data in ([], [[], []]):
        inputs = [{"name": "x", "shape": [2, 0], "datatype": "FP32", "data": data}]
        answer = any_http.post("/v2/models/ragged/infer", json={"inputs": inputs})
        assert same(json_outputs(answer), expected)


def test_predict_takes_items_of_unequal_shapes(any_http: httpx.Client) -> None:
    answer = any_http.post("/predict/ragged", json={"instances": [[1, 2], [3, 4, 5], [], [6]]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == [
        {"double": [2, 4], "total": [3]},
        {"double": [6, 8, 10], "total": [12]},
        {"double": [], "total": [0]},
        {"double": [12], "total": [6]},
    ]
    answer = any_http.post("/predict/outer", json={"instances": [[1, 2], [3]]})
    assert answer.json()["predictions"] == [{"y": [[1, 2], [2, 4]]}, {"y": [[9]]}]


@pytest.mark.parametrize(
    ("instances", "said"),
    [
        ([[[1, 2]]], ["instances[0]", "[1, 2]", "[-1]"]),
        ([[1], 2], ["instances[1]", "[]", "[-1]"]),
        ([[1], ["2"]], ["instances[1]", "numbers"]),
        ([[1], [2, [3]]], ["instances[1]"]),
        ([], ["empty"]),
        (7, ["instances", "array"]),
        ([[0] * 300_000], ["1200000 bytes", "1048576", "batching.max_row_bytes"]),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_instances_that_do_not_fit_are_refused(any_http: httpx.Client, instances: Any, said: list[str]) -> None:
    message = refusal(any_http.post("/predict/ragged", json={"instances": instances}))
    assert all(words in message for words in said), message


def test_raw_rows_of_unequal_size_are_refused_with_what_to_do(any_http: httpx.Client) -> None:
    for path in ("/predict/ragged", "/v2/models/pictures/infer"):
        message = refusal(any_http.post(path, content=b"12345678", headers=OCTETS))
        assert "'x'" in message
        assert "JSON" in message or "application/json" in message
    message = refusal(any_http.post("/v2/models/words/infer", content=b"12345678", headers=OCTETS))
    assert "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'words'" in message


def test_a_raw_string_is_the_one_element_without_its_length(any_http: httpx.Client) -> None:
    answer = any_http.post("/v2/models/labels/infer", content=b"dog", headers=OCTETS)
    assert answer.status_code == 200, answer.text
    assert np.frombuffer(answer.content[-8:], np.int64).tolist() == [2]
    message = refusal(any_http.post("/v2/models/labels/infer", content=b"\xff", headers=OCTETS))
    assert "not UTF-8" in message


def test_a_raw_string_needs_items_of_one_element(any_http: httpx.Client) -> None:
    message = refusal(any_http.post("/v2/models/split/infer", content=b"dog", headers=OCTETS))
    assert "For BYTE datatype raw input 'x', the model must have input shape [1]" in message


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([1, 2, 3], ["[1, 2, 3]", "[n, -1]"]),
        ([6], ["[6]", "[n, -1]"]),
        ([], ["[]", "[n, -1]"]),
        ([0, 6], ["6 values", "expected 0", "[0, 6]"]),
        ([1, -1], ["[1, -1]", "[n, -1]"]),
        ([2, 4], ["6 values", "8", "[2, 4]"]),
        ([1, 2**62], ["batching.max_row_bytes"]),
        ([1, 2**64], ["batching.max_row_bytes"]),
        ([2**62, 6], ["6 values"]),
        ([1, 300_000], ["1200000 bytes", "1048576", "batching.max_row_bytes"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(any_http: httpx.Client, shape: list[int], said: list[str]) -> None:
    inputs = [{"name": "x", "shape": shape, "datatype": "FP32", "data": [0] * 6}]
    message = refusal(any_http.post("/v2/models/ragged/infer", json={"inputs": inputs}))
    assert all(words in message for words in ("'x'", *said)), message


def test_an_empty_axis_beside_an_absurd_one_is_refused(any_http: httpx.Client) -> None:
    shape = [1, 2**40, 0, 3]
    given = {"name": "x", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": 0}}
    text = json.dumps({"inputs": [given]}).encode()
    message = refusal(any_http.post("/v2/models/pictures/infer", content=text, headers={LENGTH: str(len(text))}))
    assert "batching.max_row_bytes" in message


def test_an_item_too_large_for_its_row_is_refused_and_named(any_http: httpx.Client) -> None:
    message = refusal(binary(any_http, "ragged", {"x": ("FP32", floats(1, 262_145))}))
    assert all(words in message for words in ("'x'", "1048580 bytes", "1048576", "batching.max_row_bytes"))
    x = floats(1, 262_144)
    assert binary_outputs(binary(any_http, "ragged", {"x": ("FP32", x)}))["double"].tobytes() == (x + x).tobytes()
    text = np.array(["x" * 1_048_573], object)
    message = refusal(binary(any_http, "labels", {"x": ("BYTES", text)}))
    assert all(words in message for words in ("'x'", "1048577 bytes", "batching.max_row_bytes"))


async def test_an_output_too_large_for_its_row_fails_its_item_and_not_the_neighbours(any_server: Server) -> None:
    texts = ["a" * size for size in (1, 300_000, 2, 250_000, 3, 4, 200_000, 5)]
    async with httpx.AsyncClient(base_url=any_server.url, timeout=30, trust_env=False) as client:

        async def ask(text: str) -> httpx.Response:
            inputs = [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [text]}]
            return await client.post("/v2/models/repeated/infer", json={"inputs": inputs})

        answers = await asyncio.gather(*(ask(text) for text in texts))
        whole = await client.post("/predict/repeated", json={"instances": ["b", texts[1]]})
    for text, answer in zip(texts, answers, strict=True):
        if len(text) * 5 + 4 > 1 << 20:
            assert answer.status_code == 500
            assert "batching.max_row_bytes" in answer.json()["error"]
        else:
            assert json_outputs(answer)["y"].tolist() == [text * 5]
    assert whole.status_code == 500
    any_server.assert_settled()


def test_the_largest_row_is_a_setting(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    server = serve("--batching.max-row-bytes", "2048", models=build_any_repository(tmp_path_factory.mktemp("any")))
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        x = floats(1, 512)
        assert close(binary_outputs(binary(client, "ragged", {"x": ("FP32", x)})), ragged_answer(x))
        assert "at most 2048" in refusal(binary(client, "ragged", {"x": ("FP32", floats(1, 513))}))


# ── without a batch axis ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        ("fixed", {"x": [3, 2]}, {"y": [3, 2]}),
        ("matrix", {"x": [-1, -1], "bias": []}, {"turned": [-1, -1], "where": [2, -1]}),
        ("mixed", {"x": [-1, 4], "scale": [4]}, {"y": [-1, 4]}),
        ("constant", {}, {"y": [2]}),
        ("running", {"x": [-1, 2]}, {"y": [-1, 2]}),
    ],
)
def test_metadata_gives_the_shapes_of_the_file(
    any_http: httpx.Client, model: str, inputs: dict[str, list[int]], outputs: dict[str, list[int]]
) -> None:
    metadata = any_http.get(f"/v2/models/{model}").json()
    assert {tensor["name"]: tensor["shape"] for tensor in metadata["inputs"]} == inputs
    assert {tensor["name"]: tensor["shape"] for tensor in metadata["outputs"]} == outputs
    assert metadata["parameters"]["batch_axis"] is False
    assert metadata["parameters"]["max_batch_size"] == 1


def test_a_tensor_of_fixed_shape_is_the_item(any_http: httpx.Client) -> None:
    x = floats(3, 2)
    inputs = {"x": ("FP32", x)}
    assert same(binary_outputs(binary(any_http, "fixed", inputs)), {"y": x + x})
    assert same(json_outputs(in_json(any_http, "fixed", inputs)), {"y": x + x})
    raw = any_http.post("/v2/models/fixed/infer", content=x.tobytes(), headers=OCTETS)
    assert same(binary_outputs(raw), {"y": x + x})
    two = any_http.post("/predict/fixed", json={"instances": [x.tolist(), (-x).tolist()]}).json()["predictions"]
    assert np.allclose([row["y"] for row in two], [(x + x).ravel(), (-x - x).ravel()])
    message = refusal(in_json(any_http, "fixed", {"x": ("FP32", floats(1, 3, 2))}))
    assert "[1, 3, 2]" in message
    assert "expected [3, 2]" in message
    assert "expected 24" in refusal(any_http.post("/v2/models/fixed/infer", content=x.tobytes() * 2, headers=OCTETS))


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (0, 4), (5, 0)])
def test_axes_vary_a_scalar_is_added_and_an_output_has_as_many_columns_as_it_needs(
    any_http: httpx.Client, shape: tuple[int, int]
) -> None:
    x = floats(*shape).round()  # some are 0
    inputs = {"x": ("FP32", x), "bias": ("FP32", np.array(0.5, np.float32))}
    expected = {"turned": x.T + np.float32(0.5), "where": np.array(np.nonzero(x))}
    assert same(binary_outputs(binary(any_http, "matrix", inputs)), expected)
    assert same(json_outputs(in_json(any_http, "matrix", inputs)), expected)


def test_an_input_without_the_batch_makes_the_model_one_without(any_http: httpx.Client) -> None:
    x, scale = floats(5, 4), floats(4, seed=1)
    inputs = {"x": ("FP32", x), "scale": ("FP32", scale)}
    assert same(binary_outputs(binary(any_http, "mixed", inputs)), {"y": x * scale})


def test_a_model_may_have_no_input_at_all(any_http: httpx.Client) -> None:
    answer = any_http.post("/v2/models/constant/infer", json={"inputs": []})
    assert same(json_outputs(answer), {"y": np.array([7, 8])})


@pytest.mark.parametrize(("condition", "expected"), [(True, np.float32(1)), (False, np.float32([1, 2]))])
def test_an_output_may_have_axes_or_not(any_http: httpx.Client, condition: bool, expected: np.ndarray) -> None:
    inputs = {"condition": ("BOOL", np.array(condition))}
    assert same(json_outputs(in_json(any_http, "either", inputs)), {"y": np.array(expected)})
    assert same(binary_outputs(binary(any_http, "either", inputs)), {"y": np.array(expected)})
    predicted = any_http.post("/predict/either", json={"instances": [condition]}).json()["predictions"]
    assert predicted == [{"y": expected.tolist()}]


# ── what only looks like a batch ─────────────────────────────────────────────────────────────────────────────────────


def dependent(model: str, x: np.ndarray) -> np.ndarray:
    return {"centred": x - x.mean(axis=0), "running": x.cumsum(axis=0), "reversed": x[::-1]}[model]


@pytest.mark.parametrize("model", ["centred", "running", "reversed"])
async def test_items_that_depend_on_each_other_never_meet_those_of_another_request(
    any_server: Server, model: str
) -> None:
    columns = 2 if model == "running" else 3

    async def ask(client: httpx.AsyncClient, i: int) -> None:
        x = floats(1 + i % 4, columns, seed=i)
        inputs = [{"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.tolist()}]
        answer = await client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
        assert close(json_outputs(answer), {"y": dependent(model, x)})

    async with httpx.AsyncClient(base_url=any_server.url, timeout=30, trust_env=False) as client:
        await asyncio.gather(*(ask(client, i) for i in range(60)))
    assert f"model {model} version 1: an item's answer depends on what else is in the batch" in any_server.log()


def test_an_output_padded_to_the_longest_of_a_batch_is_such_a_dependence(any_http: httpx.Client) -> None:
    for texts, words in ((["a b c", "d"], [["a", "b", "c"], ["d", "", ""]]), (["d"], [["d"]])):
        answer = json_outputs(in_json(any_http, "split", {"x": ("BYTES", np.array(texts, object))}))
        assert answer["words"].tolist() == words
        assert answer["counts"].tolist() == [len(text.split()) for text in texts]


def test_a_raw_body_gives_the_only_axis_that_is_open(any_http: httpx.Client) -> None:
    x = floats(5, 2)
    answer = any_http.post("/v2/models/running/infer", content=x.tobytes(), headers=OCTETS)
    assert close(binary_outputs(answer), {"y": x.cumsum(axis=0)})
    message = refusal(any_http.post("/v2/models/running/infer", content=b"1234567", headers=OCTETS))
    assert all(words in message for words in ("7 bytes", "multiple of 8", "[-1, 2]"))


@pytest.mark.parametrize("length", [1, 7, 0])
def test_with_a_batch_axis_a_raw_body_is_one_item_of_the_length_that_it_has(
    any_http: httpx.Client, length: int
) -> None:
    x = floats(1, length)
    answer = any_http.post("/v2/models/ragged/infer", content=x.tobytes(), headers=OCTETS)
    assert close(binary_outputs(answer), ragged_answer(x))
    assert "multiple of 4" in refusal(any_http.post("/v2/models/ragged/infer", content=b"12345", headers=OCTETS))


# ── models that no invented item runs on ─────────────────────────────────────────────────────────────────────────────


def test_a_model_that_fails_on_invented_items_serves_unmeasured(any_http: httpx.Client, any_server: Server) -> None:
    x = np.array([50, 55, 41])
    assert same(json_outputs(in_json(any_http, "narrow", {"x": ("INT64", x)})), {"y": x - 50})
    assert in_json(any_http, "narrow", {"x": ("INT64", np.array([3]))}).status_code == 500
    assert "model narrow version 1 is served without having been measured" in any_server.log()


def test_longer_axes_are_tried_where_short_ones_fail(any_http: httpx.Client, any_server: Server) -> None:
    x = np.arange(120).reshape(2, 60)
    assert same(binary_outputs(binary(any_http, "late", {"x": ("INT64", x)})), {"y": x})
    assert binary(any_http, "late", {"x": ("INT64", x[:, :59])}).status_code == 500
    assert "model late version 1 is served without" not in any_server.log()


def test_every_other_model_was_measured(any_http: httpx.Client, any_server: Server) -> None:
    log = any_server.log()
    assert log.count("is served without having been measured") == 1
    assert len(any_http.get("/v2/models").json()["models"]) == log.count("is ready after")


@pytest.mark.parametrize("model", ["ragged", "words"])
def test_billions_of_items_without_elements_are_refused_at_once(any_http: httpx.Client, model: str) -> None:
    inputs = any_http.get(f"/v2/models/{model}").json()["inputs"]
    given = [{"name": t["name"], "shape": [2**33, 0], "datatype": t["datatype"], "data": []} for t in inputs]
    answer = any_http.post(f"/v2/models/{model}/infer", json={"inputs": given})
    assert answer.status_code == 400
    assert "8589934592" in answer.json()["error"]
