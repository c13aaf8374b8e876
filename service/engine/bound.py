"""Batches in buckets: buffers of fixed size and place, bound to a GPU session once, and a CUDA graph for each.

    arena rows ──gather──► host buffer ──copy──► device buffer ─┐
                           (pinned)                             run, or replay of the bucket's graph
    arena rows ◄─scatter── host buffer ◄──copy── device buffer ◄┘

A batch runs as the planned buckets (`buckets.py`). Rows that a bucket has beyond the batch are padding: they hold what
earlier runs left there, which the model ran on without failing; items are independent (`batch_axis.py`), so their
answers are dropped and change no other. The rows of a run that failed are replaced, so that they fail nobody else's.

Models with items of differing size, strings or BF16 use `Instance` and ordinary runs.
Checked by tests/integration/test_bound.py on the CPU's device, tests/gpu/test_gpu.py on a GPU.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, TensorSpec
from service.batching.arena import Arena, Region, has_fixed_rows, item_shape
from service.engine.agreement import agrees
from service.engine.batch_axis import tolerance_of
from service.engine.buckets import plans, unmeasured_plans
from service.engine.gpu import GpuSession, run_options
from service.engine.instance import Instance
from service.engine.pinned import Memory, memory_for
from service.engine.session import RunFailed
from service.engine.tune import batch_sizes

log = logging.getLogger(__name__)

_RUNS_TO_CAPTURE = 3  # two ordinary ones, in which memory is allocated, and the one that is captured


class DeviceLost(Exception):
    """The process cannot use its device any more. It ends the engine, and the supervisor starts another."""


def can_bind(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch_axis: bool) -> bool:
    """Every tensor's rows have one size, and a type that numpy has."""
    specs = [*inputs, *outputs]
    return bool(inputs) and all(has_fixed_rows(spec, batch_axis) and spec.datatype != "BF16" for spec in specs)


class BoundInstance(Instance):
    """Of a GPU session whose tensors all `can_bind`, with buffers for each bucket instead of one."""

    def __init__(self, session: GpuSession, arena: Arena, max_batch_size: int, batch_axis: bool = True) -> None:
        assert batch_axis or max_batch_size == 1, "bug: a batch for a model without a batch axis"
        self.session = session
        self._gpu = session
        self._rows_in = [(spec, arena.inputs[spec.name]) for spec in session.inputs]
        self._rows_out = [(spec, arena.outputs[spec.name]) for spec in session.outputs]
        self._with_batch_axis = batch_axis
        self.max_batch_size = max_batch_size
        self._buckets = session.lane.call(self._bind)
        self._plans = unmeasured_plans(max_batch_size, self._buckets)

    def run(self, slots: Sequence[int]) -> None:
        """Answer `slots` (1 to max_batch_size). Raises RunFailed; then answers of some slots may have been written."""
        self._gpu.lane.call(lambda: self._run(slots))

    @property
    def graphs(self) -> bool:
        return self._gpu.graphs

    def learn(self, seconds: Mapping[int, float]) -> None:
        """What a run of each size takes: from now on batches are split or padded by it.

        Beyond the first bucket that was not measured nothing changes: small batches are not padded to a large one just
        because only that was.
        """
        known = {size: seconds[size] for size in takewhile(seconds.__contains__, sorted(self._buckets))}
        if known:
            self._plans = plans(max(known), known) + self._plans[max(known) + 1 :]

    def warm_up(self) -> None:
        """Prove each bucket on the items of slots 0 to max_batch_size - 1, with a graph where the session has them.

        Raises RunFailed where that fails without graphs too.
        """
        if self._gpu.graphs:
            try:
                self._gpu.lane.call(self._prove_all)
            except RunFailed as error:
                log.warning("%s: runs without CUDA graphs: %s", self._gpu.path.parent, error)
                self._buckets.clear()
                self._gpu.open_without_graphs()
                self._buckets = self._gpu.lane.call(self._bind)
            else:
                return
        self._gpu.lane.call(self._prove_all)

    def _bind(self) -> dict[int, "Bucket"]:
        with self._gpu.gpu.turns.together():
            memory = memory_for(self._gpu.device, self._gpu.gpu.number)
            return {
                size: Bucket(self._gpu, memory, self._rows_in, self._rows_out, size, self._with_batch_axis)
                for size in batch_sizes(self.max_batch_size)
            }

    def _run(self, slots: Sequence[int]) -> None:
        with self._gpu.gpu.turns.together():
            start = 0
            for size in self._plans[len(slots)]:
                part = slots[start : start + size]
                start += size
                self._buckets[size].run(part)

    def _prove_all(self) -> None:
        turns = self._gpu.gpu.turns
        # The largest first: TensorRT builds again for a size beyond those that it has seen.
        for size, bucket in sorted(self._buckets.items(), reverse=True):
            with turns.alone() if self._gpu.graphs else turns.together():
                bucket.prove(range(size), self._gpu.graphs)


class Bucket:
    """Buffers for `size` items, and their binding."""

    def __init__(
        self,
        session: GpuSession,
        memory: Memory,
        inputs: Sequence[tuple[TensorSpec, Region]],
        outputs: Sequence[tuple[TensorSpec, Region]],
        size: int,
        batch_axis: bool,
    ) -> None:
        self._session = session
        self._size = size
        self._options = run_options()
        self._binding = session.onnxruntime.io_binding()
        self._inputs = []
        self._outputs = []
        for spec, region in inputs:
            buffer = memory.buffer(_shape(spec, size, batch_axis), NUMPY_OF[spec.datatype])
            self._binding.bind_ortvalue_input(spec.name, buffer.bound)
            self._inputs.append((spec, region, buffer, _bytes(buffer.array)))
        for spec, region in outputs:
            buffer = memory.buffer(_shape(spec, size, batch_axis), NUMPY_OF[spec.datatype])
            self._binding.bind_ortvalue_output(spec.name, buffer.bound)
            self._outputs.append((spec, region, buffer, _bytes(buffer.array)))
        self._upload, _ = memory.copies([buffer for _, _, buffer, _ in self._inputs])
        _, self._download = memory.copies([buffer for _, _, buffer, _ in self._outputs])
        self._proven: list[npt.NDArray[Any]] | None = None  # an item that ran, for each input

    def run(self, slots: Sequence[int]) -> None:
        """Answer `slots`, at most `size`. Raises RunFailed; then no output row was written. Raises DeviceLost."""
        for _, region, _, data in self._inputs:
            region.read_into(data, slots)
        try:
            self._execute()
        except RunFailed as error:
            self._check_device(error)
            raise
        for _, region, _, data in self._outputs:
            region.write(slots, data[: len(slots) * (data.nbytes // self._size)])

    def prove(self, slots: Sequence[int], graph: bool) -> None:
        """Run all rows and compare with an ordinary run; with `graph`, capture first: nobody else may call CUDA then.

        Raises RunFailed, also where the answers differ.
        """
        for _, region, _, data in self._inputs:
            region.read_into(data, slots)
        if graph:
            self._options = run_options(str(self._size))
            for _ in range(_RUNS_TO_CAPTURE):
                self._execute()
        for _, _, buffer, _ in self._outputs:
            buffer.array.fill(0)
        self._execute()
        feeds = {spec.name: buffer.array for spec, _, buffer, _ in self._inputs}
        for (spec, _, buffer, _), expected in zip(self._outputs, self._session.run_here(feeds), strict=True):
            if not agrees(spec, buffer.array, expected, tolerance_of(spec, expected)):
                raise RunFailed(
                    f"bound buffers of batch {self._size} answer {spec.name!r} otherwise than an ordinary run"
                )

    def _execute(self) -> None:
        try:
            self._upload()
            self._session.onnxruntime.run_with_iobinding(self._binding, self._options)
            self._download()
        except Exception as error:  # onnxruntime's errors share no class of their own
            self._forget_rows()
            raise RunFailed(str(error).strip().split("\n", 1)[0]) from error
        if self._proven is None:
            self._proven = [buffer.array.reshape(self._size, -1)[0].copy() for _, _, buffer, _ in self._inputs]

    def _check_device(self, failure: RunFailed) -> None:
        """After some CUDA errors a process's every later call fails: then rows that ran before fail as well."""
        if self._proven is None:
            return
        try:
            self._execute()
        except RunFailed as error:
            raise DeviceLost(f"rows that ran before fail too, after: {failure}") from error

    def _forget_rows(self) -> None:
        """One of them may be what fails, and would stay as padding."""
        for i, (_, _, buffer, _) in enumerate(self._inputs):
            buffer.array.reshape(self._size, -1)[:] = 0 if self._proven is None else self._proven[i]


def _shape(spec: TensorSpec, size: int, batch_axis: bool) -> tuple[int, ...]:
    item = item_shape(spec, batch_axis)
    return (size, *item) if batch_axis else item


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
