"""A shadow's answers held against those that it repeats: what is the same, by kind of tensor."""

from typing import Any

import numpy as np
import pytest

from models.manifest import Classification, Datatype, TensorInput, TensorSpec
from service.batching import strings
from service.batching.arena import ShapedRow
from service.batching.link import ModelFacts
from service.frontend.comparison import Compared, comparable, compare

INF, NAN = float("inf"), float("nan")


def facts(*outputs: TensorSpec, **others: Any) -> ModelFacts:
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    given = {"classification": None, **others}
    return ModelFacts(
        name="m",
        version="1",
        description="",
        inputs=inputs,
        outputs=outputs,
        input=TensorInput(),
        capacity=8,
        max_batch_size=8,
        instances=1,
        threads=1,
        items_per_s=1.0,
        **given,
    )


def compared(datatype: Datatype, theirs: Any, ours: Any, **others: Any) -> Compared:
    """Of one output; the arrays are [n, elements] in its type."""
    model = facts(TensorSpec("y", datatype, (-1, theirs.shape[1])), **others)
    return compare(model, model, len(theirs), {"y": theirs.tobytes()}, {"y": ours.tobytes()})


@pytest.mark.parametrize(
    ("theirs", "ours", "disagrees", "difference"),
    [
        (1.0, 1.0, False, 0.0),
        (1000.0, 1000.5, False, 0.5),  # relative
        (1000.0, 1002.0, True, 2.0),
        (0.0, 0.00005, False, 0.00005),  # absolute
        (0.0, 0.0005, True, 0.0005),
        (NAN, NAN, False, 0.0),
        (NAN, 1.0, True, INF),
        (1.0, NAN, True, INF),
        (INF, INF, False, 0.0),
        (INF, -INF, True, INF),
        (INF, 5.0, True, INF),
        (5.0, INF, True, INF),
    ],
)
@pytest.mark.parametrize("beside", [0.0, 7.0])
def test_floats_agree_within_the_tolerance(
    theirs: float, ours: float, disagrees: bool, difference: float, beside: float
) -> None:
    """An element beside it that agrees changes nothing."""
    found = compared("FP64", np.array([[beside, theirs]]), np.array([[beside, ours]]))
    assert found == (1, disagrees, [pytest.approx(difference)])


def test_each_item_is_judged_alone() -> None:
    theirs = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    found = compared("FP32", theirs, theirs + np.array([[0, 0], [0, 1], [0, 0]], np.float32))
    assert found == (3, 1, [0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("UINT8", np.array([[0], [255]], np.uint8)),
        ("INT64", np.array([[-(2**62)], [2**62]])),
        ("UINT64", np.array([[0], [2**64 - 1]], np.uint64)),
        ("BOOL", np.array([[False], [True]])),
    ],
)
def test_whole_numbers_and_truth_values_have_no_difference_of_floats(datatype: Datatype, array: Any) -> None:
    assert compared(datatype, array, array) == (2, 0, [])
    assert compared(datatype, array, array[::-1]) == (2, 2, [])


def test_bf16_is_compared_as_the_numbers_that_its_bits_are() -> None:
    one, two = 0x3F80, 0x4000
    found = compared("BF16", np.array([[one], [one]], np.uint16), np.array([[one], [two]], np.uint16))
    assert found == (2, 1, [0.0, 1.0])


LABELS = Classification("y", ("cat", "dog"))


def test_with_labels_answers_agree_where_the_best_class_is_the_same() -> None:
    theirs = np.array([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]], np.float32)
    ours = np.array([[0.6, 0.4], [0.4, 0.6], [0.1, 0.9]], np.float32)
    found = compared("FP32", theirs, ours, classification=LABELS)
    assert found == (3, 1, [pytest.approx(0.3), pytest.approx(0.2), 0.0])


def test_versions_with_other_labels_are_compared_by_value() -> None:
    spec = TensorSpec("y", "FP32", (-1, 2))
    scores = np.array([[0.9, 0.1]], np.float32).tobytes()
    other = facts(spec, classification=Classification("y", ("dog", "cat")))
    assert compare(facts(spec, classification=LABELS), other, 1, {"y": scores}, {"y": scores}) == (1, 0, [0.0])


def test_items_of_differing_size_agree_in_shape_and_value() -> None:
    model = facts(TensorSpec("y", "FP32", (-1, -1)))
    row = ShapedRow((2,), np.array([1, 2], np.float32).tobytes())
    near = ShapedRow((2,), np.array([1, 2.001], np.float32).tobytes())
    far = ShapedRow((2,), np.array([1, 4], np.float32).tobytes())
    longer = ShapedRow((3,), np.array([1, 2, 3], np.float32).tobytes())
    empty = ShapedRow((0,), b"")
    theirs = [row, row, row, row, empty]
    found = compare(model, model, 5, {"y": theirs}, {"y": [row, near, far, longer, empty]})
    assert found == (5, 2, [0.0, pytest.approx(0.001, rel=1e-3), 2.0, INF, 0.0])


def test_strings_agree_where_they_are_equal() -> None:
    model = facts(TensorSpec("y", "BYTES", (-1, 1)))
    a, b = (ShapedRow((1,), strings.pack([word])) for word in (b"a", b"b"))
    assert compare(model, model, 2, {"y": [a, a]}, {"y": [a, b]}) == (2, 1, [])


def test_one_output_that_differs_is_enough() -> None:
    model = facts(TensorSpec("y", "FP32", (-1, 1)), TensorSpec("z", "INT32", (-1, 1)))
    y, z = np.zeros((1, 1), np.float32).tobytes(), np.zeros((1, 1), np.int32)
    assert compare(model, model, 1, {"y": y, "z": z.tobytes()}, {"y": y, "z": (z + 1).tobytes()}) == (1, 1, [0.0])


Y, Z = TensorSpec("y", "FP32", (-1, 2)), TensorSpec("z", "FP32", (-1, 2))


@pytest.mark.parametrize(
    ("shadow", "expected"),
    [
        (facts(Y, Z), True),
        (facts(Z, Y), True),  # in another order
        (facts(Y), False),
        (facts(Y, TensorSpec("z", "FP64", (-1, 2))), False),
        (facts(Y, TensorSpec("z", "FP32", (-1, 3))), False),
        (facts(Y, Z, batch_axis=False), False),
        (facts(Y, Z, max_row_bytes=50), False),  # rows of the other may not fit
        (facts(Y, Z, max_row_bytes=200), True),
    ],
)
def test_versions_of_the_same_tensors_can_be_compared(shadow: ModelFacts, expected: bool) -> None:
    assert comparable(facts(Y, Z, max_row_bytes=0 if shadow.max_row_bytes == 0 else 100), shadow) is expected
