"""A model whose engine the test plays: what is committed waits until the test answers it."""

import os
from collections.abc import Callable

from models.manifest import TensorInput, TensorSpec
from service.batching.arena import create_arena
from service.batching.claim import Claim, ModelObserver, ServedModel
from service.batching.link import ModelFacts, Status

MAX_ROW_BYTES = 256
BYTES_IN, SUM_OUT = (TensorSpec("x", "UINT8", (-1, 4)),), (TensorSpec("y", "INT64", (-1,)),)


class Seen(ModelObserver):
    """What an observer is told of the cache."""

    def __init__(self) -> None:
        self.hits = self.misses = self.size_bytes = self.evicted = 0

    def cache_hit(self, ns: int) -> None:
        assert ns >= 0
        self.hits += 1

    def cache_missed(self, ns: int) -> None:
        assert ns >= 0
        self.misses += 1

    def cache_changed(self, size_bytes: int, evicted: int) -> None:
        self.size_bytes = size_bytes
        self.evicted += evicted


class Waiting:
    """One loaded copy. `committed`: claims that the engine holds, in their order; `runs`: how many there were."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...] = BYTES_IN,
        outputs: tuple[TensorSpec, ...] = SUM_OUT,
        capacity: int = 16,
        batch_axis: bool = True,
    ) -> None:
        facts = ModelFacts(
            name="m",
            version="1",
            description="",
            inputs=inputs,
            outputs=outputs,
            input=TensorInput(),
            classification=None,
            capacity=capacity,
            max_batch_size=4,
            instances=1,
            threads=1,
            items_per_s=1.0,
            batch_axis=batch_axis,
            max_row_bytes=MAX_ROW_BYTES,
        )
        fd, self.arena = create_arena(inputs, outputs, capacity, batch_axis, MAX_ROW_BYTES)
        os.close(fd)
        self.seen = Seen()
        self.committed: list[Claim] = []
        self.runs = 0
        self.model = ServedModel(facts, 0, (0, capacity), self.arena, self._commit, self.seen)

    def claim(self, rows: bytes, deadline: int, priority: int = 1) -> Claim:
        """Of items of `BYTES_IN`."""
        claim = self.model.claim(len(rows) // 4)
        claim.write("x", rows)
        claim.deadline, claim.priority = deadline, priority
        return claim

    def answer(self, claim: Claim, status: Status = Status.OK) -> None:
        """As the engine does: y is the sum of x."""
        self.committed.remove(claim)
        if status == Status.OK:
            self.arena.outputs["y"].array[claim.slots, 0] = self.arena.inputs["x"].array[claim.slots].sum(axis=1)
        for _ in claim.slots:
            claim.answered(status, 5, 7, len(claim.slots))

    def die(self, error: Callable[[], Exception]) -> None:
        """As the client does when the engine is gone."""
        gone, self.committed = self.committed, []
        for claim in gone:
            claim.unanswered = 0
            claim.fail(error())

    def _commit(self, claim: Claim) -> None:
        self.committed.append(claim)
        self.runs += 1
