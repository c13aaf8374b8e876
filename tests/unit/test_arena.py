"""Rows of items that differ in size: what is written is what is read, and no row reaches into another."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import TensorSpec
from service.batching import strings
from service.batching.arena import (
    MOST_ITEM_AXES,
    Arena,
    ShapedRow,
    create_arena,
    has_fixed_rows,
    row_bytes,
    stride_bytes,
)

RAGGED = TensorSpec("x", "FP32", (-1, -1))
FIXED = TensorSpec("y", "INT64", (-1, 2))
WORDS = TensorSpec("z", "BYTES", (-1, 2))
CAPACITY, LARGEST = 4, 100


@pytest.fixture
def arenas() -> tuple[Arena, Arena]:
    """Two mappings of one arena, as a frontend and an engine have."""
    fd, arena = create_arena([RAGGED, FIXED], [WORDS], CAPACITY, True, LARGEST)
    other = Arena(fd, [RAGGED, FIXED], [WORDS], CAPACITY, True, LARGEST)
    os.close(fd)
    return arena, other


def test_tensors_are_in_the_regions_of_their_kind(arenas: tuple[Arena, Arena]) -> None:
    arena, _ = arenas
    assert list(arena.inputs) == ["y"]
    assert list(arena.shaped_inputs) == ["x"]
    assert list(arena.outputs) == []
    assert list(arena.shaped_outputs) == ["z"]


def test_full_rows_side_by_side_keep_to_themselves(arenas: tuple[Arena, Arena]) -> None:
    written, read = arenas
    for slot in range(CAPACITY):
        written.shaped_inputs["x"].write(slot, ShapedRow((5, 5), bytes([slot]) * LARGEST))
        written.inputs["y"].write([slot], bytes([10 + slot]) * 16)
        written.shaped_outputs["z"].write(slot, ShapedRow((2,), bytes([20 + slot]) * LARGEST))
    for slot in range(CAPACITY):
        assert read.shaped_inputs["x"].data(slot) == bytes([slot]) * LARGEST
        assert read.shaped_inputs["x"].shape(slot) == (5, 5)
        assert read.inputs["y"].array[slot].tobytes() == bytes([10 + slot]) * 16
        assert read.shaped_outputs["z"].data(slot) == bytes([20 + slot]) * LARGEST
        assert read.shaped_outputs["z"].shape(slot) == (2,)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2**40, 0), tuple(range(MOST_ITEM_AXES))])
def test_a_row_says_the_shape_that_was_written_last(arenas: tuple[Arena, Arena], shape: tuple[int, ...]) -> None:
    written, read = arenas
    written.shaped_inputs["x"].write(1, ShapedRow((7, 7, 7), b"x" * 50))
    written.shaped_inputs["x"].write(1, ShapedRow(shape, b"abc"))
    assert read.shaped_inputs["x"].shape(1) == shape
    assert read.shaped_inputs["x"].data(1) == b"abc"


def test_an_item_larger_than_its_row_is_a_bug(arenas: tuple[Arena, Arena]) -> None:
    with pytest.raises(AssertionError, match="bug: an item of 101 bytes"):
        arenas[0].shaped_inputs["x"].write(0, ShapedRow((101,), b"x" * 101))


def test_an_arena_smaller_than_its_layout_is_not_mapped() -> None:
    fd, _ = create_arena([RAGGED], [], CAPACITY, True, LARGEST)
    with pytest.raises(OSError, match="its layout needs"):
        Arena(fd, [RAGGED], [], CAPACITY, True, LARGEST + 64)
    os.close(fd)


@pytest.mark.parametrize(
    ("datatype", "shape", "batch_axis", "fixed"),
    [
        ("FP32", (-1,), True, True),
        ("FP32", (-1, 3), True, True),
        ("BF16", (-1, 3), True, True),
        ("FP32", (-1, 3), False, False),
        ("FP32", (2, 3), False, True),
        ("FP32", (-1, -1), True, False),
        ("FP32", (-1, 0), True, False),
        ("FP32", (), False, False),  # a scalar, or a tensor of any axes
        ("BYTES", (-1, 3), True, False),
    ],
)
def test_which_rows_have_a_fixed_size(datatype: str, shape: tuple[int, ...], batch_axis: bool, fixed: bool) -> None:
    spec = TensorSpec("x", datatype, shape)
    assert has_fixed_rows(spec, batch_axis) == fixed
    if fixed:
        assert stride_bytes(spec, batch_axis, LARGEST) == row_bytes(spec, batch_axis)


def test_rows_without_a_batch_axis_have_the_tensors_size() -> None:
    spec = TensorSpec("x", "FP64", (2, 3))
    fd, arena = create_arena([spec], [], 2, False)
    os.close(fd)
    arena.inputs["x"].write([1], np.arange(6.0).tobytes())
    assert arena.inputs["x"].array[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert row_bytes(spec, False) == 48


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_strings_come_back_as_they_were_packed(elements: list[bytes]) -> None:
    packed = strings.pack(elements)
    assert strings.unpack(packed) == elements
    assert len(packed) == sum(4 + len(element) for element in elements)


@given(st.binary(max_size=40))
def test_bytes_are_strings_or_refused(data: bytes) -> None:
    try:
        elements = strings.unpack(data)
    except ValueError:
        return
    assert strings.pack(elements) == data
