"""The server under test: the one that `--url` names, else ours, started on the suite's models."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.protocol.models import write_models
from tests.protocol.wire import Connection

Connect = Callable[[], Connection]
Needs = Callable[[str], None]

# What our server has to list, in Triton's words.
OURS = {"binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--url", help="tests/protocol: a running server, which has the models of tests/protocol/models.py")


@pytest.fixture(scope="session")
def elsewhere(pytestconfig: pytest.Config) -> str | None:
    """`--url`; None: the server is ours."""
    url: str | None = pytestconfig.getoption("--url", default=None)
    return url.rstrip("/") if url else None


@pytest.fixture(scope="session")
def url(elsewhere: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if elsewhere is not None:
        yield elsewhere
        return
    from tests.support.server import running_server

    root = write_models(tmp_path_factory.mktemp("protocol"))
    with running_server("--port", "0", "--engine.tune-budget-s", "0", "--repository", str(root)) as server:
        yield server.url
        server.assert_settled()


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    """Asks for no compression, unless a test does."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False, headers={"accept-encoding": "identity"}) as client:
        yield client


@pytest.fixture
def connect(url: str) -> Iterator[Connect]:
    """A TCP connection to the server; closed after the test."""
    connections: list[Connection] = []

    def make() -> Connection:
        connections.append(Connection(httpx.URL(url).host, httpx.URL(url).port or 80))
        return connections[-1]

    yield make
    for connection in connections:
        connection.close()


@pytest.fixture(scope="session")
def extensions(http: httpx.Client) -> set[str]:
    return set(http.get("/v2").json()["extensions"])


@pytest.fixture
def needs(elsewhere: str | None, extensions: set[str]) -> Needs:
    """Skip the test where a server elsewhere does not list the extension. For ours nothing is skipped."""

    def need(extension: str) -> None:
        if elsewhere is not None and extension not in extensions:
            pytest.skip(f"the server does not list the extension {extension!r}")

    return need
