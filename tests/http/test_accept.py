"""Accept on POST /predict/{model}: JSON, CSV, NDJSON, or 406. The numbers are those of the JSON answer."""

import csv
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.http.test_predict import refusal
from tests.support.build_models import QUARTERS, quarters_of

CSV, NDJSON, JSON = "text/csv; charset=utf-8", "application/x-ndjson", "application/json"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)


def ask(http: httpx.Client, accept: str | None, model: str = "scores", query: str = "", **body: Any) -> httpx.Response:
    request = http.build_request("POST", f"/predict/{model}{query}", **(body or {"content": IMAGES.tobytes()}))
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    return http.send(request)


def table(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == CSV
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("APPLICATION/JSON; charset=utf-8", JSON),
        ("application/json, text/plain, */*", JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        ("text/csv", CSV),
        ("text/*", CSV),
        ("Text/CSV ; q=0.5", CSV),
        ("text/csv, */*", CSV),
        ("text/csv, */*;q=0.1", CSV),
        ("text/csv;header=present, application/json;q=0.9", CSV),
        ("text/csv;q=0.2, application/json;q=0.9", JSON),
        ("text/csv;q=0.2, application/json;q=0.1, application/x-ndjson;q=0.3", NDJSON),
        ("application/x-ndjson", NDJSON),
        ("application/json;q=0, */*", CSV),
        ("application/json;q=0, text/csv;q=0.000, */*;q=0.1", NDJSON),
        ("application/*;q=0.1, application/x-ndjson", NDJSON),
        ("image/png, text/csv;q=0.001", CSV),
        ("text/csv;q=high", CSV),
    ],
)
def test_the_weights_choose_the_form(http: httpx.Client, accept: str | None, content_type: str) -> None:
    answer = ask(http, accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/xml, text/plain", "*/*;q=0", "text/csv;q=0"])
def test_what_is_not_offered_is_406_and_the_message_lists_what_is(http: httpx.Client, accept: str) -> None:
    message = refusal(ask(http, accept), 406)
    assert accept in message
    for media_type in ("application/json", "text/csv", "application/x-ndjson"):
        assert media_type in message


def test_an_error_is_json_whatever_is_asked_for(http: httpx.Client) -> None:
    assert "multiple of 784" in refusal(ask(http, "text/csv", content=b"123"))


@pytest.mark.parametrize("query", ["", "?top_k=1", "?top_k=3"])
def test_every_form_says_the_same_of_a_classifier(http: httpx.Client, query: str) -> None:
    predictions = ask(http, "application/json", query=query).json()["predictions"]
    sums = quarters_of(IMAGES)
    assert [item["probability"] for item in predictions] == sums.max(axis=1).tolist()

    lines = ask(http, "application/x-ndjson", query=query).text.splitlines()
    assert [json.loads(line) for line in lines] == predictions

    rows = table(ask(http, "text/csv", query=query))
    n = {"?top_k=1": 1, "?top_k=3": 3}.get(query, len(QUARTERS))
    assert list(rows[0])[:2] == ["label", "probability"]
    assert list(rows[0])[2:] == [name for i in range(2, n + 1) for name in (f"label_{i}", f"probability_{i}")]
    found = [list(row.values()) for row in rows]
    assert found == [[str(cell) for best in item["top"] for cell in best.values()] for item in predictions]


def test_every_form_says_the_same_of_outputs(http: httpx.Client) -> None:
    instances = {"json": {"instances": [[1, 2, 3, 4], [250, 0, 7, 8]]}}
    assert table(ask(http, "text/csv", "echo", **instances)) == [
        {f"{name}_{i}": str(value) for name in ("same", "half") for i, value in enumerate(values[name])}
        for values in ask(http, None, "echo", **instances).json()["predictions"]
    ]
    lines = ask(http, "application/x-ndjson", "echo", **instances).text
    assert lines.endswith("\n")
    assert [json.loads(line)["same"] for line in lines.splitlines()] == instances["json"]["instances"]


def test_an_output_of_one_number_is_one_column(http: httpx.Client) -> None:
    assert ask(http, "text/csv", "picky", json={"instances": [1, 2]}).text == "y\r\n11\r\n22\r\n"


def test_numbers_that_are_not_finite_are_read_back(http: httpx.Client) -> None:
    rows = table(ask(http, "text/csv", "floats", json={"instances": [[None, 1e300], [0.5, -1e300]]}))
    values = [[float(cell) for cell in row.values()] for row in rows]
    assert np.array_equal(values, [[np.nan, np.inf], [0.5, -np.inf]], equal_nan=True)


def test_outputs_that_differ_in_size_are_json_in_a_column(any_http: httpx.Client) -> None:
    rows = table(ask(any_http, "text/csv", "ragged", json={"instances": [[1, 2], [], [3]]}))
    assert [json.loads(row["double"]) for row in rows] == [[2, 4], [], [6]]
    assert [float(row["total"]) for row in rows] == [3, 0, 3]


def test_text_is_quoted_where_it_must_be(any_http: httpx.Client) -> None:
    words = ['a,"b"', "line\nbreak", "ü"]
    rows = table(ask(any_http, "text/csv", "repeated", json={"instances": words}))
    assert [row["y"] for row in rows] == [word * 5 for word in words]
