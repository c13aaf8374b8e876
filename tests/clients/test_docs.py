"""The examples of docs/clients.md, run as they stand, each in its client's environment, and the versions it names."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import (
    REQUIREMENTS,
    ROOT,
    SHORT_WINDOWS,
    environment,
    needs,
    perf_analyzer,
    perf_analyzer_libraries,
)
from tests.support.server import Server, running_server

PAGE = (ROOT / "docs" / "clients.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def repository_of_mnist(folder: Path) -> Path:
    (folder / "mnist").symlink_to(ROOT / "models" / "mnist")
    return folder


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = repository_of_mnist(tmp_path_factory.mktemp("http"))
    with running_server("--port", "0", "--engine.tune-budget-s", "0", "--repository", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def grpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = repository_of_mnist(tmp_path_factory.mktemp("grpc"))
    flags = ("--port", "0", "--engine.tune-budget-s", "0", "--server.grpc-port", "0", "--repository", str(folder))
    with running_server(*flags) as server:
        (address,) = [line.split()[1] for line in server.printed if line.split()[:1] == ["gRPC"]]
        yield address


def addressed(example: str, request: pytest.FixtureRequest) -> str:
    """Its ports are those of the server it needs."""
    if "localhost:8001" in example:
        return example.replace("localhost:8001", request.getfixturevalue("grpc"))
    return example.replace("localhost:8000", f"localhost:{request.getfixturevalue('http').port}")


def printed(*command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, errors="replace", timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def marked(example: str) -> object:
    client = "kserve" if "kserve" in example else "perf-analyzer" if example.startswith("perf") else "triton"
    return pytest.param(example, marks=() if example.startswith(("curl", "head")) else needs(client), id=client)


@pytest.mark.parametrize("example", [marked(example) for example in PYTHON])
def test_a_python_example_prints_an_answer(request: pytest.FixtureRequest, example: str) -> None:
    client = "kserve" if "kserve" in example else "triton"
    answer = printed(environment(client) / "bin" / "python", "-c", addressed(example, request))
    numbers = [float(number) for number in re.findall(r"(?<![:\d])\d+(?:\.\d+)?(?:e-?\d+)?", answer)]
    assert len(numbers) in (3, 10), answer
    assert all(0 <= number <= 1 for number in numbers), answer


@pytest.mark.parametrize("example", [marked(line) for line in SHELL])
def test_a_shell_example_works(request: pytest.FixtureRequest, example: str) -> None:
    command = addressed(example, request).replace("curl ", "curl --silent --fail-with-body ")
    if command.startswith("perf_analyzer"):
        path = f"{perf_analyzer().parent}:{os.environ['PATH']}"
        short = " ".join([command, *SHORT_WINDOWS])
        assert "Throughput: " in printed("bash", "-c", short, PATH=path, **perf_analyzer_libraries())
    else:
        assert '"name":"' in printed("bash", "-c", command)


def test_the_page_has_an_example_of_every_client() -> None:
    assert len(PYTHON) == 3
    assert [line.split()[0] for line in SHELL] == ["perf_analyzer", "perf_analyzer", "curl", "head"]


def test_the_makefile_installs_every_client_in_the_versions_of_the_page() -> None:
    (names,) = re.findall(r"^CLIENTS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(names.split()) == {path.stem for path in REQUIREMENTS.glob("*.txt")}
    for client, package in (("triton", "tritonclient"), ("kserve", "kserve"), ("perf-analyzer", "tritonclient")):
        pinned = dict(line.split("==") for line in (REQUIREMENTS / f"{client}.txt").read_text().split())
        assert f"| {pinned[package]} |" in PAGE or f"{package} {pinned[package]} |" in PAGE, (client, pinned[package])
