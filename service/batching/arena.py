"""The arena: where frontends write items and the engine reads them, without a copy between processes.

One memfd mapping per model version: for each tensor one contiguous region of `capacity` rows, a row being one item.

    ┌ input "image" ──────────────┬ output "logits" ───┬ output "probabilities" ┐
    │ row 0 │ row 1 │ … │ row n-1 │ row 0 │ … │ row n-1 │ row 0 │ …    │ row n-1 │   regions start on 64 bytes
    └─────────────────────────────┴────────────────────┴────────────────────────┘
    slot i = row i of every region

    free ──claim──► claimed ──commit──► waiting ──take──► running ──complete──► answered ──release──► free
          frontend            frontend           engine            engine                 frontend

A slot belongs to one frontend from claim to release; the engine touches it only between commit and complete. Slot
numbers cross on the link (`link.py`), never through shared counters: the socket orders the writes, and its end of
file tells either side that the other is gone. Why not locks or shared rings: docs/adr/0002. A region per tensor, not
per slot, so that a batch is filled by plain copies and each tensor of it is contiguous.
Checked by tests/property/test_slots.py.
"""

import mmap
import os
from collections.abc import Sequence
from math import prod
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, TensorSpec

SlotIndex = NewType("SlotIndex", int)
RowBytes = bytes | bytearray | memoryview
"""Items of one input one after another, each row-major and little-endian."""

REGION_ALIGNMENT_BYTES = 64  # a cache line, and the widest vector load


class Region:
    """One tensor's rows. Slots are given in the order of the items.

    array   [capacity, elements of an item], a view

    Rows are copied through memoryviews. numpy gives the interpreter's lock away to copy more than 500 elements, and
    where other threads wait for it, one of them runs first: 12 us for a row of 784 bytes, against 0.8
    (loadtests/records/2026-11-23_row-copies).
    """

    def __init__(self, mapping: mmap.mmap, spec: TensorSpec, offset: int, capacity: int) -> None:
        self._row_bytes = row_bytes(spec)
        self._bytes = memoryview(mapping)[offset : offset + capacity * self._row_bytes]
        elements = prod(spec.shape[1:])
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

    def read_into(self, buffer: memoryview, slots: Sequence[int]) -> None:
        """Fill the front of `buffer`, which is of bytes."""
        size = self._row_bytes
        for i, slot in enumerate(slots):
            buffer[i * size : (i + 1) * size] = self._bytes[slot * size : (slot + 1) * size]


class Arena:
    """Regions by tensor name: writing them writes shared memory."""

    def __init__(self, fd: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], capacity: int) -> None:
        """Map `fd`, which stays the caller's to close. Raises OSError when it is smaller than the layout needs."""
        layout, size_bytes = _layout([*inputs, *outputs], capacity)
        if os.fstat(fd).st_size < size_bytes:
            raise OSError(f"arena of {os.fstat(fd).st_size} bytes, but its layout needs {size_bytes}")
        mapping = mmap.mmap(fd, size_bytes)
        regions = [Region(mapping, spec, offset, capacity) for spec, offset in layout]
        self.inputs = {spec.name: region for spec, region in zip(inputs, regions, strict=False)}
        self.outputs = {spec.name: region for spec, region in zip(outputs, regions[len(inputs) :], strict=True)}


def create_arena(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], capacity: int) -> tuple[int, Arena]:
    """A new arena and its descriptor, which the caller passes on and closes. Pages cost memory once written."""
    _, size_bytes = _layout([*inputs, *outputs], capacity)
    fd = os.memfd_create("shoal-arena")
    os.ftruncate(fd, size_bytes)
    return fd, Arena(fd, inputs, outputs, capacity)


def row_bytes(spec: TensorSpec) -> int:
    return NUMPY_OF[spec.datatype].itemsize * prod(spec.shape[1:])


def _layout(specs: Sequence[TensorSpec], capacity: int) -> tuple[list[tuple[TensorSpec, int]], int]:
    """Each tensor's offset, and the size of the whole, in bytes."""
    regions: list[tuple[TensorSpec, int]] = []
    end = 0
    for spec in specs:
        assert all(size >= 0 for size in spec.shape[1:]), f"bug: {spec.name} has no fixed item shape: {spec.shape}"
        offset = -(-end // REGION_ALIGNMENT_BYTES) * REGION_ALIGNMENT_BYTES
        regions.append((spec, offset))
        end = offset + capacity * row_bytes(spec)
    return regions, max(end, 1)
