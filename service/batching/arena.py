"""The arena: where frontends write items and the engine reads them, without a copy between processes.

One memfd mapping per model version: for each tensor one contiguous region of `capacity` rows, a row being one item.

    ┌ input "image" ──────────────┬ output "logits" ───┬ output "probabilities" ┐
    │ row 0 │ row 1 │ … │ row n-1 │ row 0 │ … │ row n-1 │ row 0 │ …    │ row n-1 │   regions start on 64 bytes
    └─────────────────────────────┴────────────────────┴────────────────────────┘
    slot i = row i of every region

A row has the size of its item. Where items differ in size (variable axes, strings), rows have room for the largest
that is allowed, and each begins with its item's shape: `ShapedRegion`. Room that nothing is written to costs nothing.

    free ──claim──► claimed ──commit──► waiting ──take──► running ──complete──► answered ──release──► free
          frontend            frontend           engine            engine                 frontend

A slot belongs to one frontend from claim to release; the engine touches it only between commit and complete. Slot
numbers cross on the link (`link.py`), never through shared counters: the socket orders the writes, and its end of
file tells either side that the other is gone. Why not locks or shared rings: docs/adr/0002. A region per tensor, not
per slot, so that a batch is filled by plain copies and each tensor of it is contiguous.
Checked by tests/property/test_slots.py and tests/unit/test_arena.py.
"""

import mmap
import os
import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, NewType

import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, Datatype, TensorSpec

SlotIndex = NewType("SlotIndex", int)
RowBytes = bytes | bytearray | memoryview
"""Items of one input one after another, each row-major and little-endian."""

Rows = RowBytes | list["ShapedRow"]
"""Items of any input: a list where they differ in size."""

REGION_ALIGNMENT_BYTES = 64  # a cache line, and the widest vector load
MOST_ITEM_AXES = 16

_RECORD_HEAD = struct.Struct("<qq")  # bytes of the item, axes; behind it the axes' lengths
_RECORD_BYTES = _RECORD_HEAD.size + 8 * MOST_ITEM_AXES


class ShapedRow(NamedTuple):
    """One item of a tensor whose items have no fixed size. `data`: row-major and little-endian, or packed strings."""

    shape: tuple[int, ...]
    data: RowBytes


class Region:
    """One tensor's rows, all of one size. Slots are given in the order of the items.

    array   [capacity, elements of an item], a view

    Rows are copied through memoryviews. numpy gives the interpreter's lock away to copy more than 500 elements, and
    where other threads wait for it, one of them runs first: 12 us for a row of 784 bytes, against 0.8
    (loadtests/records/2026-11-23_row-copies).
    """

    def __init__(
        self, mapping: mmap.mmap, spec: TensorSpec, offset: int, capacity: int, batch_axis: bool = True
    ) -> None:
        self._row_bytes = row_bytes(spec, batch_axis)
        self._bytes = memoryview(mapping)[offset : offset + capacity * self._row_bytes]
        elements = prod(item_shape(spec, batch_axis))
        self.array: npt.NDArray[Any] = np.ndarray((capacity, elements), NUMPY_OF[spec.datatype], mapping, offset)

    def write(self, slots: Sequence[int], data: RowBytes) -> None:
        """`data`: one row for each of `slots`, nothing more or less."""
        size = self._row_bytes
        if len(slots) == 1:
            start = slots[0] * size
            self._bytes[start : start + size] = data
            return
        with memoryview(data) as rows:
            for i, slot in enumerate(slots):
                self._bytes[slot * size : (slot + 1) * size] = rows[i * size : (i + 1) * size]

    def row(self, slot: int) -> memoryview:
        """A view."""
        return self._bytes[slot * self._row_bytes : (slot + 1) * self._row_bytes]

    def read_into(self, buffer: memoryview, slots: Sequence[int]) -> None:
        """Fill the front of `buffer`, which is of bytes."""
        size = self._row_bytes
        for i, slot in enumerate(slots):
            buffer[i * size : (i + 1) * size] = self._bytes[slot * size : (slot + 1) * size]

    def read(self, slots: Sequence[int]) -> bytes:
        """A copy of the rows, one after another."""
        size = self._row_bytes
        return b"".join([self._bytes[slot * size : (slot + 1) * size] for slot in slots])


class ShapedRegion:
    """One tensor's rows where items differ in size: each row is a record of its item's shape, then the item.

    max_row_bytes   the largest item that fits, without the record
    """

    def __init__(self, mapping: mmap.mmap, offset: int, capacity: int, max_row_bytes: int) -> None:
        self.max_row_bytes = max_row_bytes
        self._stride = _shaped_stride(max_row_bytes)
        self._bytes = memoryview(mapping)[offset : offset + capacity * self._stride]

    def write(self, slot: int, row: ShapedRow) -> None:
        """The caller has checked that it fits."""
        shape, data = row
        start, size = slot * self._stride, memoryview(data).nbytes
        assert size <= self.max_row_bytes, f"bug: an item of {size} bytes for a row of {self.max_row_bytes}"
        struct.pack_into(f"<{2 + len(shape)}q", self._bytes, start, size, len(shape), *shape)
        start += _RECORD_BYTES
        self._bytes[start : start + size] = data

    def shape(self, slot: int) -> tuple[int, ...]:
        """Of the item that was written last."""
        start = slot * self._stride
        _, axes = _RECORD_HEAD.unpack_from(self._bytes, start)
        return struct.unpack_from(f"<{axes}q", self._bytes, start + _RECORD_HEAD.size)

    def record(self, slot: int) -> memoryview:
        """Of the item's bytes and shape: a view of what was written, from which its own length follows."""
        start = slot * self._stride
        _, axes = _RECORD_HEAD.unpack_from(self._bytes, start)
        return self._bytes[start : start + _RECORD_HEAD.size + 8 * axes]

    def data(self, slot: int) -> memoryview:
        """The item's bytes: a view."""
        start = slot * self._stride
        size, _ = _RECORD_HEAD.unpack_from(self._bytes, start)
        return self._bytes[start + _RECORD_BYTES : start + _RECORD_BYTES + size]

    def read(self, slots: Sequence[int]) -> list[ShapedRow]:
        """A copy of the items."""
        return [ShapedRow(self.shape(slot), bytes(self.data(slot))) for slot in slots]


class Arena:
    """Regions by tensor name: writing them writes shared memory. A tensor is either in `inputs` or `shaped_inputs`."""

    def __init__(
        self,
        fd: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        capacity: int,
        batch_axis: bool = True,
        max_row_bytes: int = 0,
    ) -> None:
        """Map `fd`, which stays the caller's to close. Raises OSError when it is smaller than the layout needs.

        batch_axis      dimension 0 counts the items; otherwise an item is the whole tensor
        max_row_bytes   the largest item of tensors whose items differ in size
        """
        offsets, size_bytes = _layout([*inputs, *outputs], capacity, batch_axis, max_row_bytes)
        if os.fstat(fd).st_size < size_bytes:
            raise OSError(f"arena of {os.fstat(fd).st_size} bytes, but its layout needs {size_bytes}")
        mapping = mmap.mmap(fd, size_bytes)
        self.inputs: dict[str, Region] = {}
        self.outputs: dict[str, Region] = {}
        self.shaped_inputs: dict[str, ShapedRegion] = {}
        self.shaped_outputs: dict[str, ShapedRegion] = {}
        sides = [(self.inputs, self.shaped_inputs)] * len(inputs) + [(self.outputs, self.shaped_outputs)] * len(outputs)
        for spec, offset, (fixed, shaped) in zip([*inputs, *outputs], offsets, sides, strict=True):
            if has_fixed_rows(spec, batch_axis):
                fixed[spec.name] = Region(mapping, spec, offset, capacity, batch_axis)
            else:
                shaped[spec.name] = ShapedRegion(mapping, offset, capacity, max_row_bytes)


def create_arena(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    capacity: int,
    batch_axis: bool = True,
    max_row_bytes: int = 0,
) -> tuple[int, Arena]:
    """A new arena and its descriptor, which the caller passes on and closes. Pages cost memory once written."""
    _, size_bytes = _layout([*inputs, *outputs], capacity, batch_axis, max_row_bytes)
    fd = os.memfd_create("shoal-arena")
    os.ftruncate(fd, size_bytes)
    return fd, Arena(fd, inputs, outputs, capacity, batch_axis, max_row_bytes)


def item_shape(spec: TensorSpec, batch_axis: bool) -> tuple[int, ...]:
    """-1 for axes of any length."""
    return spec.shape[1:] if batch_axis else spec.shape


def has_fixed_rows(spec: TensorSpec, batch_axis: bool) -> bool:
    """All items have the same number of bytes, at least one.

    Without a batch axis, an empty shape may also mean that the file gives none: onnxruntime does not tell which, and
    takes any.
    """
    shape = item_shape(spec, batch_axis)
    return spec.datatype != "BYTES" and min(shape, default=1) > 0 and (batch_axis or shape != ())


def row_bytes(spec: TensorSpec, batch_axis: bool = True) -> int:
    """Of a tensor with fixed rows."""
    return NUMPY_OF[spec.datatype].itemsize * prod(item_shape(spec, batch_axis))


def as_numbers(datatype: Datatype, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """BF16 bits as the FP32 they are the upper half of; other numbers as they are."""
    if datatype != "BF16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def stride_bytes(spec: TensorSpec, batch_axis: bool, max_row_bytes: int) -> int:
    """What a row takes in the arena."""
    return row_bytes(spec, batch_axis) if has_fixed_rows(spec, batch_axis) else _shaped_stride(max_row_bytes)


def _shaped_stride(max_row_bytes: int) -> int:
    return _aligned(_RECORD_BYTES + max_row_bytes)


def _layout(specs: Sequence[TensorSpec], capacity: int, batch_axis: bool, max_row_bytes: int) -> tuple[list[int], int]:
    """Each tensor's offset, and the size of the whole, in bytes."""
    offsets: list[int] = []
    end = 0
    for spec in specs:
        offsets.append(_aligned(end))
        end = offsets[-1] + capacity * stride_bytes(spec, batch_axis, max_row_bytes)
    return offsets, max(end, 1)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // REGION_ALIGNMENT_BYTES) * REGION_ALIGNMENT_BYTES
