"""tuning.json: when an entry is used, why it is not, and that nothing in the file can stop a model from loading."""

import json
import logging
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from models.manifest import MODEL_FILE, digest_file
from service.engine.repository import FoundVersion, LoadedVersion, ModelSettings, find_versions, load_version
from service.engine.serve import model_settings
from service.engine.tuned import (
    PLOT_FILE,
    TUNING_FILE,
    Entry,
    Knobs,
    Machine,
    Measurement,
    Summary,
    Tuning,
    TuningError,
    choose_entry,
    look_at_machine,
    read_tuning,
    require_writable,
    write_entry,
)
from service.settings import read_settings, settings_by_hand
from tests.support.build_models import publish_scores

KNOBS = Knobs(1, 2, 16, 200)
MACHINE = Machine("a processor", 4, "cpu", "", "1.2.3")
SETTINGS = ModelSettings(
    device="cpu",
    cores=2,
    max_batch_size=64,
    max_queue_items=64,
    max_row_bytes=1 << 20,
    instances=None,
    threads=None,
    tune_budget_s=0.1,
)


def entry(sha256: str = "aa", machine: Machine = MACHINE, knobs: Knobs = KNOBS) -> Entry:
    summary = Summary(knobs, 64, 3, 1000.0, 900.0, 1100.0, 5.0, 10.0)
    return Entry(
        model_sha256=sha256,
        version="1",
        machine=machine,
        made_at="2026-01-02T03:04:05+00:00",
        slo_p99_ms=20.0,
        choice=summary,
        default=Knobs(2, 1, 32, 0),
        default_summary=None,
        verdict="better",
        flags=("--frontends", "2"),
        packages={"numpy": "2"},
        load=0.1,
        evidence=(Measurement(knobs, 64, 1000.0, 5.0, 10.0, 1000, 0, 1.0, 0.2, 1),),
    )


def test_an_entry_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_entry(tmp_path, entry(), "<svg/>")
    assert read_tuning(tmp_path) == Tuning(entries=(entry(),))
    assert sorted(path.name for path in tmp_path.iterdir()) == [TUNING_FILE, PLOT_FILE]
    assert (tmp_path / PLOT_FILE).read_text() == "<svg/>"


def test_one_entry_for_each_model_file_and_machine(tmp_path: Path) -> None:
    larger = replace(MACHINE, cores=8)
    for written in (entry(), entry(sha256="bb"), entry(machine=larger), entry(knobs=Knobs(2, 2, 2, 0))):
        write_entry(tmp_path, written, "")
    entries = read_tuning(tmp_path).entries
    assert [(each.model_sha256, each.machine.cores) for each in entries] == [("bb", 4), ("aa", 8), ("aa", 4)]
    assert entries[-1].choice.knobs == Knobs(2, 2, 2, 0)


def test_a_file_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    (tmp_path / TUNING_FILE).write_text("{")
    write_entry(tmp_path, entry(), "")
    assert read_tuning(tmp_path).entries == (entry(),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-20], "truncated"),
        (lambda text: text.replace('"threads": 2', '"threads": 0'), "$.entries[0].choice.knobs.threads"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "$.schema"),
        (lambda text: text.replace('"verdict"', '"vredict"'), "vredict"),
        (lambda text: text.replace("better", "\udcff"), "utf-8"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_says_where(tmp_path: Path, change, said: str) -> None:
    write_entry(tmp_path, entry(), "")
    path = tmp_path / TUNING_FILE
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(TuningError) as caught:
        read_tuning(tmp_path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(TuningError, match="missing: No such file or directory"):
        require_writable(missing)
    with pytest.raises(TuningError, match="No such file or directory"):
        write_entry(missing, entry(), "")
    require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cores": 2}, "cores 4, here 2"),
        ({"cpu": "another"}, "cpu a processor, here another"),
        ({"device": "cuda", "gpu": "H100"}, "device cpu, here cuda; gpu unknown, here H100"),
        ({"onnxruntime": "2.0"}, "onnxruntime 1.2.3, here 2.0"),
    ],
)
def test_another_machine_is_named_by_what_differs(change: dict[str, object], said: str) -> None:
    tuned = choose_entry(Tuning(entries=(entry(),)), "aa", replace(MACHINE, **change), ())
    assert tuned == (None, f"tuning.json is for another machine: {said}")


def test_an_entry_that_fits_is_used_and_its_date_said() -> None:
    others = (entry(machine=replace(MACHINE, cores=8), knobs=Knobs(8, 1, 8, 0)), entry(), entry("bb"))
    knobs, why = choose_entry(Tuning(entries=others), "aa", MACHINE, ())
    assert knobs == KNOBS
    assert why.startswith("set-up from tuning.json of 2026-01-02 ")


def test_another_version_and_settings_by_hand_are_said() -> None:
    tuning = Tuning(entries=(entry(),))
    assert choose_entry(tuning, "bb", MACHINE, ()).why == "tuning.json is for other versions; tune this one again"
    tuned = choose_entry(tuning, "aa", MACHINE, ("engine.threads",))
    assert tuned == (None, "tuning.json gives way to settings made by hand: engine.threads")
    assert choose_entry(Tuning(), "aa", MACHINE, ("engine.threads",)) == (None, "")


@pytest.mark.parametrize("name", ["instances", "threads"])
def test_a_setting_of_any_source_is_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    assert settings_by_hand(read_settings(["--engine.cores", "1"], "serve")) == ()
    assert settings_by_hand(read_settings([f"--engine.{name}", "1"], "serve")) == (f"engine.{name}",)
    monkeypatch.setenv("SHOAL_BATCHING__MAX_QUEUE_DELAY_US", "0")  # the default, and yet said
    (tmp_path / "shoal.toml").write_text("[batching]\nmax_batch_size = 64\n")
    settings = read_settings(["--config", str(tmp_path / "shoal.toml")], "serve")
    assert settings_by_hand(settings) == ("batching.max_batch_size", "batching.max_queue_delay_us")
    assert model_settings(settings).by_hand == settings_by_hand(settings)


def test_any_gpu_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.tuned._gpu_name", lambda: "H100")
    assert [look_at_machine(device, 2).gpu for device in ("cpu", "cuda", "tensorrt")] == ["", "H100", "H100"]


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def found(tmp_path: Path) -> FoundVersion:
    """A model with a tuning.json for this machine beside its version."""
    folder = publish_scores(tmp_path)
    write_entry(folder.parent, entry(digest_file(folder / MODEL_FILE).sha256, look_at_machine("cpu", 2)), "<svg/>")
    (version,) = find_versions(tmp_path)
    return version


def load(found: FoundVersion, settings: ModelSettings = SETTINGS) -> LoadedVersion:
    loaded = load_version(found, settings)
    os.close(loaded.arena_fd)
    return loaded


def setup_of(loaded: LoadedVersion) -> tuple[int, int, int, int | None]:
    setup = loaded.setup
    return len(setup.instances), setup.threads, setup.max_batch_size, loaded.max_queue_delay_us


def test_what_was_tuned_is_used_whole(found: FoundVersion, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded = load(found)
    assert setup_of(loaded) == (1, 2, 16, 200)
    assert loaded.golden_rows == 3
    assert [record.getMessage() for record in caplog.records] == [
        "model scores version 1: set-up from tuning.json of 2026-01-02 (p99 within 20 ms): "
        "1 x 2 threads, batch 16, delay 200 µs"
    ]


def test_a_batch_larger_than_the_arena_is_cut(found: FoundVersion) -> None:
    assert setup_of(load(found, ModelSettings("cpu", 2, 8, 8, 1 << 20, None, None, 0.1)))[2] == 8


def test_settings_by_hand_win(found: FoundVersion, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded = load(
        found, ModelSettings("cpu", 2, 4, 64, 1 << 20, 2, 1, 0.0, by_hand=("engine.instances", "engine.threads"))
    )
    assert setup_of(loaded) == (2, 1, 4, None)
    assert "tuning.json gives way to settings made by hand: engine.instances, engine.threads" in caplog.text


def test_an_entry_for_other_cores_is_not_used(found: FoundVersion, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded = load(found, ModelSettings("cpu", 1, 64, 64, 1 << 20, None, None, 0.1))
    assert setup_of(loaded)[:2] == (1, 1)
    assert loaded.max_queue_delay_us is None
    assert "tuning.json is for another machine: cores 2, here 1" in caplog.text


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1, "entries": 5}', json.dumps([])])
def test_a_corrupt_file_is_one_warning(found: FoundVersion, caplog: pytest.LogCaptureFixture, text: str) -> None:
    (found.path.parent / TUNING_FILE).write_text(text)
    loaded = load(found)
    assert loaded.facts.instances * loaded.facts.threads <= 2
    assert loaded.max_queue_delay_us is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert TUNING_FILE in record.getMessage()


def test_files_beside_the_versions_are_no_versions(found: FoundVersion) -> None:
    assert {path.name for path in found.path.parent.iterdir()} == {"1", TUNING_FILE, PLOT_FILE}
    assert [(each.name, each.version) for each in find_versions(found.path.parents[1])] == [("scores", "1")]
