"""Requests whose tensors have no row: answered at once, with outputs that have none either."""

import httpx
import numpy as np
import pytest

from models.manifest import Datatype
from tests.http.test_infer_json import infer, refusal, tensor
from tests.support.build_any import ITEM_SHAPES
from tests.support.server import Server
from tests.support.tensors import binary, binary_outputs, in_json, json_outputs, values
from tests.support.wire import Wire

FIXED_SIZE: list[Datatype] = ["BOOL", "UINT8", "INT64", "FP16", "FP32", "BYTES"]


@pytest.mark.parametrize("datatype", FIXED_SIZE)
def test_outputs_keep_datatype_and_item_shape(any_http: httpx.Client, datatype: str) -> None:
    inputs = {
        f"x{i}": (datatype, values(datatype, (0, *shape), np.random.default_rng(0)))
        for i, shape in enumerate(ITEM_SHAPES)
    }
    for outputs in (
        binary_outputs(binary(any_http, f"all-{datatype}", inputs)),
        json_outputs(in_json(any_http, f"all-{datatype}", inputs)),
    ):
        assert [outputs[f"y{i}"].shape for i in range(len(ITEM_SHAPES))] == [(0, *shape) for shape in ITEM_SHAPES]


def test_all_of_an_answer_is_there_but_rows(http: httpx.Client) -> None:
    answer = infer(http, "two", tensor([], [0, 3], "FP32", "a"), tensor([[]], [0, 2], "INT32", "b"), id="none")
    assert answer.json() == {
        "model_name": "two",
        "model_version": "1",
        "id": "none",
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": [0], "data": []},
            {"name": "negated", "datatype": "INT32", "shape": [0, 2], "data": []},
        ],
    }
    assert 'batch;desc="0"' in answer.headers["server-timing"]


def test_all_inputs_or_none(http: httpx.Client) -> None:
    a, b = tensor([], [0, 3], "FP32", "a"), tensor([1, 2], [1, 2], "INT32", "b")
    assert "{'a': 0, 'b': 1}" in refusal(infer(http, "two", a, b))


def test_what_only_a_run_can_tell_is_refused_and_the_rest_answered(any_http: httpx.Client) -> None:
    x = tensor([], [0, 5], "FP32")
    message = refusal(infer(any_http, "ragged", x))
    assert all(words in message for words in ("no row", "'double'", "[n, -1]"))
    total = infer(any_http, "ragged", x, outputs=[{"name": "total"}]).json()["outputs"]
    assert total == [{"name": "total", "datatype": "FP32", "shape": [0], "data": []}]


def test_plain_json_and_raw_bodies_have_at_least_one_item(http: httpx.Client) -> None:
    assert "at least one" in refusal(http.post("/predict/echo", json={"instances": []}))
    refusal(http.post("/predict/echo", content=b"", headers={"content-type": "application/octet-stream"}))
    refusal(http.post("/v2/models/echo/infer", content=b"", headers={"content-type": "application/octet-stream"}))


def test_classes_of_no_row_are_none(http: httpx.Client, any_http: httpx.Client) -> None:
    asked = [{"name": "same", "parameters": {"classification": 2}}]
    (output,) = infer(http, "echo", tensor([], [0, 4]), outputs=asked).json()["outputs"]
    assert output == {"name": "same", "datatype": "BYTES", "shape": [0, 2], "data": []}
    asked = [{"name": "double", "parameters": {"classification": 2}}]
    assert "no row" in refusal(infer(any_http, "ragged", tensor([], [0, 4], "FP32"), outputs=asked))


@pytest.mark.parametrize("chunked", [False, True])
def test_the_connection_goes_on_and_no_slot_is_held(server: Server, chunked: bool) -> None:
    body = b'{"inputs":[{"name":"x","shape":[0,4],"datatype":"UINT8","data":[]}]}'
    with Wire(server) as wire:
        for _ in range(3):
            if chunked:
                framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
                wire.send(
                    b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
                )
            else:
                wire.post("/v2/models/echo/infer", body)
            assert [output["shape"] for output in wire.answer().json()["outputs"]] == [[0, 4], [0, 4]]
    server.assert_settled()
