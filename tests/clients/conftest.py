"""One server with the models of the official examples, for every client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.build_simple import build_simple_repository
from tests.support.server import Server, running_server

FAST_START = ("--port", "0", "--engine.tune-budget-s", "0")


@pytest.fixture(scope="session")
def simple_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_simple_repository(tmp_path_factory.mktemp("simple"))


@pytest.fixture(scope="session")
def simple_server(simple_repository: Path) -> Iterator[Server]:
    with running_server(*FAST_START, "--repository", str(simple_repository)) as server:
        yield server
        server.assert_settled()


@pytest.fixture(scope="session")
def simple_http(simple_server: Server) -> str:
    """host:port"""
    return simple_server.url.removeprefix("http://")


@pytest.fixture(scope="session")
def simple_grpc(simple_repository: Path) -> Iterator[str]:
    """host:port of a server that speaks gRPC too."""
    with running_server(*FAST_START, "--server.grpc-port", "0", "--repository", str(simple_repository)) as server:
        (address,) = [line.split()[1] for line in server.printed if line.split()[:1] == ["gRPC"]]
        yield address
        server.assert_settled()
