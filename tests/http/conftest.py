"""One server with all small models for the whole run, and servers with settings of their own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.build_any import build_any_repository
from tests.support.build_models import build_repository
from tests.support.server import Server, running_server

Serve = Callable[..., Server]

FAST_START = ("--port", "0", "--engine.tune-budget-s", "0")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    with running_server(*FAST_START, "--repository", str(repository)) as server:
        yield server


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def any_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The models of `build_any.py`."""
    root = build_any_repository(tmp_path_factory.mktemp("any"))
    with running_server(*FAST_START, "--repository", str(root)) as server:
        yield server


@pytest.fixture(scope="session")
def any_http(any_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=any_server.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def serve(repository: Path) -> Iterator[Serve]:
    """Start a server with these flags; it ends with the test."""
    with ExitStack() as stack:

        def start(*flags: str, models: Path = repository) -> Server:
            return stack.enter_context(running_server(*FAST_START, "--repository", str(models), *flags))

        yield start


@pytest.fixture
def only(repository: Path, tmp_path: Path) -> Callable[..., Path]:
    """A repository of some of the models: it loads faster."""

    def choose(*names: str) -> Path:
        root = tmp_path / "models"
        root.mkdir(exist_ok=True)
        for name in names:
            (root / name).symlink_to(repository / name)
        return root

    return choose
