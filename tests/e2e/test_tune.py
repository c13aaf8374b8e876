"""`python -m service tune` as an operator runs it: real servers, real load, a small budget; `serve` uses the choice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.manifest import MODEL_FILE, TensorSpec, digest_file, read_manifest
from service.engine.repository import find_versions
from service.engine.tuned import PLOT_FILE, TUNING_FILE, Entry, Knobs, read_tuning
from service.settings import read_settings
from service.tuning import command
from service.tuning.trial import TrialError, Trials, made_up_inputs, prepare_requests
from tests.support.build_models import plain_graphs, publish_scores, write_model
from tests.support.server import ROOT, Server, running_server, wait_until

BUDGET = ("--budget-s", "3")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scores: published, with golden rows · two: bare, two inputs · picky: fails on large numbers · broken: refused."""
    root = tmp_path_factory.mktemp("models")
    publish_scores(root)
    for name in ("two", "picky"):
        write_model(root, name, plain_graphs()[name])
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / MODEL_FILE).write_bytes(b"not a model")
    return root


@pytest.fixture(scope="module")
def tuned(repository: Path) -> str:
    """What tuning `scores` prints."""
    done = tune("scores", "--slo-p99-ms", "2000", "--repository", str(repository), *BUDGET)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def no_process_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The servers' and the client's command lines name the temporary folder, which is this test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    assert not processes_with(str(tmp_path))
    assert not list(tmp_path.glob("shoal-tune-*"))


def tune(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "service", "tune", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def entry_of(repository: Path) -> Entry:
    (entry,) = read_tuning(repository / "scores").entries
    return entry


def test_what_was_measured_is_written_beside_the_versions(repository: Path, tuned: str) -> None:
    entry = entry_of(repository)
    assert entry.model_sha256 == digest_file(repository / "scores/1" / MODEL_FILE).sha256
    assert {measured.knobs for measured in entry.evidence} >= {entry.default, entry.choice.knobs}
    assert not any(measured.failed for measured in entry.evidence)
    assert all(measured.answers > 0 and 0 < measured.p50_ms <= measured.p99_ms for measured in entry.evidence)
    assert entry.evidence[0].clients == 1
    assert entry.choice.runs >= 1
    assert (repository / "scores" / PLOT_FILE).read_text().startswith("<svg")


def test_the_terminal_shows_every_measurement_the_table_the_plot_and_the_choice(repository: Path, tuned: str) -> None:
    entry = entry_of(repository)
    progress = [line for line in tuned.splitlines() if line.startswith(("search ", "again "))]
    assert len(progress) == len(entry.evidence)
    for said in (
        "* the choice",
        "limit 2000 |---",
        f"flags    {' '.join(entry.choice.knobs.flags())}",
        f"written  {repository / 'scores' / TUNING_FILE} and {PLOT_FILE}",
        entry.verdict,
    ):
        assert said in tuned


def test_serve_uses_the_choice_and_gives_way_to_flags(repository: Path, tuned: str) -> None:
    entry = entry_of(repository)
    knobs = entry.choice.knobs
    with running_server("--repository", str(repository), "--port", "0") as server:
        assert f"set-up from tuning.json of {entry.made_at[:10]}" in server.log()
        assert served(server) == f"{knobs.instances} instances x {knobs.threads} threads"
        assert f"batches up to {knobs.max_batch_size}" in line_of(server)
    flags = ("--engine.instances", "1", "--engine.threads", "1", "--batching.max-batch-size", "3")
    with running_server(
        "--repository", str(repository), "--port", "0", "--engine.tune-budget-s", "0", *flags
    ) as server:
        assert "gives way to settings made by hand: engine.instances, engine.threads" in server.log()
        assert served(server) == "1 instances x 1 threads"
        assert "batches up to 3" in line_of(server)


def line_of(server: Server) -> str:
    return next(line for line in server.printed if " scores version 1: " in line)


def served(server: Server) -> str:
    return line_of(server).partition(": ")[2].partition(",")[0]


@pytest.mark.usefixtures("no_process_is_left")
def test_a_limit_that_nothing_keeps_is_said_and_nothing_is_written(repository: Path) -> None:
    done = tune("two", "--slo-p99-ms", "0.001", "--repository", str(repository), *BUDGET)
    assert done.returncode == 3
    assert "No set-up keeps p99 within 0.001 ms; the closest: " in done.stderr
    assert [path.name for path in (repository / "two").iterdir()] == ["1"]


@pytest.mark.usefixtures("no_process_is_left")
def test_a_dry_run_writes_nothing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_SERVER__DRAIN_DELAY_S", "60")  # for balancers; a search has none
    begun = time.monotonic()
    done = tune("picky", "--slo-p99-ms", "2000", "--repository", str(repository), *BUDGET, "--dry-run")
    assert time.monotonic() - begun < 45
    assert done.returncode == 0, done.stderr
    assert "flags    --engine.instances" in done.stdout
    assert [path.name for path in (repository / "picky").iterdir()] == ["1"]


@pytest.mark.usefixtures("no_process_is_left")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_nothing_behind(repository: Path, tmp_path: Path, number: int) -> None:
    line = [sys.executable, "-m", "service", "tune", "two", "--slo-p99-ms", "2000", "--repository", str(repository)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any(said.startswith("search ") for said in process.stdout)  # a server and a client run
            assert len(processes_with(str(tmp_path))) >= 2  # the client and the server's
            process.send_signal(number)
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert "stopped; nothing was written" in process.stderr.read()
    wait_until(lambda: not processes_with(str(tmp_path)), "server and client are gone")
    assert [path.name for path in (repository / "two").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nope", "--slo-p99-ms", "5"], 1, "no model 'nope' in REPOSITORY; it has broken, picky, scores, two"),
        (["broken", "--slo-p99-ms", "5"], 1, "model broken version 1: "),
        (["two", "--slo-p99-ms", "-5"], 2, "'-5' is not a number above 0"),
        (["two"], 2, "--slo-p99-ms"),
        (["two", "--slo-p99-ms", "5", "--", "--engine.threads", "2"], 1, "engine.threads: given by hand"),
        (["two", "--slo-p99-ms", "5", "--", "--engine.device", "tpu"], 2, "settings: --engine.device"),
    ],
)
def test_what_cannot_be_tuned_is_refused_with_the_reason(
    repository: Path, arguments: list[str], status: int, said: str
) -> None:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    done = tune(*arguments[:at], "--repository", str(repository), *arguments[at:])
    assert done.returncode == status, done.stdout + done.stderr
    assert said.replace("REPOSITORY", str(repository)) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[engine]\nthread = 1\n", "model scores: model.toml: engine.thread: no such setting"),
        (
            "[engine]\nthreads = 1\n",
            "its settings file says engine.threads; serve would use nothing else",
        ),
    ],
)
def test_a_model_whose_settings_leave_nothing_to_find_is_not_tuned(tmp_path: Path, text: str, said: str) -> None:
    publish_scores(tmp_path)
    (tmp_path / "scores/model.toml").write_text(text)
    with pytest.raises(command._Refused, match=said):
        command._find(tmp_path, "scores")
    (tmp_path / "scores/model.toml").write_text("[requests]\ntimeout_ms = 100\n")
    assert command._find(tmp_path, "scores").version == "1"


def test_a_folder_that_cannot_be_written_is_told_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(command._Refused, match="--dry-run only prints the choice"):
        command._check(read_settings([], "serve"), tmp_path / "missing", dry_run=False)
    command._check(read_settings([], "serve"), tmp_path / "missing", dry_run=True)


def test_a_choice_that_cannot_be_written_at_the_end_is_an_error(
    repository: Path, tuned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command._write(tmp_path / "missing", entry_of(repository), "") == 1
    assert "the flags above do the same" in capsys.readouterr().err


@pytest.mark.usefixtures("no_process_is_left")
def test_several_inputs_without_golden_rows_are_answered(repository: Path) -> None:
    version = next(each for each in find_versions(repository) if each.name == "two")
    with Trials(version, [], 0.2) as trials:
        own = trials.look()
        assert [spec.name for spec in own.inputs] == ["a", "b"]
        measured = trials.measure(Knobs(1, 1, 8, 0), 4)
    assert measured.failed == 0
    assert measured.answers > 0


@pytest.mark.usefixtures("no_process_is_left")
def test_a_set_up_whose_requests_all_fail_is_an_error_with_the_servers_words(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = next(each for each in find_versions(repository) if each.name == "picky")
    monkeypatch.setattr(
        "service.tuning.trial.made_up_inputs", lambda inputs: {inputs[0].name: np.full(4, 10, np.int64)}
    )
    with Trials(version, [], 0.2) as trials:
        trials.look()
        with pytest.raises(TrialError, match=r"2 clients: .*error"):
            trials.measure(Knobs(1, 1, 8, 0), 2)


def test_golden_rows_are_what_is_sent(repository: Path) -> None:
    version = next(each for each in find_versions(repository) if each.name == "scores")
    requests = prepare_requests(version, read_manifest(version.path).inputs)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    assert [request.partition(b"\r\n\r\n")[2] for request in requests] == [image.tobytes() for image in images]


def test_made_up_rows_fit_types_and_shapes_and_stay_small() -> None:
    for graph in plain_graphs().values():
        rows = made_up_inputs(graph.inputs)
        for spec in graph.inputs:
            assert rows[spec.name].shape == (64, *spec.shape[1:])
    (large,) = made_up_inputs([TensorSpec("x", "FP32", (-1, 3, 1024, 1024))]).values()
    assert large.nbytes <= 16 << 20
