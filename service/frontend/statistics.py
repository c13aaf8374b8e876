"""The statistics extension: totals of each version since the start, whichever frontend is asked.

success          requests that were answered, from head to answer
fail             requests with a status of 400 or more
queue            of those answered: waiting for a batch (the slowest item's)
compute_input    of those that ran: from the whole body to rows; outside of the batch, which other servers count it to
compute_infer    of those that ran: the batch that the slowest item ran in; with gathering and scattering its rows
compute_output   of those that ran: from outputs to the answer's body
batch_stats      batches by how many items ran together
cache_hit        requests that needed no run of their own: to look them up and to copy their outputs
cache_miss       requests that were looked up and ran: to look them up and to keep their outputs; 0 without a cache
"""

from litestar import get
from litestar.datastructures import State
from litestar.params import FromPath
from msgspec import Struct

from service.batching.claim import ServedModel
from service.errors import ModelNotReady, UnknownModel
from service.frontend.openapi.answers import errors
from service.metrics import RequestMetrics, Totals


class Duration(Struct, frozen=True):
    count: int
    ns: int


class InferStatistics(Struct):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(Struct):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(Struct):
    """`last_inference` in ms since 1970, 0 for never; `inference_count` are items, `execution_count` batches."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: list[BatchStatistics]
    response_stats: dict[str, Duration] = {}
    memory_usage: list[int] = []


class Statistics(Struct):
    model_stats: list[ModelStatistics]


def statistics(metrics: RequestMetrics, models: list[ServedModel]) -> Statistics:
    """By name and version."""
    keys = sorted((model.facts.name, model.facts.version) for model in models)
    return Statistics([_of(*key, totals) for key, totals in metrics.totals(keys).items()])


def _of(name: str, version: str, totals: Totals) -> ModelStatistics:
    answered, ran = totals.answered, totals.answered - totals.answered_from_cache
    return ModelStatistics(
        name,
        version,
        last_inference=totals.last_ms,
        inference_count=totals.items,
        execution_count=totals.batches,
        inference_stats=InferStatistics(
            success=Duration(answered, totals.answered_us * 1000),
            fail=Duration(totals.failed, totals.failed_us * 1000),
            queue=Duration(answered, totals.queue_us * 1000),
            compute_input=Duration(ran, totals.decode_ns),
            compute_infer=Duration(ran, totals.compute_us * 1000),
            compute_output=Duration(ran, totals.encode_ns),
            cache_hit=Duration(totals.cache_hits, totals.cache_hit_ns),
            cache_miss=Duration(totals.cache_misses, totals.cache_miss_ns),
        ),
        batch_stats=[
            BatchStatistics(size, Duration(count, 0), Duration(count, us * 1000), Duration(count, 0))
            for size, (count, us) in sorted(totals.by_size.items())
        ],
    )


@get("/v2/models/stats", tags=["statistics"], summary="Requests, items, batches and where their time went: all models")
async def all_statistics(state: State) -> Statistics:
    return statistics(state.metrics, state.engines.models())


@get(
    ["/v2/models/{model_name:str}/stats", "/v2/models/{model_name:str}/versions/{model_version:str}/stats"],
    tags=["statistics"],
    summary="The same of one model: all its versions that answer, or one",
    responses=errors(UnknownModel, ModelNotReady),
)
async def model_statistics(
    state: State, model_name: FromPath[str], model_version: FromPath[str | None] = None
) -> Statistics:
    return statistics(state.metrics, state.engines.named(model_name, model_version))
