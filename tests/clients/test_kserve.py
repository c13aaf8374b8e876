"""kserve's inference clients, unmodified, against the real server: each case of the scripts is a test here."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.support.clients import Differences, cases_of, needs, run_script
from tests.support.server import Server

pytestmark = needs("kserve")


@pytest.fixture(scope="module")
def over_rest(simple_server: Server) -> Callable[[], Differences]:
    return cache(lambda: run_script("kserve", "kserve_rest", simple_server.url))


@pytest.fixture(scope="module")
def over_grpc(simple_grpc: str) -> Callable[[], Differences]:
    return cache(lambda: run_script("kserve", "kserve_grpc", simple_grpc))


@pytest.mark.parametrize("case", cases_of("kserve_rest"))
def test_rest(over_rest: Callable[[], Differences], case: str) -> None:
    assert over_rest()[case] == ""


@pytest.mark.parametrize("case", cases_of("kserve_grpc"))
def test_grpc(over_grpc: Callable[[], Differences], case: str) -> None:
    assert over_grpc()[case] == ""
