"""Counts and histograms as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

from models.manifest import TensorInput
from service.batching.claim import Timings
from service.batching.link import ModelFacts
from service.metrics import RawHistogram, RequestMetrics, exposition

MODEL = ModelFacts("mnist", "3", "", (), (), TensorInput(), None, 1, 1, 1, 1)


def samples(metrics: RequestMetrics) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(exposition(metrics)().decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_bucket_bounds_are_inclusive_and_counts_cumulative() -> None:
    histogram = RawHistogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == ([("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)], 12.0)


def test_requests_errors_items_and_batches_are_counted_by_model() -> None:
    metrics = RequestMetrics()
    for _ in range(3):
        metrics.request_answered(MODEL, 200, 0.002, Timings(100, 200, 3))
        metrics.item_answered(MODEL, queue_us=300)
    metrics.batch_answered(MODEL, batch_size=3, compute_us=4000)
    metrics.request_answered(MODEL, 400, 0.001, None)
    metrics.request_answered(None, 404, 0.001, None)
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
