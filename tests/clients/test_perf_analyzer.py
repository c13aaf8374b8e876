"""perf_analyzer, the binary of tritonclient's wheel: libcurl and C++ gRPC under load, with the server's own statistics.

It ends with an error at the first request that fails, and at metadata, configuration or statistics it cannot read.
"""

import os
import re
import subprocess
from dataclasses import dataclass

import httpx
import pytest

from tests.support.clients import SHORT_WINDOWS, needs, perf_analyzer, perf_analyzer_libraries
from tests.support.server import Server

pytestmark = needs("perf-analyzer")


@dataclass(frozen=True)
class Level:
    """What it reports of one concurrency: by the client's count, and by the server's statistics over the same time."""

    concurrency: int
    requests: int
    items_per_second: float
    items: int
    batches: int
    succeeded: int


def levels_of(address: str, *flags: str) -> list[Level]:
    done = subprocess.run(
        [perf_analyzer(), "-u", address, *SHORT_WINDOWS, *flags],
        env=os.environ | perf_analyzer_libraries(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    levels = [_level(block) for block in done.stdout.split("Request concurrency: ")[1:]]
    assert levels, done.stdout
    return levels


def _level(block: str) -> Level:
    def number(name: str) -> float:
        found = re.search(rf"^ +{name}: ([\d.]+)", block, re.MULTILINE)
        assert found, f"no {name!r} in {block}"
        return float(found.group(1))

    return Level(
        concurrency=int(block.split()[0]),
        requests=int(number("Request count")),
        items_per_second=number("Throughput"),
        items=int(number("Inference count")),
        batches=int(number("Execution count")),
        succeeded=int(number("Successful request count")),
    )


def check(levels: list[Level], concurrencies: list[int], batch: int = 1) -> None:
    assert [level.concurrency for level in levels] == concurrencies
    for level in levels:
        assert level.requests > 0
        assert level.items_per_second > 0
        # Between its two looks at the statistics, what is being answered has run and is no success yet.
        assert abs(level.items - batch * level.succeeded) <= batch * level.concurrency
        assert 0 < level.batches <= level.items
        # It asks for the statistics a moment before and after its windows; some requests are on the way then.
        assert abs(level.succeeded - level.requests) <= max(20, level.requests // 10)


def failures(server: Server, model: str) -> int:
    statistics = httpx.get(f"{server.url}/v2/models/{model}/stats", trust_env=False).json()
    return sum(one["inference_stats"]["fail"]["count"] for one in statistics["model_stats"])


@pytest.mark.parametrize(
    ("model", "flags", "concurrencies", "batch"),
    [
        ("simple", ["--concurrency-range", "1:4:3"], [1, 4], 1),
        ("simple", ["--concurrency-range", "4", "-b", "4"], [4], 4),
        ("simple", ["--concurrency-range", "4", "--async"], [4], 1),
        ("simple_identity", ["--concurrency-range", "2", "--shape", "INPUT0:5", "--string-length", "9"], [2], 1),
    ],
    ids=["threads", "batches", "async", "strings of a shape"],
)
def test_over_http(
    simple_server: Server, simple_http: str, model: str, flags: list[str], concurrencies: list[int], batch: int
) -> None:
    failed_before = failures(simple_server, model)
    check(levels_of(simple_http, "-m", model, *flags), concurrencies, batch)
    assert failures(simple_server, model) == failed_before


@pytest.mark.parametrize(
    ("model", "flags", "concurrencies", "batch"),
    [
        ("simple", ["--concurrency-range", "1:4:3"], [1, 4], 1),
        ("simple", ["--concurrency-range", "4", "-b", "4", "--async"], [4], 4),
        ("simple", ["--concurrency-range", "4", "--streaming"], [4], 1),
        ("simple_identity", ["--concurrency-range", "2", "--shape", "INPUT0:5", "--string-length", "9"], [2], 1),
    ],
    ids=["threads", "batches", "stream", "strings of a shape"],
)
def test_over_grpc(simple_grpc: str, model: str, flags: list[str], concurrencies: list[int], batch: int) -> None:
    check(levels_of(simple_grpc, "-i", "grpc", "-m", model, *flags), concurrencies, batch)


def test_an_unknown_model_ends_it_with_our_text(simple_http: str) -> None:
    with pytest.raises(AssertionError, match="no model 'absent'"):
        levels_of(simple_http, "-m", "absent")
