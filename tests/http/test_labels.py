"""Several versions of a model, labels that point to them, and a split between them, as clients see it.

In one process: an engine that the test plays, and the controller's word.
"""

import csv
import gzip
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from service.frontend.head import parse_head
from service.lifecycle.routing import Routing, choose, point_of
from tests.support.versions import played

ALIASES = {"stable": "3", "canary": "4"}
CANARY = Routing(ALIASES, {"stable": 80, "canary": 20})
N = 200


def inputs(x: int) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}]}


async def ask(http: httpx.AsyncClient, where: str = "/predict/m", x: int = 7, **headers: str) -> str:
    """The version that answered, by the answer's rows, which are its own; it is also the one that the answer tells."""
    body: dict[str, Any] = inputs(x) if where.endswith("/infer") else {"instances": [[x]]}
    given = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await http.post(where, content=json.dumps(body), headers=given)
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("text/csv"):
        y, told = int([*csv.reader(answer.text.splitlines())][1][0]), answer.headers["x-model-version"]
    elif answer.headers["content-type"] == "application/x-ndjson":
        y, told = answer.json()["y"][0], answer.headers["x-model-version"]
    elif where.startswith("/v1"):
        y, told = answer.json()["predictions"][0][0], answer.headers["x-model-version"]
    elif where.startswith("/v2"):
        y, told = answer.json()["outputs"][0]["data"][0], answer.json()["model_version"]
    else:
        y, told = answer.json()["predictions"][0]["y"][0], answer.json()["version"]
    assert (str(y // 1000), y % 1000) == (told, x)
    return told


async def error_of(http: httpx.AsyncClient, where: str, status: int) -> str:
    predicts = where.startswith("/predict") or where.endswith(("infer", ":predict"))
    answer = await (http.post(where, json=inputs(1)) if predicts else http.get(where))
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"])


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "where",
    ["/predict/m/versions/{}", "/v2/models/m/versions/{}/infer", "/v1/models/m/versions/{}:predict"],
)
async def test_a_label_stands_for_its_version_in_every_prediction(where: str) -> None:
    async with played("2", "3", "4") as server:
        server.tell(Routing(ALIASES))
        for label, version in (*ALIASES.items(), ("2", "2"), ("4", "4")):
            assert await ask(server.http, where.format(label)) == version
        assert await ask(server.http, "/v1/models/m/labels/canary:predict") == "4"
        server.tell(Routing({"stable": "4", "canary": "2"}))
        assert await ask(server.http, where.format("canary")) == "2"


@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/x-ndjson"])
async def test_every_form_of_answer_tells_its_version(accept: str) -> None:
    async with played("3", "4") as server:
        assert await ask(server.http, "/predict/m/versions/3", accept=accept) == "3"
        assert await ask(server.http, "/predict/m", accept=accept) == "4"


async def test_labels_are_told_and_stand_for_their_version_in_metadata() -> None:
    async with played("3", "4") as server:
        assert (await server.http.get("/v2/models/m")).json()["parameters"]["aliases"] == {}
        server.tell(Routing(ALIASES))
        for path, version in (("", "3"), ("/versions/canary", "4"), ("/versions/4", "4")):
            metadata = (await server.http.get(f"/v2/models/m{path}")).json()
            assert metadata["versions"] == ["3", "4"]
            assert metadata["parameters"]["version"] == version
            assert metadata["parameters"]["aliases"] == ALIASES
        for path in ("ready", "config"):
            assert (await server.http.get(f"/v2/models/m/versions/canary/{path}")).status_code == 200
        stats = (await server.http.get("/v2/models/m/versions/canary/stats")).json()["model_stats"]
        assert [each["version"] for each in stats] == ["4"]
        for path in ("/v1/models/m/labels/canary", "/v1/models/m/versions/canary"):
            (status,) = (await server.http.get(path)).json()["model_version_status"]
            assert (status["version"], status["state"]) == ("4", "AVAILABLE")
            assert (await server.http.get(f"{path}/metadata")).json()["model_spec"]["version"] == "4"


@pytest.mark.parametrize(
    "where",
    [
        "/predict/m/versions/{}",
        "/v2/models/m/versions/{}/infer",
        "/v1/models/m/labels/{}:predict",
        "/v2/models/m/versions/{}",
        "/v2/models/m/versions/{}/ready",
        "/v1/models/m/labels/{}",
        "/v1/models/m/versions/{}",
    ],
)
async def test_labels_that_are_unknown_are_404_and_those_that_are_not_ready_503(where: str) -> None:
    async with played("3") as server:
        server.tell(Routing(ALIASES), v3=("READY", ""), v4=("LOADING", ""))
        message = await error_of(server.http, where.format("beta"), 404)
        assert "'beta'" in message
        assert "labels: canary, stable" in message
        assert "model 'm'" in await error_of(server.http, where.format("canary"), 503)
        server.tell(Routing({"canary": "9"}))
        assert "has no version '9'" in await error_of(server.http, where.format("canary"), 404)


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("LOADING", "", "version 4 (canary) is not ready: it is loading"),
        ("READY", "", "version 4 (canary) is not ready: it is loading"),
        ("UNLOADING", "", "version 4 (canary) is not served: it is being unloaded"),
        ("UNAVAILABLE", "golden row 3 differs", "version 4 (canary) is not served: golden row 3 differs"),
    ],
)
async def test_a_label_whose_version_is_not_ready_says_why(state: Any, reason: str, words: str) -> None:
    async with played("3") as server:
        server.tell(Routing(ALIASES), v4=(state, reason))
        answer = await server.http.post("/v2/models/m/versions/canary/infer", json=inputs(1))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"] == f"model 'm' {words}"


async def test_a_body_that_is_not_there_yet_is_waited_for_where_the_version_answers() -> None:
    async with played("3") as server:
        server.tell(Routing(ALIASES))
        for version, refused in (("stable", False), ("3", False), ("canary", True), ("beta", True)):
            head = parse_head(b"POST /predict/m/versions/%s HTTP/1.1\r\nContent-Length: 9" % version.encode())
            assert head is not None
            assert server.frontend.would_refuse(head) == refused


# ── who answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_without_a_version_goes_to_stable_where_that_is_ready_and_else_to_the_newest() -> None:
    async with played("2", "3") as server:
        assert await ask(server.http) == "3"
        server.tell(Routing({"stable": "2"}))
        assert await ask(server.http) == "2"
        server.tell(Routing({"stable": "7"}))
        assert await ask(server.http) == "3"
        await server.engine.announce("m", "7", "8")
        assert await ask(server.http) == "7"
        server.tell(Routing({"other": "2"}))
        assert await ask(server.http) == "8"


@pytest.mark.parametrize("where", ["/predict/m", "/v2/models/m/infer", "/v1/models/m:predict"])
async def test_a_split_spreads_requests_by_its_weights(where: str) -> None:
    async with played("2", "3", "4") as server:
        server.tell(CANARY)
        seen = Counter([await ask(server.http, where, x) for x in range(N)])
        assert seen.keys() == {"3", "4"}
        assert 8 <= seen["4"] <= 80, "40 are expected, with a deviation of 5.7"
        assert await ask(server.http, "/v2/models/m/versions/2/infer") == "2"


async def test_a_split_leaves_out_what_is_not_ready_until_it_is() -> None:
    async with played("3", "5") as server:
        server.tell(Routing(ALIASES, {"stable": 1, "canary": 999}))
        assert {await ask(server.http) for _ in range(20)} == {"3"}
        await server.engine.announce("m", "4")
        assert "4" in {await ask(server.http) for _ in range(20)}
        server.tell(Routing(ALIASES, {"7": 1}))
        assert await ask(server.http) == "3", "stable, as nothing that the split names is ready"


async def test_a_header_decides_for_all_routes_alike_and_by_the_weights() -> None:
    async with played("3", "4") as server:
        routing = Routing(ALIASES, {"stable": 50, "canary": 50}, "header:X-User")
        server.tell(routing)
        seen = set()
        for user in ("anna", "ben", "cleo", "dora", "emil", "fritz"):
            expected = choose(routing, ("3", "4"), point_of(user.encode()))
            for where in ("/predict/m", "/v2/models/m/infer", "/v1/models/m:predict"):
                assert await ask(server.http, where, x_user=user) == expected
            seen.add(expected)
        assert seen == {"3", "4"}
        assert len({await ask(server.http) for _ in range(60)}) == 2, "who does not send it goes by chance"


async def test_the_body_decides_however_it_is_compressed() -> None:
    async with played("3", "4") as server:
        routing = Routing(ALIASES, {"stable": 50, "canary": 50}, "body")
        server.tell(routing)
        seen = set()
        for x in range(12):
            body = json.dumps(inputs(x)).encode()
            expected = choose(routing, ("3", "4"), point_of(body))
            for packed, headers in ((body, {}), (gzip.compress(body), {"content-encoding": "gzip"})):
                answer = await server.http.post("/v2/models/m/infer", content=packed, headers=headers)
                assert answer.json()["model_version"] == expected
            seen.add(expected)
        assert seen == {"3", "4"}


async def test_other_models_are_not_touched_by_a_split() -> None:
    async with played("3", "4") as server:
        await server.engine.announce("other", "1", "2")
        server.tell(CANARY)
        assert {await ask(server.http, "/predict/other") for _ in range(20)} == {"2"}


# ── states ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_index_tells_every_state_and_ready_only_of_what_answers_here() -> None:
    async with played("2", "3", "10") as server:
        await server.engine.refuse("m", "1", "damaged")
        await server.engine.refuse("m", "5", "damaged at first")
        server.tell(
            None,
            v2=("UNLOADING", ""),
            v3=("LOADING", ""),
            v4=("READY", ""),
            v5=("LOADING", ""),
            v6=("UNAVAILABLE", "golden row 3 differs"),
        )
        index = (await server.http.post("/v2/repository/index")).json()
        assert [(each["version"], each["state"], each["reason"]) for each in index] == [
            ("1", "UNAVAILABLE", "damaged"),
            ("2", "UNLOADING", ""),
            ("3", "READY", ""),
            ("4", "LOADING", ""),
            ("5", "LOADING", ""),
            ("6", "UNAVAILABLE", "golden row 3 differs"),
            ("10", "READY", ""),
        ]
        ready = (await server.http.post("/v2/repository/index", json={"ready": True})).json()
        assert [each["version"] for each in ready] == ["3", "10"]
        status = (await server.http.get("/v1/models/m")).json()["model_version_status"]
        assert [(each["version"], each["state"]) for each in status] == [
            ("10", "AVAILABLE"),
            ("6", "END"),
            ("5", "LOADING"),
            ("4", "LOADING"),
            ("3", "AVAILABLE"),
            ("2", "UNLOADING"),
            ("1", "END"),
        ]
        assert server.engines.failures == {("m", "1"): "damaged", ("m", "6"): "golden row 3 differs"}


async def test_a_model_of_which_no_version_is_ready_says_what_its_newest_does() -> None:
    async with played() as server:
        server.tell(None, v3=("UNAVAILABLE", "damaged"), v4=("LOADING", ""))
        assert await error_of(server.http, "/predict/m", 503) == "model 'm' version 4 is not ready: it is loading"
        server.tell(None, v3=("UNAVAILABLE", "damaged"))
        assert await error_of(server.http, "/predict/m", 503) == "model 'm' version 3 is not served: damaged"
