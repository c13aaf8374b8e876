"""One loaded copy of a model: gathers rows from the arena into a batch, runs it, scatters the outputs back."""

from collections.abc import Sequence

import numpy as np

from models.manifest import NUMPY_OF
from service.batching.arena import Arena, item_shape
from service.engine.rows import gather, split
from service.engine.session import RunFailed, Session


class Instance:
    """Belongs to one executor while it runs.

    Tensors with rows of fixed size have batch buffers, made once and used for every run; others are made for each run.
    Without a batch axis a run takes one slot, and its tensors are the item's own.
    """

    def __init__(self, session: Session, arena: Arena, max_batch_size: int, batch_axis: bool = True) -> None:
        assert batch_axis or max_batch_size == 1, "bug: a batch for a model without a batch axis"
        self.session = session
        self.max_batch_size = max_batch_size
        self._batch_axis = batch_axis
        self._outputs = [
            (i, spec, arena.outputs[spec.name]) for i, spec in enumerate(session.outputs) if spec.name in arena.outputs
        ]
        self._shaped_outputs = [
            (i, spec, arena.shaped_outputs[spec.name])
            for i, spec in enumerate(session.outputs)
            if spec.name in arena.shaped_outputs
        ]
        self._inputs = []
        self._shaped_inputs = []
        for spec in session.inputs:
            if spec.name in arena.shaped_inputs:
                self._shaped_inputs.append((spec, arena.shaped_inputs[spec.name]))
                continue
            item = item_shape(spec, batch_axis)
            batch = np.empty((max_batch_size, *item) if batch_axis else item, NUMPY_OF[spec.datatype])
            self._inputs.append((spec.name, arena.inputs[spec.name], batch, batch.reshape(-1).view(np.uint8).data))

    def run(self, slots: Sequence[int]) -> None:
        """Answer `slots` (1 to max_batch_size), of one key. Raises RunFailed; then no output row was written."""
        n = len(slots)
        feeds = {}
        for name, region, batch, batch_bytes in self._inputs:
            region.read_into(batch_bytes, slots)
            feeds[name] = batch[:n] if self._batch_axis else batch
        for spec, shaped in self._shaped_inputs:
            feeds[spec.name] = gather(shaped, spec, slots, self._batch_axis)
        outputs = self.session.run(feeds)
        for i, spec, _ in self._outputs:
            expected = (n, *spec.shape[1:]) if self._batch_axis else spec.shape
            if outputs[i].shape != expected:
                raise RunFailed(f"output {spec.name!r} has shape {outputs[i].shape}; expected {expected}")
        rows = [
            split(outputs[i], spec, n, self._batch_axis, shaped.max_row_bytes)
            for i, spec, shaped in self._shaped_outputs
        ]
        for i, _, region in self._outputs:
            region.write(slots, outputs[i].reshape(-1).view(np.uint8).data)
        for (_, _, shaped), items in zip(self._shaped_outputs, rows, strict=True):
            for slot, row in zip(slots, items, strict=True):
                shaped.write(slot, row)
