"""The classification extension: outputs as their best classes."""

import json
from typing import Any

import httpx
import pytest

from tests.http.test_infer_json import infer, outputs_of, refusal, tensor

LENGTH = "inference-header-content-length"


def best(k: Any, name: str = "votes", **more: Any) -> list[dict[str, Any]]:
    return [{"name": name, "parameters": {"classification": k, **more}}]


def test_classes_come_back_best_first_with_value_index_and_label(http: httpx.Client) -> None:
    answer = infer(http, "votes", tensor([3, 200, 9, 7, 7, 1], [2, 3]), outputs=best(2))
    labels = http.get("/v2/models/votes").json()["parameters"]["labels"]
    assert len(labels) == 3
    assert outputs_of(answer)["votes"] == {
        "name": "votes",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": [f"200:1:{labels[1]}", f"9:2:{labels[2]}", f"7:0:{labels[0]}", f"7:1:{labels[1]}"],
    }


def test_more_classes_than_there_are_give_all_and_floats_six_digits(http: httpx.Client) -> None:
    output = outputs_of(infer(http, "echo", tensor([1, 4, 3, 2], [1, 4]), outputs=best(9, "half")))["half"]
    assert output["shape"] == [1, 4]
    assert output["data"] == ["2.000000:1", "1.500000:2", "1.000000:3", "0.500000:0"]


def test_nan_is_the_last_class(http: httpx.Client) -> None:
    outputs = outputs_of(infer(http, "floats", tensor([None, 1.0], [1, 2], "FP32"), outputs=best(2, "y")))
    assert outputs["y"]["data"] == ["1.000000:1", "nan:0"]


def test_binary_classes_have_their_lengths_in_front(http: httpx.Client) -> None:
    outputs = [*best(1, "half", binary_data=True), {"name": "same"}]
    answer = infer(http, "echo", tensor([1, 2, 3, 40], [1, 4]), outputs=outputs)
    length = int(answer.headers[LENGTH])
    head = json.loads(answer.content[:length])
    assert head["outputs"][0] == {
        "name": "half",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": 15},
    }
    assert answer.content[length:] == b"\x0b\0\0\0" + b"20.000000:3"
    assert head["outputs"][1]["data"] == [1, 2, 3, 40]


def test_none_asks_for_the_output_as_it_is(http: httpx.Client) -> None:
    outputs = outputs_of(infer(http, "echo", tensor([1, 2, 3, 4], [1, 4]), outputs=best(0, "same")))
    assert outputs["same"]["datatype"] == "UINT8"


@pytest.mark.parametrize("k", [-1, 1.5, "3", True, []])
def test_a_count_that_is_none_is_refused(http: httpx.Client, k: Any) -> None:
    message = refusal(infer(http, "echo", tensor([1, 2, 3, 4], [1, 4]), outputs=best(k, "same")))
    assert "parameters.classification" in message
    assert "'same'" in message


def test_outputs_of_items_that_differ_in_size(any_http: httpx.Client) -> None:
    given = tensor([1.0, 3.0, 2.0, 9.0, 7.0, 8.0], [2, 3], "FP32")
    outputs = outputs_of(infer(any_http, "ragged", given, outputs=best(2, "double")))
    assert outputs["double"]["shape"] == [2, 2]
    assert outputs["double"]["data"] == ["6.000000:1", "4.000000:2", "18.000000:0", "16.000000:2"]


def test_a_model_without_a_batch_axis_has_one_item(any_http: httpx.Client) -> None:
    given = tensor([1.0, 3.0, 2.0, 9.0, 7.0, 8.0], [3, 2], "FP32")
    outputs = outputs_of(infer(any_http, "fixed", given, outputs=best(2, "y")))
    assert outputs["y"]["shape"] == [2]
    assert outputs["y"]["data"] == ["18.000000:3", "16.000000:5"]


def test_strings_have_no_order(any_http: httpx.Client) -> None:
    message = refusal(infer(any_http, "repeated", tensor(["a"], [1], "BYTES"), outputs=best(1, "y")))
    assert "BYTES" in message
    assert "'y'" in message


def test_classes_of_no_rows_are_none(http: httpx.Client) -> None:
    answer = infer(http, "echo", tensor([], [0, 4]), outputs=best(2, "half"))
    assert outputs_of(answer)["half"] == {"name": "half", "datatype": "BYTES", "shape": [0, 2], "data": []}


def test_classes_of_no_rows_where_the_input_differs_in_size(any_http: httpx.Client) -> None:
    answer = infer(any_http, "pictures", tensor([], [0, 2, 2, 3]), outputs=best(2, "mean"))
    assert outputs_of(answer)["mean"]["shape"] == [0, 2]
