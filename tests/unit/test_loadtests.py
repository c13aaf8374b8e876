"""The load tests' own arithmetic: what counts as a wrong answer, how CPU time is added up, what a record says."""

import json
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from loadtests import answers, bench, gpu_bench, record
from loadtests.answers import Answer, Ledger, Samples, Tally, percentile
from loadtests.bare import Bare
from loadtests.check import disagreement
from loadtests.record import BareRun, Machine, ModelResult, Record, ServedRun
from loadtests.server import BenchError, Stat, parse_stat, read_metric, tree_ticks
from loadtests.wrk import Load, parse
from models.manifest import Classification


@pytest.fixture(scope="module")
def samples() -> Samples:
    return answers.load_samples()


# --- answers


def test_all_samples_are_digits_with_labels(samples: Samples) -> None:
    assert samples.images.shape == (1000, 28, 28, 1)
    assert samples.images.dtype == np.uint8
    assert set(samples.labels.tolist()) == set(range(10))


def test_every_way_to_write_holds_the_same_pixels(samples: Samples) -> None:
    indices = [3, 14]
    images = samples.images[indices]
    instances = json.loads(answers.write_json(samples, indices))["instances"]
    (tensor,) = json.loads(answers.write_infer_json(samples, indices))["inputs"]
    assert np.array_equal(instances, images)
    assert np.array_equal(tensor["data"], images)
    assert tensor["shape"] == [2, 28, 28, 1]
    assert answers.write_raw(samples, indices) == images.tobytes()
    assert answers.write_png(samples, [3]).startswith(b"\x89PNG")


def test_predictions_are_read_in_order() -> None:
    body = b'{"predictions": [{"label": "7", "probability": 0.9}, {"label": "2", "probability": 0.8}]}'
    assert answers.read_predictions(body, None) == [Answer(7, 0.9), Answer(2, 0.8)]


def test_binary_tensors_are_read_behind_their_header() -> None:
    logits, probabilities = np.zeros((2, 3), "<f4"), np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], "<f4")
    outputs = [
        {"name": name, "shape": [2, 3], "parameters": {"binary_data_size": 24}} for name in ("logits", "probabilities")
    ]
    head = json.dumps({"outputs": outputs}).encode()
    read = answers.read_infer(head + logits.tobytes() + probabilities.tobytes(), str(len(head)))
    assert [answer.label for answer in read] == [2, 0]
    assert read[1].probability == 0.5


def test_json_tensors_are_read_flat_or_nested() -> None:
    for data in ([0.1, 0.9, 0.8, 0.2], [[0.1, 0.9], [0.8, 0.2]]):
        body = json.dumps({"outputs": [{"name": "probabilities", "shape": [2, 2], "data": data}]}).encode()
        assert answers.read_infer(body, None) == [Answer(1, 0.9), Answer(0, 0.8)]


LABELS = np.array([5, 6, 7], np.uint8)


def test_a_misclassified_image_is_counted_and_is_no_fault() -> None:
    ledger = Ledger(LABELS)
    assert ledger.enter([0, 1], [Answer(5, 0.9), Answer(0, 0.6)]) is None
    assert (ledger.items, ledger.misclassified, ledger.accuracy) == (2, 1, 0.5)


@pytest.mark.parametrize("later", [Answer(6, 0.9), Answer(5, 0.8)])
def test_an_image_that_is_answered_in_two_ways_is_a_fault(later: Answer) -> None:
    ledger = Ledger(LABELS)
    assert ledger.enter([0], [Answer(5, 0.9)]) is None
    assert ledger.enter([0], [Answer(5, 0.9001)]) is None
    fault = ledger.enter([1, 0], [Answer(6, 0.9), later])
    assert fault is not None
    assert "changed answer" in fault


def test_swapped_rows_are_found_once_each_image_has_been_seen() -> None:
    ledger = Ledger(LABELS)
    ledger.enter([0, 1], [Answer(5, 0.9), Answer(6, 0.8)])
    assert ledger.enter([0, 1], [Answer(6, 0.8), Answer(5, 0.9)]) is not None


def test_another_number_of_answers_is_a_fault() -> None:
    assert Ledger(LABELS).enter([0, 1], [Answer(5, 0.9)]) == "1 answers for 2 items"


def test_a_run_passes_only_with_answers_no_failures_and_accuracy() -> None:
    tally, ledger = Tally(), Ledger(LABELS)
    assert answers.faults(tally, ledger) == ["nothing was answered"]
    tally.enter("png", 1.0, None)
    ledger.enter([0], [Answer(5, 0.9)])
    assert answers.faults(tally, ledger) == []
    tally.enter("png", 1.0, "status 503: full")
    ledger.enter([1], [Answer(9, 0.9)])
    assert answers.faults(tally, ledger) == [
        "1 of 2 requests failed",
        "accuracy 50.00%; expected at least 99%",
    ]


def test_the_summary_names_failures_and_the_verdict() -> None:
    tally, ledger = Tally(), Ledger(LABELS)
    for milliseconds in range(1, 101):
        tally.enter("png", milliseconds, "status 503: full" if milliseconds == 7 else None)
    ledger.enter([0], [Answer(5, 0.9)])
    text = answers.summary(tally, ledger, seconds=10, client_cpu=0.97)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["all"] == ["all", "100", "10", "50", "95", "99", "1"]
    assert "failed    1 x status 503: full" in text
    assert "locust is the limit" in text
    assert text.endswith("result    FAILED: 1 of 100 requests failed")


def test_percentiles_are_times_that_were_seen() -> None:
    times = Counter({1.0: 98, 5.0: 1, 9.0: 1})
    assert [percentile(times, share) for share in (0.5, 0.98, 0.99, 1.0)] == [1.0, 1.0, 5.0, 9.0]


# --- bench

STAT = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 150 50 20 10 20 0 5 0 100 1000 100 18446744073709551615 1"


def test_cpu_time_is_read_behind_the_name_whatever_it_holds() -> None:
    assert parse_stat(STAT) == Stat(pid=42, parent=7, ticks=150 + 50 + 20 + 10)


def test_cpu_time_of_a_tree_is_that_of_all_below_and_of_nobody_else() -> None:
    stats = [Stat(1, 0, 1000), Stat(10, 1, 100), Stat(11, 10, 20), Stat(12, 11, 3), Stat(20, 1, 5000)]
    assert tree_ticks(10, stats) == 123


def test_metrics_are_those_of_the_model() -> None:
    text = (
        'shoal_batch_size_bucket{le="1.0",model="mnist",version="1"} 3.0\n'
        'shoal_batch_size_count{model="mnist",version="1"} 4.0\n'
        'shoal_batch_size_sum{model="other",version="1"} 99.0\n'
        'shoal_batch_size_sum{model="mnist",version="1"} 1.2e+06\n'
    )
    assert read_metric(text, "shoal_batch_size_sum", "mnist") == 1_200_000
    assert read_metric(text, "shoal_batch_size_count", "mnist") == 4
    assert read_metric(text, "shoal_batch_size_count", "new") == 0


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


def test_answers_are_compared_with_bare_onnxruntime_label_by_label() -> None:
    classification = Classification("probabilities", ("cat", "dog"))
    expected = {"probabilities": np.array([0.25, 0.75], np.float32)}
    top = [{"label": "dog", "probability": 0.75}, {"label": "cat", "probability": 0.25}]
    assert disagreement({"top": top}, expected, classification) is None
    swapped = [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}]
    assert disagreement({"top": swapped}, expected, classification) == "probabilities differs by up to 0.5"


def test_plain_outputs_are_compared_by_name() -> None:
    expected = {"scores": np.array([[1.0, 2.0]], np.float32)}
    assert disagreement({"scores": [1.0, 2.00001]}, expected, None) is None
    assert disagreement({"scores": [1.0, 2.1]}, expected, None) == "scores differs by up to 0.1"


def made_up() -> Record:
    bare = [
        BareRun(when, Bare(batch, 2, items, 1.0, 2.0))
        for when, batch, items in [
            ("before", 1, 4000),
            ("before", 8, 8000),
            ("after", 1, 5000),
            ("after", 8, 10000),
        ]
    ]
    served = [
        ServedRun(number, clients, Load(requests, 2.0, 1.0, 3.0, 0, 0, 0.02), requests * 3e-4, requests, requests // 4)
        for number, clients, requests in [(1, 1, 2000), (2, 1, 2200), (3, 1, 2400), (1, 64, 9000), (2, 64, 9900)]
    ]
    return Record(
        created_at="2026-01-02T03:04:05+00:00",
        command="python -m loadtests.bench",
        commit="0123abc",
        machine=Machine("Some CPU", 2, 24.0, "6.1", 0.1),
        packages={"python": "3.11.7", "onnxruntime": "1.32.0"},
        seconds=2,
        rounds=3,
        models=[ModelResult("mnist", "ab" * 32, {"instances": 2}, 50, bare, served)],
    )


def test_a_row_of_the_table_is_the_median_and_the_spread_of_its_rounds() -> None:
    first, second = record.served_rows(made_up().models[0])
    assert str(first.rate) == "1,100 (1,000-1,200)"
    assert str(first.server_us) == "300"
    assert (second.batch, second.bare_batch) == (4.0, 8)  # 4 is twice as far from 1 as from 8
    assert second.bare_us == pytest.approx((2e6 / 8000 + 2e6 / 10000) / 2)


def test_the_page_says_what_the_numbers_say() -> None:
    page = record.page(made_up())
    assert "64 clients: 4,725 a second, 52% of the 9,000 items/s" in page
    assert "22% apart before and after" in page
    assert "a request took 300 µs of the server's CPU time in batches of 4.0" in page
    assert "None of 25,500 requests failed." in page
    assert "python -m loadtests.bench\n" in page


def test_failures_are_in_the_page() -> None:
    model = made_up().models[0]
    served = [replace(run, result=replace(run.result, non_2xx=2)) for run in model.served]
    sentences = " ".join(record.sentences(replace(model, served=served), cores=2))
    assert "10 of 25,500 requests failed." in sentences


def test_tables_line_up() -> None:
    assert record.table(["n", "value"], [["1", "10.5"], ["256", "3"]]).splitlines() == [
        "|   n | value |",
        "| --: | ----: |",
        "|   1 |  10.5 |",
        "| 256 |     3 |",
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [(12345.6, "12,346"), (99.95, "100.0"), (12.34, "12.3"), (0.456, "0.46"), (0.0, "0.00")]
)
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    assert record.digits(value) == expected


def test_a_record_holds_everything_and_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "2026-01-02_serving"
    record.write(folder, made_up())
    assert msgspec.json.decode((folder / "record.json").read_bytes(), type=Record) == made_up()
    with pytest.raises(BenchError, match="never overwritten"):
        record.write(folder, made_up())


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


def test_the_machine_is_described_without_its_name() -> None:
    machine = record.look_at_machine(2)
    assert machine.cpu
    assert machine.memory_gib > 0
    packages = record.look_at_packages()
    assert packages["python"].startswith("3.")
    assert (packages["wrk"] == "absent") == (shutil.which("wrk") is None)


# --- one device, all ways


def test_the_gpu_page_has_every_rate_and_every_load() -> None:
    served = gpu_bench._served(Load(900, 1.0, 1.5, 4.5, 0, 1, 0.1), 256, 0.5, 1800.0)
    result = gpu_bench.GpuRecord(
        created_at="2026-01-02T00:00:00",
        command="the command",
        commit="abc",
        machine=Machine("a CPU", 4, 8.0, "6.1", 0.1),
        packages={"python": "3.11", "onnxruntime": "1.32"},
        device="cuda",
        gpu="a GPU",
        model="mnist",
        sha256="5ha",
        engine={},
        rates={"engine": {1: 5000.0, 2: 9000.0}, "torch": {1: 1000.0}},
        served=[served],
    )
    page = gpu_bench.page(result)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["batch", "engine", "torch"]
    assert ["1", "5,000", "1,000"] in rows
    assert ["2", "9,000", "-"] in rows
    assert ["256", "50%", "50%", "900", "1.50", "4.50", "1"] in rows
    assert page.startswith("# mnist on a GPU, 2026-01-02")
