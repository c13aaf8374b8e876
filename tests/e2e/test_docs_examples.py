"""The shell commands in README.md and docs/http-api.md, run as they stand against a running server."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.server import Server, running_server

ROOT = Path(__file__).parents[2]


def curl_commands() -> list[str]:
    blocks = []
    for page in ("README.md", "docs/http-api.md"):
        blocks += re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "curl " in line]


@pytest.fixture(scope="module")
def server():
    with running_server("--repository", str(ROOT / "models"), "--port", "0") as server:
        yield server


def test_there_are_examples() -> None:
    assert len(curl_commands()) >= 4


@pytest.mark.parametrize("command", curl_commands())
def test_an_example_works_as_it_stands(server: Server, command: str) -> None:
    command = command.replace("http://localhost:8000", server.url).replace("curl ", "curl --silent --fail-with-body ")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout.split(b"\n")[0].decode("latin-1")
    if text.startswith("{"):
        answer, _ = json.JSONDecoder().raw_decode(text)
        assert "error" not in answer
        assert answer.keys() & {"predictions", "outputs", "name", "ready", "model_stats"}
