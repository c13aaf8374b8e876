"""Outputs whose items differ in size, as tensors and as JSON."""

import numpy as np
import pytest

from models.manifest import TensorInput, TensorSpec
from service.batching.arena import ShapedRow
from service.batching.link import ModelFacts
from service.errors import EngineError
from service.frontend.shaped import joined, nested_values

SPEC = TensorSpec("y", "FP32", (-1, -1))


def facts(batch_axis: bool = True) -> ModelFacts:
    return ModelFacts(
        name="m",
        version="1",
        description="",
        inputs=(),
        outputs=(SPEC,),
        input=TensorInput(),
        classification=None,
        capacity=4,
        max_batch_size=4,
        instances=1,
        threads=1,
        items_per_s=1.0,
        batch_axis=batch_axis,
        max_row_bytes=100,
    )


def row(*values: float) -> ShapedRow:
    return ShapedRow((len(values),), np.array(values, np.float32).tobytes())


def test_items_of_one_shape_make_a_tensor() -> None:
    shape, data = joined(facts(), SPEC, [row(1, 2), row(3, 4)])
    assert shape == [2, 2]
    assert np.frombuffer(data, np.float32).tolist() == [1, 2, 3, 4]
    assert joined(facts(batch_axis=False), SPEC, [row(1, 2)])[0] == [2]


def test_items_of_unequal_shapes_make_none_and_the_error_says_what_to_do() -> None:
    with pytest.raises(EngineError, match=r"'y' has items of unequal shapes, \[2\] and \[3\].*requests of their own"):
        joined(facts(), SPEC, [row(1, 2), row(3, 4, 5)])


@pytest.mark.parametrize(
    ("shape", "expected"), [((), 7.0), ((1,), [7.0]), ((1, 1), [[7.0]]), ((0,), []), ((2, 0), [[], []])]
)
def test_values_are_nested_as_the_shape_says(shape: tuple[int, ...], expected: object) -> None:
    data = np.full(shape, 7, np.float32).tobytes()
    assert nested_values(SPEC, ShapedRow(shape, data)) == expected
