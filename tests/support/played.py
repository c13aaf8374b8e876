"""A frontend whose engine the test plays: real models' facts, slots and rows, and no process, socket or session.

An item is answered in the call that commits it. An output with the name of an input answers that input's row where
both differ in size; every other output answers what its row held.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, cast

from models.manifest import Classification, ImageInput, TensorInput, TensorSpec
from service.batching.arena import Arena, ShapedRow, create_arena, item_shape
from service.batching.claim import Claim, ModelObserver, ServedModel
from service.batching.engines import Engines
from service.batching.link import ModelFacts, Status
from service.errors import UnknownModel
from service.frontend.app import Frontend
from service.frontend.head import Route
from service.frontend.http import Answer, Request
from service.frontend.prepared import Prepared
from service.lifecycle.controls import Controls
from service.metrics import RequestMetrics, SharedCounts
from service.settings import Settings

CAPACITY = 16
MAX_ROW_BYTES = 4096

Specs = tuple[TensorSpec, ...]


class PlayedEngines:
    """What a frontend asks of its engines to answer predictions."""

    def __init__(self, models: list[ServedModel]) -> None:
        self.sticky: dict[str, str] = {}
        self._models = {model.facts.name: model for model in models}
        self.watchers: list[Callable[[], None]] = []

    def find(self, name: str, version: str | None = None) -> ServedModel:
        if version in (None, "1") and (model := self._models.get(name)) is not None:
            return model
        raise UnknownModel(f"no model {name!r} version {version!r}")

    def aliases(self, _: str) -> dict[str, str]:
        return {}

    def models(self) -> list[ServedModel]:
        return list(self._models.values())


class PlayedFrontend:
    """`answer` does for one request what `protocol.py` does for it."""

    def __init__(self, models: list[ServedModel], settings: Settings) -> None:
        self._engines = PlayedEngines(models)
        self._frontend = Frontend(
            cast(Engines, self._engines), settings, RequestMetrics(SharedCounts(1), 0), Controls()
        )

    def answer(self, route: Route, headers: dict[bytes, bytes], query: bytes, body: bytes) -> Answer:
        """Of status 500 where anything but a ServiceError was raised: no bug passes for a refusal."""
        request = Request(headers, query)
        try:
            prepared = self._frontend.prepare(route, request, body)
            if not isinstance(prepared, Prepared):
                prepared = asyncio.run(_done(prepared))
        except Exception as error:
            return self._frontend.finish(request, error)
        settled: list[Claim] = []
        prepared.claim.run(settled.append)
        assert settled == [prepared.claim], "a claim is done once"
        outcome = self._frontend.encode(prepared, request)
        return self._frontend.finish(request, outcome)

    def slots_held(self) -> int:
        return sum(model.in_flight for model in self._engines.models())


def played_model(
    name: str,
    inputs: Specs,
    outputs: Specs,
    batch_axis: bool = True,
    kind: ImageInput | TensorInput | None = None,
    classification: Classification | None = None,
) -> ServedModel:
    facts = ModelFacts(
        name=name,
        version="1",
        description="",
        inputs=inputs,
        outputs=outputs,
        input=kind or TensorInput(),
        classification=classification,
        capacity=CAPACITY,
        max_batch_size=4,
        instances=1,
        threads=1,
        items_per_s=1.0,
        batch_axis=batch_axis,
        max_row_bytes=MAX_ROW_BYTES,
    )
    fd, arena = create_arena(inputs, outputs, CAPACITY, batch_axis, MAX_ROW_BYTES)
    os.close(fd)
    return ServedModel(facts, 0, (0, CAPACITY), arena, lambda claim: _play(facts, arena, claim), ModelObserver())


def _play(facts: ModelFacts, arena: Arena, claim: Claim) -> None:
    for slot in claim.slots:
        for spec in facts.outputs:
            if (region := arena.shaped_outputs.get(spec.name)) is None:
                continue
            if (given := arena.shaped_inputs.get(spec.name)) is not None:
                region.write(slot, ShapedRow(given.shape(slot), given.data(slot)))
            else:
                region.write(slot, ShapedRow(tuple(0 for _ in item_shape(spec, facts.batch_axis)), b""))
    for _ in claim.slots:
        claim.answered(Status.OK, 0, 0, len(claim.slots))


async def _done(coroutine: Coroutine[Any, Any, Prepared]) -> Prepared:
    return await coroutine
