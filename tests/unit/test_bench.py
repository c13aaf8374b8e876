"""The benchmark's own parts: whose CPU time counts, how servers are asked and read, what is refused before a start."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from loadtests import bench, compare, machine, networks, processes, sides, wrk
from loadtests.check import answers_rightly, disagreement
from loadtests.compare import Plan, Workload
from loadtests.processes import Stat, parse_pss, parse_stat, tree
from loadtests.record import ServerResult
from loadtests.server import BenchError, free_port, running
from loadtests.sides import Side
from loadtests.wrk import Load, parse
from models.manifest import Classification

ROOT = Path(__file__).parents[2]
MODEL = Path("repository/mnist/1/model.onnx")
SCORES = {"scores": np.array([[1.0, 2.0]], np.float32)}

# --- processes

STAT = "42 (a) b (c)) S 7 42 41 0 -1 4194304 1 2 3 4 150 50 20 10 20 0 5 0 100 1000 100 18446744073709551615 1"


def test_a_process_is_read_behind_its_name_whatever_that_holds() -> None:
    assert parse_stat(STAT) == Stat(pid=42, parent=7, session=41, ticks=150 + 50 + 20 + 10)
    assert parse_stat(STAT.replace(") S ", ") Z ")).ended


def test_a_tree_is_all_below_and_all_of_its_session_and_nobody_else() -> None:
    stats = [
        Stat(1, 0, 1, 1000),
        Stat(10, 1, 10, 100),
        Stat(11, 10, 10, 20),
        Stat(12, 11, 12, 3),  # two below, in a session of its own
        Stat(13, 1, 10, 4),  # its parent is gone
        Stat(20, 1, 20, 5000),
    ]
    assert [stat.pid for stat in tree(10, stats)] == [10, 11, 12, 13]


def test_memory_is_the_proportional_set_size() -> None:
    assert parse_pss("Rss:  900 kB\nPss:   512 kB\nPss_Anon:  100 kB\n") == 512 * 1024
    assert parse_pss("") == 0


SPIN = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"


def test_cpu_time_and_memory_of_children_count_and_all_are_ended() -> None:
    with running([sys.executable, "-c", SPIN], {}, lambda _port: True, free_port()) as server:
        give_up_at = time.monotonic() + 60
        while server.cpu_seconds() < 0.5:  # the parent alone only waits
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        pids = processes.pids(server.pid)
        assert len(pids) == 2
        alone = parse_pss(Path(f"/proc/{server.pid}/smaps_rollup").read_text()) / 2**20
        assert processes.memory_mb(server.pid) > alone > 0
    assert not processes.pids(server.pid)
    assert not [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and not parse_stat(stat.read_text()).ended


def test_a_server_that_ends_is_an_error_with_its_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(BenchError, match=r"exit status 1.*\n.*no such model"),
        running(command, {}, lambda _port: False, free_port()),
    ):
        pytest.fail("it runs")


# --- wrk

DONE = '{"requests": 900, "microseconds": 4000000, "p50_us": 12000, "p99_us": 25500, "non_2xx": 3, "socket_errors": 1}'
WRK = f"""Running 4s test @ http://127.0.0.1:8000/predict/mnist
  1 threads and 64 connections
  900 requests in 4.00s, 0.50MB read
Requests/sec:    225.00
shoal-bench {DONE}
"""


def test_wrk_is_read_from_the_line_of_its_script() -> None:
    assert parse(WRK, 0.5) == Load(900, 4.0, 12.0, 25.5, 3, 1, 0.5)


def test_wrk_without_that_line_is_an_error_with_its_words() -> None:
    with pytest.raises(BenchError, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:1 Connection refused\n", 0.0)


# --- sides


def side_of(peer: str, body: sides.Body = "raw") -> Side:
    return next(side for side in sides.sides(MODEL, body, 2, [], sides.PEERS) if side.peer == peer)


def test_every_side_gets_the_same_numbers() -> None:
    row = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    for side in sides.sides(MODEL, "raw", 2, [], sides.PEERS):
        assert side.write(row) == bytes(range(6))
    for side in sides.sides(MODEL, "json", 2, [], sides.PEERS):
        sent = json.loads(side.write(row))
        assert (sent["instances"][0] if side.peer == "shoal" else sent) == list(range(6))


def test_every_peer_is_asked_with_both_of_mosecs_batch_sizes() -> None:
    found = sides.sides(MODEL, "json", 3, ["--engine.cores", "3"], sides.PEERS)
    assert [side.name for side in found] == ["Shoal", "mosec, batch 16", "mosec, batch 64", "FastAPI"]
    assert found[0].command[-2:] == ("--engine.cores", "3")
    assert [side.environment.get("PEER_MAX_BATCH") for side in found] == [None, "16", "64", None]
    assert found[1].environment["PEER_WORKERS"] == "3"
    assert all("{port}" in side.command for side in found)
    assert sides.sides(MODEL, "raw", 2, [], []) == [side_of("shoal")]


def test_answers_are_compared_with_bare_onnxruntime_label_by_label() -> None:
    side = replace(side_of("shoal"), classification=Classification("probabilities", ("cat", "dog")))
    expected = {"probabilities": np.array([0.25, 0.75], np.float32)}
    top = [{"label": "dog", "probability": 0.75}, {"label": "cat", "probability": 0.25}]
    assert disagreement(side, predictions({"top": top}), expected) is None
    swapped = [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}]
    assert disagreement(side, predictions({"top": swapped}), expected) == "probabilities differs by up to 0.5"


def test_plain_outputs_are_compared_by_name() -> None:
    side = side_of("shoal")
    assert disagreement(side, predictions({"scores": [1.0, 2.00001]}), SCORES) is None
    assert disagreement(side, predictions({"scores": [1.0, 2.1]}), SCORES) == "scores differs by up to 0.1"


@pytest.mark.parametrize("peer", sides.PEERS)
def test_a_peers_bytes_and_numbers_are_compared_in_the_order_of_the_outputs(peer: str) -> None:
    expected = {"logits": np.array([3, 4], np.int64), **SCORES}
    right = expected["logits"].tobytes() + expected["scores"].tobytes()
    raw, numbers = side_of(peer, "raw"), side_of(peer, "json")
    assert disagreement(raw, right, expected) is None
    assert "logits differs" in str(disagreement(raw, right[::-1], expected))
    assert disagreement(numbers, b"[[3, 4], [[1.0, 2.0]]]", expected) is None
    assert disagreement(numbers, b"[[3, 4], [[2.0, 1.0]]]", expected) == "scores differs by up to 1"


@pytest.mark.parametrize("answer", [b"", b"1234567", b"123456789"])
def test_an_answer_that_is_too_short_or_too_long_is_wrong(answer: bytes) -> None:
    assert disagreement(side_of("mosec"), answer, SCORES) is not None


@pytest.mark.parametrize("answer", [b"[]", b"[[1.0]]", b"not json"])
def test_an_answer_with_other_numbers_is_wrong(answer: bytes) -> None:
    assert disagreement(side_of("fastapi", "json"), answer, SCORES) is not None


def test_a_server_that_is_not_there_yet_is_asked_again() -> None:
    assert not answers_rightly(side_of("shoal"), free_port(), np.zeros((1, 1), np.uint8), SCORES)


def predictions(item: object) -> bytes:
    return json.dumps({"model": "m", "version": "1", "predictions": [item]}).encode()


@pytest.mark.parametrize("peer", sides.PEERS)
def test_a_peer_runs_the_onnxruntime_that_we_run(peer: str) -> None:
    pinned = (ROOT / "loadtests" / "peers" / f"{peer}.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    ours = (ROOT / "constraints.txt").read_text().split()
    for package in ("onnxruntime", "numpy"):
        (version,) = [line for line in ours if line.startswith(f"{package}==")]
        assert version in pinned


def test_the_makefile_installs_every_peer() -> None:
    (names,) = re.findall(r"^PEERS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tuple(names.split()) == sides.PEERS


@pytest.mark.parametrize("peer", sides.PEERS)
def test_a_peers_server_is_python_that_imports_nothing_of_ours(peer: str) -> None:
    source = (ROOT / "loadtests" / "peers" / f"serve_{peer}.py").read_text()
    compile(source, f"serve_{peer}.py", "exec")
    assert not re.findall(r"^(?:from|import) (?:loadtests|models|service|training)\b", source, re.MULTILINE)


# --- compare


def test_a_peer_that_fails_stays_in_the_record_and_ours_ends_the_run() -> None:
    failed = compare._failed(ServerResult("mosec, batch 16", "mosec", ""), BenchError("it ended"))
    assert failed.fault == "it ended"
    with pytest.raises(BenchError, match="it ended"):
        compare._failed(ServerResult("Shoal", "shoal", ""), BenchError("it ended"))


def test_a_peer_that_does_not_start_is_recorded_with_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(side_of("mosec"), command=(sys.executable, "-c", "import sys; sys.exit('broken')"))
    monkeypatch.setattr(compare, "sides", lambda *_: [broken])
    workload = Workload("tiny", networks.build("tiny", tmp_path), "raw", (1,), bare=False)
    result = compare.measure(workload, Plan(seconds=1, rounds=1, cores=1, flags=(), peers=("mosec",)))
    (server,) = result.servers
    assert "broken" in server.fault
    assert not server.runs


# --- the command


def test_a_taken_name_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_measure", lambda *_: pytest.fail("measured"))
    assert bench.main(["--out", str(tmp_path)]) == 1
    assert "never overwritten" in capsys.readouterr().err


def test_a_missing_wrk_is_refused_with_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert bench.main(["--out", str(tmp_path / "new")]) == 1
    assert "apt-get install wrk" in capsys.readouterr().err


def test_no_workload_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrk, "require_wrk", lambda: None)
    assert bench.main(["--workloads", "none", "--out", str(tmp_path / "new")]) == 1
    assert "nothing to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workloads", "tiny,huge"], "'huge' is none of tiny, mnist"),
        (["--peers", "nginx"], "'nginx' is none of mosec, fastapi"),
        (["--clients", "1,0"], "'0' is not a whole number from 1"),
        (["--starts", "-1"], "'-1' is not a whole number from 0"),
    ],
)
def test_a_wrong_flag_is_refused_with_what_is_known(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(flags)
    assert said in capsys.readouterr().err


def test_the_recorded_command_repeats_the_run() -> None:
    flags = [
        "--workloads",
        "tiny,cifar",
        "--peers",
        "none",
        "--clients",
        "1,8",
        "--rounds",
        "2",
        "--",
        "--engine.cores",
        "1",
    ]
    options = bench._parser().parse_args(flags)
    words = bench._command(options).split()
    assert words[:3] == ["python", "-m", "loadtests.bench"]
    assert vars(bench._parser().parse_args(words[3:])) == vars(options)


def test_the_default_run_is_bounded() -> None:
    options = bench._parser().parse_args([])
    runs = sum(len(bench._CLIENTS[name]) for name in options.workloads) * options.rounds * 4
    assert runs * options.seconds <= 300


def test_the_machine_is_described_without_its_name() -> None:
    here = machine.look_at_machine(2)
    assert here.cpu
    assert here.memory_gib > 0
    packages = machine.look_at_packages()
    assert packages["python"].startswith("3.")
    assert (packages["wrk"] == "absent") == (shutil.which("wrk") is None)
    assert machine.look_at_environment(Path(sys.executable))["numpy"] == np.__version__


def test_bodies_reach_the_server_whole(tmp_path: Path) -> None:
    """wrk's script reads what `send` wrote: here by hand, with the lengths that stand before the bodies."""
    bodies = [b"\x00\n\xff", b"", b"x" * 12345]
    file, at, found = b"".join(wrk.framed(bodies)), 0, []
    while at < len(file):
        length = int(file[at : at + 8])
        found.append(file[at + 8 : at + 8 + length])
        at += 8 + length
    assert found == bodies
