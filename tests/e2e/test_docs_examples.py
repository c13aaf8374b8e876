"""The shell commands in README.md and docs/http-api.md, run as they stand against a running server."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.server import Server, running_server

ROOT = Path(__file__).parents[2]


PAGES = "\n".join((ROOT / page).read_text() for page in ("README.md", "docs/http-api.md"))


def curl_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGES, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "curl " in line]


def shown_answers() -> list[tuple[str, str]]:
    """A block's last command, and the block right after it, which shows what it answers."""
    blocks = re.findall(r"```sh\n((?:(?!```).)*)```\n```\w*\n(.*?)\n```", PAGES, re.DOTALL)
    return [(commands.splitlines()[-1], answer) for commands, answer in blocks if "curl " in commands.splitlines()[-1]]


def run(server: Server, command: str) -> bytes:
    """What it prints. Raises AssertionError where the server refuses."""
    command = command.replace("http://localhost:8000", server.url).replace("curl ", "curl --silent --fail-with-body ")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server():
    with running_server("--repository", str(ROOT / "models"), "--port", "0") as server:
        yield server


def test_there_are_examples() -> None:
    assert len(curl_commands()) >= 4


@pytest.mark.parametrize("command", curl_commands())
def test_an_example_works_as_it_stands(server: Server, command: str) -> None:
    text = run(server, command).split(b"\n")[0].decode("latin-1")
    if text.startswith("{"):
        answer, _ = json.JSONDecoder().raw_decode(text)
        assert "error" not in answer
        assert answer.keys() & {"predictions", "outputs", "name", "ready", "model_stats", "results"}


@pytest.mark.parametrize(("command", "answer"), shown_answers())
def test_a_shown_answer_is_what_comes_but_for_its_numbers(server: Server, command: str, answer: str) -> None:
    form = re.escape(answer).replace(re.escape("..."), ".*")
    form = re.sub(r"\d+(?:\\\.\d+)?", lambda _: r"[\d.]+", form)
    came = run(server, command).decode().replace("\r\n", "\n").rstrip("\n")
    assert re.fullmatch(form, came), came


def test_answers_are_shown() -> None:
    assert len(shown_answers()) >= 3, "README's, an image's, a table's"
