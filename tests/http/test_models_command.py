"""`python -m service models` against a real server: what each command asks, what it prints, and when it is refused."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import VersionInUse
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
from service.models_command import main
from tests.support.admin import KEY, AdminServer, admin_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_ADMIN__KEY", raising=False)


@pytest.fixture
def server() -> Iterator[AdminServer]:
    with admin_server("--control.mode", "explicit") as server:
        yield server


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("load echo", LoadModel("echo")),
        ("load echo 2", LoadModel("echo", "2")),
        ("unload echo", UnloadModel("echo")),
        ("unload echo 2", UnloadModel("echo", "2")),
        ("alias echo canary 2", MoveAlias("echo", "canary", "2")),
        ("alias echo canary --remove", MoveAlias("echo", "canary", None)),
        ("split echo stable=0.9 canary=0.1", SetSplit("echo", {"stable": 0.9, "canary": 0.1})),
        ("split echo 2=1 --sticky header:x-user", SetSplit("echo", {"2": 1.0}, "header:x-user")),
        ("split echo --remove", SetSplit("echo", {})),
        ("shadow echo canary --sample 0.25", SetShadow("echo", Shadow("canary", 0.25))),
        ("shadow echo --remove", SetShadow("echo", None)),
        ("guard echo", SetGuard("echo", Guard())),
        (
            "guard echo --alias new --max-error-rate 0.1 --max-latency-ratio 2 --max-disagreement 0.05 "
            "--min-requests 10 --window-s 5",
            SetGuard("echo", Guard("new", 0.1, 2.0, 0.05, 10, 5.0)),
        ),
        ("guard echo --remove", SetGuard("echo", None)),
        ("promote echo", Promote("echo")),
        ("promote echo --alias new --to old", Promote("echo", "new", "old")),
        ("log-level debug", SetLogLevel("debug")),
    ],
)
def test_a_command_asks_what_it_says(
    server: AdminServer, capsys: pytest.CaptureFixture[str], line: str, command: Command
) -> None:
    assert main([*line.split(), "--url", server.admin]) == 0
    assert server.asked == [command]
    printed = capsys.readouterr()
    assert printed.err == ""
    assert ("debug" if "log-level" in line else "echo") in printed.out


def test_drain_ends_the_service(server: AdminServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "--url", server.admin]) == 0
    assert server.drained.is_set()
    assert capsys.readouterr().out == "draining true\n"


def test_the_list_is_a_table(server: AdminServer, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "alias echo stable 2",
        "alias echo canary 10",
        "split echo stable=9 canary=1 --sticky body",
        "shadow echo 1",
        "guard echo --max-latency-ratio 2",
    ):
        assert main([*line.split(), "--url", server.admin]) == 0
    capsys.readouterr()
    assert main(["list", "--url", server.admin + "/"]) == 0
    assert capsys.readouterr().out == (
        "MODEL  VERSION  STATE        ALIASES  SPLIT  REASON\n"
        "echo   1        UNAVAILABLE                  not loaded\n"
        "echo   2        READY        stable   0.9\n"
        "echo   10       UNAVAILABLE  canary   0.1    golden row 3 differs\n"
        "other  1        READY\n"
        "echo: sticky by body\n"
        "echo: shadow: target 1, sample 1.0\n"
        "echo: guard: alias canary, max_error_rate 0.01, max_latency_ratio 2.0, min_requests 100, window_s 60.0\n"
    )
    assert main(["list", "other", "--url", server.admin]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["MODEL", "other"]


def test_json_is_the_servers_answer(server: AdminServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "--url", server.admin]) == 0
    assert [model["name"] for model in json.loads(capsys.readouterr().out)["models"]] == ["echo", "other"]
    assert main(["load", "echo", "1", "--json", "--url", server.admin]) == 0
    assert json.loads(capsys.readouterr().out)["versions"][0] == {"version": "1", "state": "READY", "reason": ""}


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def refused(line: str, url: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is said of it."""
    assert main([*line.split(), "--url", url]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (said,) = printed.err.splitlines()
    return said


def test_the_servers_reason_is_told(server: AdminServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("load nothing", server.admin, capsys) == "404: no model 'nothing'"
    server.controls.refusal = VersionInUse("the alias 'stable' names version 2")
    assert refused("unload echo 2", server.admin, capsys) == "409: the alias 'stable' names version 2"
    assert refused("alias echo 3 2", server.admin, capsys).startswith("400: alias '3': expected")
    assert refused("alias a/b c 2", server.admin, capsys).startswith("404: ")


def test_the_public_port_is_told_from_the_admin_port(server: AdminServer, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("list", server.url, capsys)
    for words in (server.url, "no admin API", "--admin.port"):
        assert words in said


def test_where_nobody_listens_it_says_what_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    said = refused("list", url, capsys)
    for words in (f"cannot connect to {url}", "--admin.port"):
        assert words in said


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert f"cannot connect to {url}" in refused("list", url, capsys)


def test_the_key_is_read_from_a_file_or_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with admin_server("--admin.key", KEY) as server:
        said = refused("list", server.admin, capsys)
        for words in ("401", "--key-file", "SHOAL_ADMIN__KEY"):
            assert words in said
        assert main(["list", "--url", server.admin, "--key-file", str(tmp_path / "key")]) == 0
        monkeypatch.setenv("SHOAL_ADMIN__KEY", KEY)
        assert main(["list", "--url", server.admin]) == 0


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("two\nlines")
    said = refused(f"list --key-file {tmp_path / 'key'}", "http://127.0.0.1:1", capsys)
    assert "printable ASCII" in said
    assert "two" not in said
    assert "cannot be read" in refused(f"list --key-file {tmp_path / 'nothing'}", "http://127.0.0.1:1", capsys)


@pytest.mark.parametrize(
    "line",
    ["", "polish", "load", "alias echo canary", "split echo", "split echo canary", "split echo a=b", "shadow echo"],
)
def test_a_wrong_call_is_2_and_says_what_is_expected(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert "usage: python -m service models" in capsys.readouterr().err


def test_it_is_a_command_of_the_service_and_needs_none_of_its_libraries(server: AdminServer) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    command = [sys.executable, "-X", "importtime", "-m", "service", "models", "list", "--url", server.admin]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MODEL")
    assert not {"litestar", "onnxruntime", "uvicorn"} & {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines()
    }
