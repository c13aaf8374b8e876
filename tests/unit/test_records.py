"""What a record says: medians, tables, sentences, and which targets were met, from numbers that are made up."""

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from loadtests import page, record, tables
from loadtests.bare import Bare
from loadtests.machine import Machine
from loadtests.record import BareRun, Record, Run, ServerResult, Starts, WorkloadResult
from loadtests.server import BenchError
from loadtests.sides import Body, Peer
from loadtests.targets import Target, targets
from loadtests.wrk import Load

# Requests a second by round, with which number of clients.
Rates = dict[int, list[float]]


def server(name: str, peer: Peer, rates: Rates, p50_ms: float, cpu_us: float, memory_mb: float) -> ServerResult:
    runs = [
        Run(number, clients, Load(int(2 * rate), 2.0, p50_ms, 3 * p50_ms, 0, 0, 0.02), 2 * rate * cpu_us / 1e6)
        for clients, by_round in rates.items()
        for number, rate in enumerate(by_round, 1)
    ]
    return ServerResult(name, peer, f"how {name} runs", "", 50, 0.01, memory_mb, 3, runs)


def workload(name: str, scale: float = 1.0, body: Body = "raw", bare: bool = True) -> WorkloadResult:
    """Shoal 1,100 at 1 client and 4,500 at 64; mosec 3,000 or 4,000; FastAPI 1,200 at 1 client, all times `scale`."""
    bare_runs = [
        BareRun(when, Bare(batch, 2, int(items * scale), 1.0, 2.0))
        for when, batch, items in [("before", 1, 2000), ("before", 8, 4000), ("after", 1, 3000), ("after", 8, 6000)]
    ]
    servers = [
        server("Shoal", "shoal", {1: [1000, 1100, 1200], 64: [4500 * scale]}, 1.0, 300, 200),
        server("mosec, batch 16", "mosec", {64: [4100 * scale, 1 * scale, 4000 * scale]}, 9.0, 400, 260),
        server("mosec, batch 64", "mosec", {64: [3000 * scale]}, 9.0, 250, 250),
        server("FastAPI", "fastapi", {1: [1200]}, 0.8, 500, 100),
    ]
    return WorkloadResult(name, name.removesuffix("-json"), body, "ab" * 32, bare_runs if bare else [], servers)


def made_up() -> Record:
    return Record(
        created_at="2026-01-02T03:04:05+00:00",
        command="python -m loadtests.bench",
        commit="0123abc",
        machine=Machine("Some CPU", 2, 24.0, "6.1", 0.1),
        packages={"python": "3.11.7", "onnxruntime": "1.32.0"},
        peers={"mosec": {"mosec": "0.9.8", "pip": "23"}},
        absent=["fastapi is not installed"],
        seconds=2,
        rounds=3,
        workloads=[workload("tiny"), workload("mnist"), workload("mnist-json", body="json", bare=False)],
        starts=[Starts("Shoal", "shoal", "mnist", [0.9, 0.7, 2.0]), Starts("FastAPI", "fastapi", "mnist", [0.5])],
    )


def test_a_row_is_the_median_and_the_spread_of_its_rounds() -> None:
    first, *_, last = record.rows(made_up().workloads[0])
    assert (first.server, first.clients, page.spread(first.rate)) == ("Shoal", 1, "1,100 (1,000-1,200)")
    assert page.spread(first.server_us) == "300"
    assert (last.server, last.clients) == ("mosec, batch 64", 64)


def test_all_servers_stand_together_for_a_number_of_clients() -> None:
    lines = page.served_table(made_up().workloads[0]).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["1", "1", "64", "64", "64"]
    assert [line.split("|")[2].strip() for line in lines[:2]] == ["Shoal", "FastAPI"]


def measured(found: list[Target], what: str) -> Target:
    (target,) = [target for target in found if target.what == what]
    return target


@pytest.mark.parametrize(
    ("what", "value", "met", "basis"),
    [
        ("tiny, 64 clients: requests/s over mosec's", 4500 / 4000, False, "4,500 over 4,000 of mosec, batch 16"),
        ("tiny, 64 clients: CPU per request over mosec's", 300 / 250, False, "300 over 250 of mosec, batch 64"),
        ("mnist, 64 clients: requests/s over mosec's", 4500 / 4000, True, "4,500 over 4,000 of mosec, batch 16"),
        (
            "mnist, 64 clients: requests/s over bare onnxruntime's items/s",
            4500 / 5000,
            True,
            "4,500 over 5,000 in batches of 8 (40% apart before and after)",
        ),
        ("mnist, 1 client: p50 over FastAPI's", 1.25, False, "1.00 over 0.80 of FastAPI"),
        ("mnist-json, 64 clients: requests/s over mosec's", 4500 / 4000, False, "4,500 over 4,000 of mosec, batch 16"),
        ("mnist, 64 clients: p99 over p50", 3.0, False, "3.00 over 1.00 ms"),
        ("seconds from the start of serve to the first right answer", 0.9, True, "median of 3 starts"),
        ("mnist: memory (PSS) over mosec's", 200 / 250, True, "200 over 250 MB of mosec, batch 64"),
    ],
)
def test_a_target_is_a_ratio_to_the_better_setting(what: str, value: float, met: bool, basis: str) -> None:
    target = measured(targets(made_up()), what)
    assert target.measured == pytest.approx(value, rel=1e-3)
    assert target.met is met
    assert target.basis == basis


def test_what_was_not_measured_is_said_and_is_not_met() -> None:
    found = targets(made_up())
    cifar = measured(found, "cifar, 64 clients: requests/s over bare onnxruntime's items/s")
    assert (cifar.measured, cifar.met, cifar.basis) == (None, None, "cifar was not measured")
    many = measured(found, "tiny, 256 clients: requests/s over mosec's")
    assert (many.met, many.basis) == (None, "no run of shoal with 256 clients")
    alone = replace(made_up(), workloads=[replace(workload("mnist"), servers=workload("mnist").servers[:1])], starts=[])
    assert measured(targets(alone), "mnist, 64 clients: requests/s over mosec's").basis == (
        "no run of mosec with 64 clients"
    )
    assert measured(targets(alone), "mnist: memory (PSS) over mosec's").basis == "no memory of mosec"
    assert sum(target.met is None for target in targets(alone)) > 10


def test_every_target_is_in_the_page() -> None:
    made = made_up()
    text = page.page(made)
    for target in targets(made):
        assert f" {target.what} |" in text
    row = next(line for line in text.splitlines() if " mnist: memory (PSS) over mosec's |" in line)
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["at most 1", "0.80", "met"]


def test_the_page_says_what_the_numbers_say() -> None:
    text = page.page(made_up())
    assert "with 64 clients: 4,500 a second, 90% of the 5,000 items/s" in text
    assert "40% apart before and after" in text
    assert "- mosec, batch 16: how mosec, batch 16 runs\n" in text
    assert "- packages of mosec: mosec 0.9.8\n" in text
    assert "- fastapi is not installed\n" in text
    assert "None of 40,202 requests failed." in text
    assert "0.90, 0.70, 2.00" in text
    assert "python -m loadtests.bench\n" in text


def test_failures_are_in_the_page() -> None:
    made = workload("tiny")
    shoal, mosec, *others = made.servers
    runs = [replace(run, result=replace(run.result, non_2xx=2, socket_errors=1)) for run in shoal.runs]
    gone = replace(mosec, fault="it ended", runs=[])
    busy = [replace(other, idle_cores=0.5) for other in others]
    text = " ".join(page.sentences(replace(made, servers=[replace(shoal, runs=runs), gone, *busy]), cores=2))
    assert "12 of 24,000 requests failed." in text
    assert "mosec, batch 16 failed: it ended" in text
    assert "FastAPI used 0.50 cores while idle" in text


def test_tables_line_up() -> None:
    assert tables.table(["n", "value"], [["1", "10.5"], ["256", "3"]]).splitlines() == [
        "|   n | value |",
        "| --: | ----: |",
        "|   1 |  10.5 |",
        "| 256 |     3 |",
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [(12345.6, "12,346"), (99.95, "100.0"), (12.34, "12.3"), (0.456, "0.46"), (0.0, "0.00")]
)
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    assert tables.digits(value) == expected


def test_a_record_holds_everything_and_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "2026-01-02_serving"
    record.write(folder, made_up(), "the page")
    assert msgspec.json.decode((folder / "record.json").read_bytes(), type=Record) == made_up()
    assert (folder / "README.md").read_text() == "the page"
    with pytest.raises(BenchError, match="never overwritten"):
        record.write(folder, made_up(), "the page")
