"""The load test's own arithmetic: what counts as a wrong answer, and what a run says in the end."""

import json
from collections import Counter

import numpy as np
import pytest

from loadtests import answers
from loadtests.answers import Answer, Ledger, Samples, Tally, percentile


@pytest.fixture(scope="module")
def samples() -> Samples:
    return answers.load_samples()


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
