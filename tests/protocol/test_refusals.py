"""Requests that fit no model, or try what a server can take: shapes that overflow, names given twice, deep JSON.

C8: what Triton's own tests of its HTTP server try, and more of the same. A refusal is quick and of 400.
"""

import json
import time
from typing import Any

import httpx
import numpy as np
import pytest

from tests.protocol.exchange import Given, Parts, infer, infer_path, outputs, parts, post, refusal, tensor

DATA = [1.0, 2, 3, 4]
SECONDS = 5.0  # many times what any refusal takes


def still_answers(http: httpx.Client) -> None:
    assert outputs(infer(http, "floats", tensor("x", "FP32", [1, 4], DATA))).arrays["y"].tolist() == [DATA]


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# A product in 64 bits of each is 4, the number of elements, or 0.
WRAPPED = [
    [2**62 + 1, 4],
    [2**63 + 1, 4],
    [2**64 + 1, 4],
    [2**32, 2**32],
    [2**61, 8],
    [2**64, 1],
    [2**32 + 2, 2**33 + 2],
]
NEGATIVE = [[-1, 4], [1, -4], [-1, -4], [-4, -1], [-2, -2], [1, -1], [-(2**63), 4]]


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("model", ["floats", "variable"])
@pytest.mark.parametrize("shape", WRAPPED + NEGATIVE, ids=str)
def test_a_shape_does_not_pass_for_what_is_left_of_its_product(
    http: httpx.Client, model: str, shape: list[int], binary: bool
) -> None:
    sent = parts([Given("x", "FP32", np.array([DATA], np.float32), binary)])
    request = json.loads(sent.text)
    request["inputs"][0]["shape"] = shape
    started = time.monotonic()
    refusal(post(http, model, Parts(json.dumps(request).encode(), sent.blobs)))
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("shape", [[], [4], [4, 1], [2, 2], [1, 4, 1], [1, 1, 4], [1, 5], [0, 4], [1] * 200], ids=str)
def test_a_shape_that_is_not_the_models_is_refused(http: httpx.Client, shape: list[int]) -> None:
    refusal(infer(http, "floats", tensor("x", "FP32", shape, DATA)))


@pytest.mark.parametrize("shape", [[2**31, 4], [2**31, 0], [0, 2**40], [2**20, 0]], ids=str)
def test_a_large_shape_costs_nothing_until_its_elements_are_there(http: httpx.Client, shape: list[int]) -> None:
    started = time.monotonic()
    refusal(infer(http, "floats", tensor("x", "FP32", shape, [])))
    assert time.monotonic() - started < SECONDS


def test_inputs_with_unequal_numbers_of_rows_are_refused(http: httpx.Client) -> None:
    one, two = tensor("INPUT0", "INT32", [1, 16], [0] * 16), tensor("INPUT1", "INT32", [2, 16], [0] * 32)
    refusal(infer(http, "simple", one, two))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

GIVEN = [tensor(name, "INT32", [1, 16], [0] * 16) for name in ("INPUT0", "INPUT1")]


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        (GIVEN[:1], "INPUT1"),
        (GIVEN[1:], "INPUT0"),
        ([*GIVEN, GIVEN[0]], "INPUT0"),
        ([GIVEN[0], GIVEN[0]], "INPUT"),
        ([*GIVEN, {**GIVEN[0], "name": "INPUT2"}], "INPUT2"),
        ([GIVEN[0], {**GIVEN[1], "name": "input1"}], "input1"),
        ([GIVEN[0], {**GIVEN[1], "name": "OUTPUT0"}], "OUTPUT0"),
        ([], "INPUT0"),
    ],
    ids=["one missing", "other missing", "twice", "twice for the other", "unknown", "case", "an output's", "none"],
)
def test_each_input_is_given_once_under_its_name(http: httpx.Client, inputs: list[dict[str, Any]], name: str) -> None:
    assert name in refusal(infer(http, "simple", *inputs))


@pytest.mark.parametrize(
    "names", [["OUTPUT2"], ["OUTPUT0", "OUTPUT0"], ["OUTPUT1", "OUTPUT0", "OUTPUT1"], ["INPUT0"], ["output0"], [""]]
)
def test_an_output_is_asked_for_once_under_its_name(http: httpx.Client, names: list[str]) -> None:
    message = refusal(infer(http, "simple", *GIVEN, outputs=[{"name": name} for name in names]))
    assert names[-1] in message


# ── depth and size of JSON ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("depth", [100, 1_000, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")], ids=["arrays", "objects"])
@pytest.mark.parametrize("member", ["data", "shape", "parameters", "unknown"])
def test_deep_json_is_refused_or_ignored_and_the_server_lives(
    http: httpx.Client, member: str, begin: str, end: str, depth: int
) -> None:
    deep = begin * depth + ("1" if begin != "[" else "") + end * depth
    given = '"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]'.replace(f'"{member}":', '"other":')
    body = f'{{"inputs":[{{{given},"{member}":{deep}}}]}}'
    started = time.monotonic()
    answer = http.post(infer_path("floats"), content=body)
    assert time.monotonic() - started < SECONDS
    if answer.status_code != 200 or member in ("data", "shape"):
        refusal(answer)
    still_answers(http)


@pytest.mark.parametrize("depth", [100_000, 1_000_000])
def test_a_body_of_brackets_is_refused(http: httpx.Client, depth: int) -> None:
    refusal(http.post(infer_path("floats"), content="[" * depth))
    still_answers(http)


@pytest.mark.parametrize("digits", [20, 400, 10_000])
@pytest.mark.parametrize("model", ["identity_int64", "identity_fp64"])
def test_a_number_of_many_digits_is_refused_or_rounded(http: httpx.Client, model: str, digits: int) -> None:
    datatype = model.removeprefix("identity_").upper()
    body = f'{{"inputs":[{{"name":"x0","shape":[1],"datatype":"{datatype}","data":[{"9" * digits}]}}]}}'
    refusal(http.post(infer_path(model), content=body))  # other inputs are missing, if nothing else
    still_answers(http)


def test_many_members_and_long_names_are_only_long(http: httpx.Client) -> None:
    inputs = [tensor("x" * 10_000, "FP32", [1, 4], DATA)] * 1000
    started = time.monotonic()
    assert len(refusal(infer(http, "floats", *inputs))) < 100_000
    assert time.monotonic() - started < SECONDS


# ── the same, many times ─────────────────────────────────────────────────────────────────────────────────────────────


def test_refusals_take_no_room_from_those_who_come_after(http: httpx.Client) -> None:
    """More than any queue has places: a refused request that kept one would be noticed."""
    for _ in range(1500):
        refusal(infer(http, "floats", tensor("x", "FP32", [1, 4], DATA[:3])))
    still_answers(http)
