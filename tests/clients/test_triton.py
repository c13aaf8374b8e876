"""tritonclient, unmodified, against the real server: each case of the scripts is a test here."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest

from tests.support.clients import Differences, cases_of, needs, run_script

pytestmark = needs("triton")


def cases(*scripts: str) -> Sequence[tuple[str, str]]:
    return [(script, case) for script in scripts for case in cases_of(script)]


@pytest.fixture(scope="module")
def over_http(simple_http: str) -> Callable[[str], Differences]:
    return cache(lambda script: run_script("triton", script, simple_http))


@pytest.fixture(scope="module")
def over_grpc(simple_grpc: str) -> Callable[[str], Differences]:
    return cache(lambda script: run_script("triton", script, simple_grpc))


@pytest.mark.parametrize(("script", "case"), cases("triton_http", "triton_http_extensions", "triton_aio"))
def test_http(over_http: Callable[[str], Differences], script: str, case: str) -> None:
    assert over_http(script)[case] == ""


@pytest.mark.parametrize(("script", "case"), cases("triton_grpc", "triton_grpc_aio"))
def test_grpc(over_grpc: Callable[[str], Differences], script: str, case: str) -> None:
    assert over_grpc(script)[case] == ""
