"""One loaded copy of a model: gathers rows from the arena into a batch, runs it, scatters the outputs back."""

from collections.abc import Sequence

import numpy as np

from models.manifest import NUMPY_OF
from service.batching.arena import Arena
from service.engine.session import RunFailed, Session


class Instance:
    """Belongs to one executor while it runs. The batch buffers are made once and used for every run."""

    def __init__(self, session: Session, arena: Arena, max_batch_size: int) -> None:
        self.session = session
        self._outputs = [(spec, arena.outputs[spec.name]) for spec in session.outputs]
        self._inputs = []
        for spec in session.inputs:
            buffer = np.empty((max_batch_size, *spec.shape[1:]), NUMPY_OF[spec.datatype])
            self._inputs.append((spec.name, arena.inputs[spec.name], buffer.reshape(max_batch_size, -1), buffer))

    def run(self, slots: Sequence[int]) -> None:
        """Answer `slots` (1 to max_batch_size). Raises RunFailed; then no output row was written."""
        n = len(slots)
        feeds = {}
        for name, rows, flat, batch in self._inputs:
            # mode="clip": with the default, numpy fills a buffer of its own first. Slots are in range by construction.
            rows.take(slots, axis=0, out=flat[:n], mode="clip")
            feeds[name] = batch[:n]
        outputs = self.session.run(feeds)
        for (spec, _), output in zip(self._outputs, outputs, strict=True):
            if output.shape != (n, *spec.shape[1:]):
                raise RunFailed(f"output {spec.name!r} has shape {output.shape}; expected {(n, *spec.shape[1:])}")
        for (_, rows), output in zip(self._outputs, outputs, strict=True):
            rows[slots] = output.reshape(n, -1)
