"""Counts and histograms as Prometheus reads them."""

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.manifest import TensorInput
from service import shadow_metrics
from service.batching.link import ModelFacts
from service.errors import ServiceError
from service.lifecycle.guard import Snapshot
from service.metrics import _N_ENTRIES, _SHADOW, RequestMetrics, SharedCounts, exposition

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


def version(number: int) -> ModelFacts:
    return msgspec.structs.replace(MODEL, version=str(number))


def test_what_a_guard_goes_by_is_summed_over_the_frontends() -> None:
    shared = SharedCounts(2)
    for frontend in range(2):
        counts = RequestMetrics(shared, frontend).of(MODEL)
        for status in (200, 400, 500, 503):
            counts.request_answered(status, 3000, NO_WAIT if status == 200 else None)
        counts.shadow_compared(5, 2, [])
    assert shared.judged()["mnist", "3"] == Snapshot(
        answered=8, failed=4, ran=2, latency_us=6000, compared=10, disagreed=4
    )


def test_what_a_shadow_compares_is_counted_for_its_version() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    counts = metrics.of(MODEL)
    counts.shadow_compared(4, 3, [0.0, 0.002, 5000.0, float("inf")])
    counts.shadow_skipped("slots", 7)
    seen = samples(metrics)
    assert seen["shoal_shadow_items_total", "3", "mnist"] == 4
    assert seen["shoal_shadow_disagreements_total", "3", "mnist"] == 3
    assert seen["shoal_shadow_skipped_items_total", "3", "mnist", "slots"] == 7
    bounds = ("1e-07", "0.001", "0.01", "1000.0", "+Inf")
    buckets = [seen["shoal_shadow_difference_bucket", *sorted(["3", "mnist", bound])] for bound in bounds]
    assert buckets == [1, 1, 2, 2, 4]
    assert seen["shoal_items_total", "3", "mnist"] == 0, "what was compared is no answer to a client"


def test_differences_without_end_do_not_leave_their_cell() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    counts = metrics.of(MODEL)
    counts._cells[_SHADOW + shadow_metrics.N_CELLS - 1] = (1 << 62) - 1
    counts.shadow_compared(1, 1, [float("inf")])
    assert samples(metrics)["shoal_shadow_difference_count", "3", "mnist"] == 1


def test_a_new_version_every_hour_is_always_counted_under_its_own_name() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    for number in range(1, 600):
        metrics.of(version(number)).request_answered(200, 1000, NO_WAIT)
        if number > 1:
            metrics.gone(version(number - 1))
    seen = {key: count for key, count in samples(metrics).items() if key[0] == "shoal_requests_total"}
    newest = range(600 - (_N_ENTRIES - 1), 600)  # one is of what no model answers
    assert seen == {("shoal_requests_total", *sorted(["200", "mnist", str(number)])): 1 for number in newest}


def test_a_request_that_outlives_its_versions_entry_counts_for_no_other() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    old = metrics.of(version(1))
    metrics.gone(version(1))
    for number in range(2, _N_ENTRIES + 1):
        metrics.of(version(number))
    old.request_answered(200, 1000, NO_WAIT)
    old.batch_answered(5000, 10)
    assert sum(counts.answered for counts in metrics._shared.judged().values()) == 0


def test_a_version_that_comes_back_goes_on_with_its_counts() -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    metrics.of(version(1)).request_answered(200, 1000, NO_WAIT)
    metrics.gone(version(1))
    metrics.of(version(1)).request_answered(200, 1000, NO_WAIT)
    for number in range(2, 400):
        metrics.of(version(number))
        metrics.gone(version(number))
    assert samples(metrics)["shoal_requests_total", "1", "200", "mnist"] == 2, "it is served, so it is kept"


def test_versions_beyond_what_can_be_counted_are_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    metrics = RequestMetrics(SharedCounts(1), 0)
    for number in range(_N_ENTRIES + 5):
        metrics.of(version(number)).request_answered(200, 1000, NO_WAIT)
    seen = samples(metrics)
    assert sum(count for key, count in seen.items() if key[0] == "shoal_requests_total") == _N_ENTRIES - 1
    assert "is not counted" in caplog.text


def test_the_successor_of_a_frontend_gives_up_what_nobody_announces_to_it_any_more() -> None:
    shared = SharedCounts(1)
    for number in range(_N_ENTRIES - 1):
        RequestMetrics(shared, 0).of(version(number)).request_answered(200, 1000, NO_WAIT)
    successor = RequestMetrics(shared, 0)
    successor.of(version(0))
    successor.of(version(999)).request_answered(500, 1000, None)
    judged = shared.judged()
    assert judged["mnist", "0"].answered == 1
    assert judged["mnist", "999"] == Snapshot(answered=1, failed=1)
    assert ("mnist", "1") not in judged
