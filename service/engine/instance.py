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
            batch = np.empty((max_batch_size, *spec.shape[1:]), NUMPY_OF[spec.datatype])
            self._inputs.append((spec.name, arena.inputs[spec.name], batch, batch.reshape(-1).view(np.uint8).data))

    def run(self, slots: Sequence[int]) -> None:
        """Answer `slots` (1 to max_batch_size). Raises RunFailed; then no output row was written."""
        n = len(slots)
        feeds = {}
        for name, region, batch, batch_bytes in self._inputs:
            region.read_into(batch_bytes, slots)
            feeds[name] = batch[:n]
        outputs = self.session.run(feeds)
        for (spec, _), output in zip(self._outputs, outputs, strict=True):
            if output.shape != (n, *spec.shape[1:]):
                raise RunFailed(f"output {spec.name!r} has shape {output.shape}; expected {(n, *spec.shape[1:])}")
        for (_, region), output in zip(self._outputs, outputs, strict=True):
            region.write(slots, output.reshape(-1).view(np.uint8).data)
