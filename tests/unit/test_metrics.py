"""Counts and histograms as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

from models.manifest import TensorInput
from service.batching.link import ModelFacts
from service.errors import ServiceError
from service.metrics import RequestMetrics, SharedCounts, exposition

NO_WAIT = (0, 0, 1)
MODEL = ModelFacts("mnist", "3", "", (), (), TensorInput(), None, 1, 1, 1, 1, 1.0)


def samples(metrics: RequestMetrics) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(exposition(metrics)().decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_bucket_bounds_are_inclusive_and_counts_cumulative() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    for size in (1, 2, 2, 3, 5000):
        metrics.of(MODEL).batch_answered(size, 10)
    seen = samples(metrics)
    bounds = ("1.0", "2.0", "4.0", "1024.0", "+Inf")
    buckets = [seen["shoal_batch_size_bucket", *sorted(["3", "mnist", bound])] for bound in bounds]
    assert buckets == [1, 3, 4, 4, 5]
    assert seen["shoal_batch_size_sum", "3", "mnist"] == 5008


def test_whichever_frontend_is_scraped_tells_of_all_and_of_those_that_died() -> None:
    shared = SharedCounts(3)
    for frontend in range(3):
        RequestMetrics(shared, frontend).of(MODEL).request_answered(200, 1000, NO_WAIT)
    RequestMetrics(shared, 1).of(MODEL).request_answered(200, 1000, NO_WAIT)  # the second to have this number
    for frontend in range(3):
        assert samples(RequestMetrics(shared, frontend))["shoal_requests_total", "200", "3", "mnist"] == 4


def test_every_status_that_can_be_answered_has_a_cell() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    for error in [ServiceError, *leaves(ServiceError)]:
        metrics.unknown.request_answered(error.status, 1, None)


def leaves(error: type[ServiceError]) -> list[type[ServiceError]]:
    return [kind for below in error.__subclasses__() for kind in (below, *leaves(below))]


def test_requests_errors_items_and_batches_are_counted_by_model() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    counts = metrics.of(MODEL)
    for _ in range(3):
        counts.request_answered(200, 2000, NO_WAIT)
        counts.item_answered(queue_us=300)
    counts.batch_answered(batch_size=3, compute_us=4000)
    counts.request_answered(400, 1000, None)
    metrics.unknown.request_answered(404, 1000, None)
    seen = samples(metrics)
    assert seen["shoal_requests_total", "200", "3", "mnist"] == 3
    assert seen["shoal_requests_total", "3", "400", "mnist"] == 1
    assert seen["shoal_requests_total", "", "", "404"] == 1, "an unknown model's name must not become a label"
    assert seen["shoal_request_errors_total", "3", "mnist"] == 1
    assert seen["shoal_items_total", "3", "mnist"] == 3
    assert seen["shoal_request_seconds_count", "3", "mnist"] == 3
    assert seen["shoal_queue_seconds_sum", "3", "mnist"] == 0.0009
    assert seen["shoal_compute_seconds_sum", "3", "mnist"] == 0.004
    assert seen["shoal_batch_size_bucket", "2.0", "3", "mnist"] == 0
    assert seen["shoal_batch_size_bucket", "3", "4.0", "mnist"] == 1
