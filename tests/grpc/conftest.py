"""One server with all small models and gRPC in two frontends for the whole run, and servers with their own settings."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.build_any import build_any_repository
from tests.support.build_models import build_repository
from tests.support.rpc import client
from tests.support.server import Server, running_server

Serve = Callable[..., Server]

FAST_START = ("--port", "0", "--server.grpc-port", "0", "--engine.tune-budget-s", "0")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_any_repository(build_repository(tmp_path_factory.mktemp("repository")))


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    with running_server(*FAST_START, "--frontends", "2", "--repository", str(repository)) as server:
        yield server


@pytest.fixture(scope="session")
def rpc(server: Server) -> Iterator[SimpleNamespace]:
    with client(server) as calls:
        yield calls


@pytest.fixture
def serve(repository: Path, tmp_path: Path) -> Iterator[Serve]:
    """Start a server of these models with these flags; it ends with the test."""
    with ExitStack() as stack:

        def start(*flags: str, models: tuple[str, ...] = ("slow", "echo")) -> Server:
            root = tmp_path / "models"
            root.mkdir()
            for name in models:
                (root / name).symlink_to(repository / name)
            return stack.enter_context(running_server(*FAST_START, "--repository", str(root), *flags))

        yield start
