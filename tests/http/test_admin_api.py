"""The admin API: who is let in on which port, what each route asks of the controller, and what it refuses."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from service.errors import ControllerGone, LoadRefused, VersionInUse
from service.lifecycle.messages import (
    Command,
    LoadModel,
    MoveAlias,
    Promote,
    SetGuard,
    SetLogLevel,
    SetShadow,
    SetSplit,
    UnloadModel,
)
from service.lifecycle.routing import Guard, Shadow
from tests.http.conftest import Serve
from tests.support.admin import KEY, AdminServer, admin_server

EXPLICIT = ("--control.mode", "explicit")
BEARER = {"authorization": f"Bearer {KEY}"}

Request = tuple[str, str, object]
Start = Callable[..., AdminServer]

CHANGES: list[tuple[Request, Command]] = [
    (("POST", "/admin/models/echo/load", None), LoadModel("echo")),
    (("POST", "/admin/models/echo/load", {}), LoadModel("echo")),
    (("POST", "/admin/models/echo/load", {"version": "1"}), LoadModel("echo", "1")),
    (("POST", "/admin/models/echo/unload", None), UnloadModel("echo")),
    (("POST", "/admin/models/echo/unload", {"version": "2"}), UnloadModel("echo", "2")),
    (("PUT", "/admin/models/echo/aliases/canary", {"version": "2"}), MoveAlias("echo", "canary", "2")),
    (("DELETE", "/admin/models/echo/aliases/canary", None), MoveAlias("echo", "canary", None)),
    (("PUT", "/admin/models/echo/split", {"weights": {"2": 9, "canary": 1}}), SetSplit("echo", {"2": 9, "canary": 1})),
    (
        ("PUT", "/admin/models/echo/split", {"weights": {"2": 1}, "sticky": "header:x-user"}),
        SetSplit("echo", {"2": 1}, "header:x-user"),
    ),
    (("DELETE", "/admin/models/echo/split", None), SetSplit("echo", {})),
    (("PUT", "/admin/models/echo/shadow", {"target": "1"}), SetShadow("echo", Shadow("1"))),
    (("PUT", "/admin/models/echo/shadow", {"target": "1", "sample": 0.5}), SetShadow("echo", Shadow("1", 0.5))),
    (("DELETE", "/admin/models/echo/shadow", None), SetShadow("echo", None)),
    (("PUT", "/admin/models/echo/guard", {}), SetGuard("echo", Guard())),
    (
        ("PUT", "/admin/models/echo/guard", {"alias": "new", "max_error_rate": None, "max_latency_ratio": 1.5}),
        SetGuard("echo", Guard("new", None, 1.5)),
    ),
    (("DELETE", "/admin/models/echo/guard", None), SetGuard("echo", None)),
    (("POST", "/admin/models/echo/promote", None), Promote("echo")),
    (("POST", "/admin/models/echo/promote", {"alias": "new", "to": "old"}), Promote("echo", "new", "old")),
]
OTHERS: list[Request] = [
    ("GET", "/admin/models", None),
    ("GET", "/admin/models/echo", None),
    ("PUT", "/admin/log-level", {"level": "debug"}),
    ("POST", "/admin/drain", None),
]
CONTROL: list[Request] = [
    ("POST", f"/v2/repository{repository}/models/echo/{verb}", None)
    for repository in ("", "/any")
    for verb in ("load", "unload")
]
ALL = [request for request, _ in CHANGES] + OTHERS


def named(request: Request) -> str:
    return " ".join(str(part) for part in request)


@pytest.fixture(scope="module")
def open_server() -> Iterator[AdminServer]:
    """Without a key, on loopback."""
    with admin_server(*EXPLICIT) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[AdminServer]:
    """With a key, on both ports."""
    with admin_server(*EXPLICIT, "--admin.key", KEY, "--admin.public", "true") as server:
        yield server


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda *flags: stack.enter_context(admin_server(*flags))


def ask(url: str, request: Request, **more: object) -> httpx.Response:
    method, path, body = request
    return httpx.request(method, url + path, json=body, trust_env=False, **more)  # type: ignore[arg-type]


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "command"), CHANGES, ids=lambda value: named(value) if isinstance(value, tuple) else ""
)
def test_a_change_is_asked_of_the_controller_and_answered_with_what_then_holds(
    open_server: AdminServer, request_: Request, command: Command
) -> None:
    answer = ask(open_server.admin, request_)
    assert answer.status_code == 200, answer.text
    assert open_server.asked[-1] == command
    assert answer.json() == ask(open_server.admin, ("GET", "/admin/models/echo", None)).json()


def test_a_model_is_told_with_its_versions_in_order_and_its_routing(start: Start) -> None:
    server = start()
    url = server.admin
    ask(url, ("PUT", "/admin/models/echo/aliases/stable", {"version": "2"}))
    told = ask(url, ("GET", "/admin/models", None)).json()["models"]
    assert [model["name"] for model in told] == ["echo", "other"]
    assert told[0] == {
        "name": "echo",
        "versions": [
            {"version": "1", "state": "UNAVAILABLE", "reason": "not loaded"},
            {"version": "2", "state": "READY", "reason": ""},
            {"version": "10", "state": "UNAVAILABLE", "reason": "golden row 3 differs"},
        ],
        "routing": {
            "aliases": {"stable": "2"},
            "split": {},
            "sticky": "",
            "shadow": None,
            "guard": None,
            "rolled_back": "",
        },
    }


def test_the_log_level_is_set_by_the_controller(open_server: AdminServer) -> None:
    answer = ask(open_server.admin, ("PUT", "/admin/log-level", {"level": "warning"}))
    assert (answer.status_code, answer.json()) == (200, {"level": "warning"})
    assert open_server.asked[-1] == SetLogLevel("warning")


def test_drain_is_accepted_and_begins(start: Start) -> None:
    server = start()
    answer = ask(server.admin, ("POST", "/admin/drain", None))
    assert (answer.status_code, answer.json()) == (202, {"draining": True})
    assert server.drained.is_set()


@pytest.mark.parametrize("request_", CONTROL, ids=named)
@pytest.mark.parametrize("body", [b"", b"{}", b'{"parameters": {}}'])
def test_a_client_of_triton_loads_and_unloads(open_server: AdminServer, request_: Request, body: bytes) -> None:
    answer = httpx.post(open_server.admin + request_[1], content=body, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"")
    kind = LoadModel if request_[1].endswith("/load") else UnloadModel
    assert open_server.asked[-1] == kind("echo")


def test_unload_takes_tritons_word_on_dependents(open_server: AdminServer) -> None:
    body = {"parameters": {"unload_dependents": True}}
    answer = ask(open_server.admin, ("POST", "/v2/repository/models/echo/unload", body))
    assert answer.status_code == 200
    assert open_server.asked[-1] == UnloadModel("echo")


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (("PUT", "/admin/models/echo/aliases/canary", {"version": 3}), "version: Expected `str`, got `int`"),
        (("PUT", "/admin/models/echo/aliases/canary", {}), "missing required field `version`"),
        (("PUT", "/admin/models/echo/aliases/canary", {"version": "3", "to": "4"}), "unknown field `to`"),
        (("PUT", "/admin/models/echo/aliases/3", {"version": "3"}), "alias '3': expected"),
        (("PUT", "/admin/models/echo/aliases/a%20b", {"version": "3"}), "alias 'a b': expected"),
        (("PUT", "/admin/models/echo/split", {"weights": {}}), "weights: Expected `object` of length >= 1"),
        (("PUT", "/admin/models/echo/split", {"weights": {"2": -1}}), "weights"),
        (("PUT", "/admin/models/echo/split", {"weights": {"2": 0}}), "weights: expected one above 0"),
        (("PUT", "/admin/models/echo/split", {"weights": {"2": 1}, "sticky": "cookie"}), "sticky: expected"),
        (("PUT", "/admin/models/echo/split", {"weights": {"2": 1}, "sticky": "header:"}), "sticky: expected"),
        (("PUT", "/admin/models/echo/shadow", {"target": "1", "sample": 1.5}), "sample"),
        (("PUT", "/admin/models/echo/guard", {"max_error_rate": 2}), "max_error_rate"),
        (("PUT", "/admin/models/echo/guard", {"min_requests": 0}), "min_requests"),
        (("POST", "/admin/models/echo/promote", {"from": "canary"}), "unknown field `from`"),
        (("POST", "/admin/models/echo/promote", {"to": "3"}), "alias '3': expected"),
        (("POST", "/admin/models/echo/load", {"version": ""}), "version"),
        (("PUT", "/admin/log-level", {"level": "loud"}), "'loud'"),
        (("PUT", "/admin/log-level", {}), "missing required field `level`"),
        (("POST", "/v2/repository/models/echo/load", {"parameters": {"colour": 1}}), "parameters.colour"),
        (("POST", "/v2/repository/models/echo/load", {"parameters": 3}), "the load request: Expected `object`"),
        (("POST", "/v2/repository/models/echo/load", {"parameters": {"unload_dependents": True}}), "no such parameter"),
    ],
    ids=lambda value: named(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_fit_is_named_and_never_asked(open_server: AdminServer, request_: Request, said: str) -> None:
    before = len(open_server.asked)
    assert said in refusal(ask(open_server.admin, request_), 400)
    assert len(open_server.asked) == before


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx"])
def test_models_are_not_changed_on_their_way(open_server: AdminServer, name: str) -> None:
    request = ("POST", "/v2/repository/models/echo/load", {"parameters": {name: "{}"}})
    assert f"parameters.{name}" in refusal(ask(open_server.admin, request), 501)


@pytest.mark.parametrize("path", ["/admin/models/echo/split", "/admin/models/echo/promote", "/admin/log-level"])
@pytest.mark.parametrize("body", [b'{"weights": ', b"\xff\xfe", b"[" * 100_000, b"7", b'"split"'])
def test_a_body_that_is_no_object_is_refused(open_server: AdminServer, path: str, body: bytes) -> None:
    method = "POST" if path.endswith("promote") else "PUT"
    refusal(httpx.request(method, open_server.admin + path, content=body, trust_env=False), 400)


@pytest.mark.parametrize("request_", ALL[:-2], ids=named)
def test_a_model_that_is_not_there_is_404(open_server: AdminServer, request_: Request) -> None:
    method, path, body = request_
    if path != "/admin/models":
        answer = ask(open_server.admin, (method, path.replace("echo", "nothing"), body))
        assert "'nothing'" in refusal(answer, 404)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (VersionInUse("the alias 'stable' names it"), 409),
        (LoadRefused("golden row 3 differs"), 400),
        (ControllerGone("the controller is not there; try again"), 503),
    ],
)
@pytest.mark.parametrize("path", ["/admin/models/echo/unload", "/v2/repository/models/echo/unload"])
def test_what_the_controller_refuses_is_told_in_its_words(
    open_server: AdminServer, error: Exception, status: int, path: str
) -> None:
    open_server.controls.refusal = error  # type: ignore[assignment]
    assert refusal(ask(open_server.admin, ("POST", path, None)), status) == str(error)


@pytest.mark.parametrize(("mode", "word"), [("none", "at the start"), ("poll", "watched")])
def test_models_are_loaded_by_request_in_explicit_mode_alone(start: Start, mode: str, word: str) -> None:
    server = start("--control.mode", mode)
    for method, path, body in [*CONTROL, *ALL]:
        answer = ask(server.admin, (method, path, body))
        if path.endswith(("load", "unload")):
            said = refusal(answer, 403)
            for words in (f"model control is {mode!r}", word, "--control.mode explicit", "'echo'"):
                assert words in said
        else:
            assert answer.status_code < 300, path
    assert not any(isinstance(command, (LoadModel, UnloadModel)) for command in server.asked)


# ── who is let in ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("request_", [*ALL, ("GET", "/admin", None), ("PATCH", "/admin/models", None)], ids=named)
@pytest.mark.parametrize("slashes", ["/", "//"])
def test_the_public_port_has_no_admin_api(open_server: AdminServer, request_: Request, slashes: str) -> None:
    method, path, body = request_
    before = len(open_server.asked)
    path = path.replace("/", slashes)
    said = refusal(ask(open_server.url, (method, path, body)), 404)
    assert said == refusal(ask(open_server.url, (method, path.replace("admin", "nothing"), body)), 404).replace(
        "nothing", "admin"
    ), "nothing tells it from a path that does not exist"
    assert len(open_server.asked) == before
    assert not open_server.drained.is_set() or request_[1] != "/admin/drain"


@pytest.mark.parametrize("request_", CONTROL, ids=named)
def test_on_the_public_port_loading_says_what_to_set(open_server: AdminServer, request_: Request) -> None:
    before = len(open_server.asked)
    said = refusal(ask(open_server.url, request_), 403)
    for words in ("'echo'", "--admin.port", "admin.public"):
        assert words in said
    assert len(open_server.asked) == before


@pytest.mark.parametrize("request_", [*ALL, *CONTROL], ids=named)
@pytest.mark.parametrize("port", ["url", "admin"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"authorization": f"Bearer {KEY}x"}, None],
    ids=["none", "bare", "basic", "longer", "shorter"],
)
def test_nothing_is_done_without_the_key(
    locked: AdminServer, request_: Request, port: str, headers: dict[str, str] | None
) -> None:
    if headers is None:
        headers = {"authorization": f"Bearer {KEY[:-1]}"}
    answer = ask(getattr(locked, port), request_, headers=headers)
    assert "key" in refusal(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text
    assert not locked.drained.is_set()


@pytest.mark.parametrize("port", ["url", "admin"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_key_all_is_as_without_one(locked: AdminServer, port: str, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {KEY}"}
    for request in (*CONTROL, *(request for request, _ in CHANGES), *OTHERS[:-1]):
        answer = ask(getattr(locked, port), request, headers=headers)
        assert answer.status_code == 200, answer.text


def test_who_comes_without_the_key_is_logged_and_the_key_is_not(
    locked: AdminServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(locked.url, ("GET", "/admin/models", None), headers={"authorization": f"Bearer wrong-{KEY}"})
        ask(locked.url, ("GET", "/admin/models", None), headers=BEARER)
    (line,) = [record for record in caplog.records if record.name == "service.frontend.auth"]
    assert line.levelname == "WARNING"
    assert "'/admin/models' from 127.0.0.1" in line.getMessage()
    assert KEY not in caplog.text


def test_the_document_knows_of_the_key_and_does_not_have_it(locked: AdminServer) -> None:
    for path in ("/docs/openapi.json", "/docs", "/v2", "/metrics"):
        assert KEY not in httpx.get(locked.url + path, headers=BEARER, trust_env=False).text
    document = httpx.get(locked.url + "/docs/openapi.json", trust_env=False).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/admin/drain"]["post"]["security"] == [{"key": []}]
    body = document["paths"]["/admin/models/{model_name}/load"]["post"]["requestBody"]
    assert not body.get("required", False)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://evil.example:{port}", "http://127.0.0.1:1", "null"])
def test_the_page_of_another_site_is_not_let_in_by_a_browser_here(open_server: AdminServer, origin: str) -> None:
    origin = origin.format(port=open_server.settings.admin.port)
    before = len(open_server.asked)
    for request in (CHANGES[0][0], CONTROL[0], ("POST", "/admin/drain", None)):
        assert "another site" in refusal(ask(open_server.admin, request, headers={"origin": origin}), 401)
    assert len(open_server.asked) == before
    own = {"origin": open_server.admin.replace("127.0.0.1", "localhost")}
    assert ask(open_server.admin, CHANGES[0][0], headers=own).status_code == 200


def test_a_host_header_does_not_make_a_port_the_other(open_server: AdminServer) -> None:
    host = {"host": open_server.admin.removeprefix("http://")}
    refusal(ask(open_server.url, ("GET", "/admin/models", None), headers=host), 404)


def test_the_extension_is_listed_where_it_works(open_server: AdminServer, locked: AdminServer, start: Start) -> None:
    def listed(url: str) -> bool:
        return "model_repository" in httpx.get(f"{url}/v2", trust_env=False).json()["extensions"]

    assert (listed(open_server.url), listed(open_server.admin)) == (False, True)
    assert (listed(locked.url), listed(locked.admin)) == (True, True)
    without = start("--control.mode", "poll")
    assert (listed(without.url), listed(without.admin)) == (False, False)


# ── the real server ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("frontends", ["0", "2"])
def test_the_server_has_an_admin_port_of_its_own_and_ends_by_it(
    serve: Serve, only: Callable[..., object], frontends: str
) -> None:
    server = serve("--admin.port", "0", "--frontends", frontends, models=only("echo"))
    (admin,) = [line.split()[-1] for line in server.printed if line.startswith("  admin ")]
    for _ in range(8):  # connections of their own, which the kernel gives to either frontend
        assert ask(admin, ("GET", "/admin/models", None)).status_code == 200
        refusal(ask(server.url, ("GET", "/admin/models", None)), 404)
        for url in (admin, server.url):
            octets = {"content-type": "application/octet-stream"}
            answer = httpx.post(f"{url}/predict/echo", content=b"1234", headers=octets, trust_env=False)
            assert answer.status_code == 200, "predictions are answered on both"
    assert ask(admin, ("POST", "/admin/drain", None)).status_code == 202
    server.signalled = True
    assert server.wait() == 0


def test_an_admin_port_that_is_taken_is_named(serve: Serve, only: Callable[..., object]) -> None:
    models = only("echo")
    taken = serve("--admin.port", "0", models=models)
    (admin,) = [line.rpartition(":")[2] for line in taken.printed if line.startswith("  admin ")]
    with pytest.raises(AssertionError, match=f"127.0.0.1 port {admin}.*--admin.port"):
        serve("--admin.port", admin, models=models)


def test_a_frontend_whose_supervisor_is_gone_signals_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.frontend.process import drain_by

    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    monkeypatch.setattr(os, "getppid", lambda: 41)
    drain = drain_by(41)
    drain()
    assert sent == [(41, signal.SIGTERM)]
    monkeypatch.setattr(os, "getppid", lambda: 1)
    drain()
    assert len(sent) == 1
