import math

import numpy as np
import pytest

from training.metrics import (
    ClassScore,
    accuracy_interval,
    calibration,
    classification,
    confusion,
    cross_entropy,
    per_class,
    ranks,
    regression,
)

# true      a a a a  b b b  c
# predicted a a a b  b b c  a
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2], np.uint8)
PREDICTIONS = np.array([0, 0, 0, 1, 1, 1, 2, 0])
COUNTS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 0]])


def probabilities_of(top: list[float], k: int, answers: list[int]) -> np.ndarray:
    """float32 [n, k]: `top` for the answer, the rest spread evenly."""
    rows = np.array([[(1 - share) / (k - 1)] * k for share in top])
    rows[np.arange(len(top)), answers] = top
    return rows.astype(np.float32)


def test_confusion_counts_true_labels_in_rows_and_answers_in_columns() -> None:
    counts = confusion(PREDICTIONS, LABELS, 3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, COUNTS)


def test_labels_of_one_byte_do_not_overflow_a_large_table() -> None:
    counts = confusion(np.array([199, 3]), np.array([200, 255], np.uint8), 256)
    assert counts[200, 199] == counts[255, 3] == 1
    assert counts.sum() == 2


def test_a_label_beyond_the_table_is_refused_and_not_counted_elsewhere() -> None:
    with pytest.raises(IndexError):
        confusion(np.array([3]), np.array([0]), 3)


def test_scores_of_each_label_are_those_counted_by_hand() -> None:
    assert per_class(COUNTS) == (
        ClassScore(precision=3 / 4, recall=3 / 4, f1=3 / 4, items=4),
        ClassScore(precision=2 / 3, recall=2 / 3, f1=2 / 3, items=3),
        ClassScore(precision=0.0, recall=0.0, f1=0.0, items=1),
    )


def test_a_label_never_predicted_has_precision_0_and_one_without_items_recall_0() -> None:
    never_predicted, without_items = per_class(np.array([[0, 5], [0, 0]]))
    assert never_predicted == ClassScore(precision=0.0, recall=0.0, f1=0.0, items=5)
    assert without_items == ClassScore(precision=0.0, recall=0.0, f1=0.0, items=0)


def test_classification_of_known_probabilities() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]], np.float32)
    found = classification(np.log(probabilities), probabilities, np.array([0, 2, 2, 0], np.uint8))
    assert found == pytest.approx(
        {
            "accuracy": 3 / 4,
            "cross_entropy": -(math.log(0.7) + math.log(0.25) + math.log(0.8) + math.log(0.6)) / 4,
            "macro_precision": 1.0,  # over labels 0 and 2; no item carries 1
            "macro_recall": (1 + 1 / 2) / 2,
            "macro_f1": (1 + 2 / 3) / 2,
            "calibration_error": (0.3 + 0.5 + 0.2 + 0.4) / 4,  # each in a bin of its own
        },
        abs=1e-7,
    )


def test_top5_accuracy_is_there_from_six_labels_on() -> None:
    logits = np.array([[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]], np.float32)
    both = np.array([4, 5])  # the fifth likeliest, and the sixth
    assert classification(logits, logits / 21, both)["top5_accuracy"] == 0.5
    assert "top5_accuracy" not in classification(logits[:, :5], logits[:, :5] / 20, np.array([4, 4]))


def test_equal_logits_rank_in_order_as_argmax_takes_the_first() -> None:
    np.testing.assert_array_equal(ranks(np.zeros((3, 3), np.float32), np.array([0, 1, 2], np.uint8)), [0, 1, 2])


def test_a_single_item_has_all_scores() -> None:
    right = classification(np.array([[5.0, -5.0]], np.float32), np.array([[1.0, 0.0]], np.float32), np.array([0]))
    assert right == pytest.approx(
        {
            "accuracy": 1.0,
            "cross_entropy": math.log1p(math.exp(-10)),
            "macro_precision": 1.0,
            "macro_recall": 1.0,
            "macro_f1": 1.0,
            "calibration_error": 0.0,
        }
    )


def test_huge_logits_do_not_overflow() -> None:
    assert cross_entropy(np.array([[1e4, 0.0]], np.float32), np.array([1], np.uint8)) == 1e4


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0.5, 1), (0.50001, 2), (0.75, 2), (0.76, 3), (1.0, 3), (1.0000001, 3)],
)
def test_a_bin_excludes_its_lower_edge_and_holds_its_upper_one(probability: float, expected: int) -> None:
    binned = calibration(np.array([[probability, 1 - probability]], np.float32), np.array([0]), bins=4)
    assert binned.items.tolist() == [int(index == expected) for index in range(4)]


def test_calibration_weighs_the_gap_of_each_bin_by_its_items() -> None:
    probabilities = probabilities_of([0.9, 0.9, 0.9, 0.9, 0.55], 2, [0, 1, 0, 1, 0])
    binned = calibration(probabilities, np.array([0, 1, 0, 0, 1]), bins=5)
    assert binned.items.tolist() == [0, 0, 1, 0, 4]
    np.testing.assert_allclose(binned.confidence, [math.nan, math.nan, 0.55, math.nan, 0.9], rtol=1e-6)
    np.testing.assert_allclose(binned.accuracy, [math.nan, math.nan, 0, math.nan, 0.75])
    assert binned.error == pytest.approx((1 * 0.55 + 4 * 0.15) / 5)


def test_regression_of_known_numbers() -> None:
    found = regression(np.array([2, 2, 5], np.float32), np.array([1, 2, 6], np.float32))
    assert found == pytest.approx({"mse": 2 / 3, "mae": 2 / 3, "r2": 1 - 2 / 14})


def test_a_column_of_predictions_is_not_spread_over_a_row_of_targets() -> None:
    column, row = np.array([[2], [2], [5]], np.float32), np.array([1, 2, 6], np.float32)
    assert regression(column, row) == regression(row * 0 + column[:, 0], row)
    with pytest.raises(AssertionError, match="2 predictions for 3 targets"):
        regression(column[:2], row)


def test_the_mean_of_the_targets_explains_nothing_of_them() -> None:
    targets = np.array([1, 2, 6], np.float32)
    assert regression(np.full(3, 3, np.float32), targets)["r2"] == 0


@pytest.mark.parametrize(("prediction", "r2"), [(0.1, 1.0), (0.2, 0.0)])
@pytest.mark.parametrize("n", [1, 3])
def test_constant_targets_are_explained_only_without_any_error(prediction: float, r2: float, n: int) -> None:
    assert regression(np.full(n, prediction, np.float32), np.full(n, 0.1, np.float32))["r2"] == r2


@pytest.mark.parametrize(
    ("accuracy", "items", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0.9, 50, 0.7864, 0.9565), (1.0, 10, 0.7225, 1.0), (0.0, 10, 0.0, 0.2775)],
)
def test_the_accuracy_interval_is_wilsons(accuracy: float, items: int, low: float, high: float) -> None:
    assert accuracy_interval(accuracy, items) == pytest.approx((low, high), abs=1e-4)
