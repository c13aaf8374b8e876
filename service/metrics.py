"""What a frontend counts, and how Prometheus sees it.

On the way of a request a count is one dictionary update and a histogram one bisection: plain integers, written by the
event loop's thread alone. `RequestMetrics.collect` turns them into prometheus-client families when somebody scrapes, so
there are no label look-ups, locks or files on the hot path. Labels are bounded: a model that does not exist is "".
The table in docs/operations.md is compared with what is exposed (tests/architecture/test_docs.py).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.batching.claim import Timings
from service.batching.client import Client, Observer
from service.batching.link import ModelFacts

# From what a tiny model needs to what nobody should wait for; factors of 2 to 2.5.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class RawHistogram:
    """Counts per bucket and a sum. Bounds are inclusive, as Prometheus has them."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative (le, count) pairs and the sum."""
        cumulative, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            cumulative.append((bound, float(total)))
        return cumulative, self._sum


class ModelMetrics:
    """One model version's histograms."""

    __slots__ = ("batch_size", "compute", "queue", "request")

    def __init__(self) -> None:
        self.request = RawHistogram(_SECONDS)
        self.queue = RawHistogram(_SECONDS)
        self.compute = RawHistogram(_SECONDS)
        self.batch_size = RawHistogram(_ITEMS)


class RequestMetrics(Observer, Collector):
    def __init__(self) -> None:
        self._requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._models: defaultdict[tuple[str, str], ModelMetrics] = defaultdict(ModelMetrics)
        self._items: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.client: Client | None = None

    def request_answered(self, model: ModelFacts | None, status: int, seconds: float, timings: Timings | None) -> None:
        """Once for each prediction request; refused ones have no timings and no place in the histograms."""
        key = (model.name, model.version) if model else ("", "")
        self._requests[*key, status] += 1
        if timings is not None:
            self._models[key].request.observe(seconds)

    def item_answered(self, model: ModelFacts, queue_us: int) -> None:
        key = (model.name, model.version)
        self._items[key] += 1
        self._models[key].queue.observe(queue_us / 1e6)

    def batch_answered(self, model: ModelFacts, batch_size: int, compute_us: int) -> None:
        metrics = self._models[model.name, model.version]
        metrics.compute.observe(compute_us / 1e6)
        metrics.batch_size.observe(batch_size)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "shoal_requests",
            "Prediction requests by the status they were answered with.",
            labels=["model", "version", "status"],
        )
        errors = CounterMetricFamily(
            "shoal_request_errors",
            "Prediction requests answered with a status of 400 or more.",
            labels=["model", "version"],
        )
        failed: defaultdict[tuple[str, str], int] = defaultdict(int)
        for (model, version, status), count in self._requests.items():
            requests.add_metric([model, version, str(status)], count)
            failed[model, version] += count if status >= 400 else 0
        for key, count in failed.items():
            errors.add_metric(list(key), count)
        items = CounterMetricFamily("shoal_items", "Items that were answered.", labels=["model", "version"])
        for key, count in self._items.items():
            items.add_metric(list(key), count)
        yield from (requests, errors, items)
        yield self._histogram(
            "shoal_request_seconds", "From the request's head to its answer, of those that ran.", lambda m: m.request
        )
        yield self._histogram("shoal_queue_seconds", "How long an item waited for its batch.", lambda m: m.queue)
        yield self._histogram("shoal_compute_seconds", "How long a batch ran.", lambda m: m.compute)
        yield self._histogram("shoal_batch_size", "How many items ran together, by batch.", lambda m: m.batch_size)
        yield from self._gauges()

    def _histogram(self, name: str, text: str, of: Callable[[ModelMetrics], RawHistogram]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model", "version"])
        for key, metrics in self._models.items():
            buckets, total = of(metrics).buckets()
            family.add_metric(list(key), buckets, total)
        return family

    def _gauges(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("shoal_items_in_flight", "Items that hold a slot.", labels=["model", "version"])
        ready = GaugeMetricFamily("shoal_model_ready", "1 for a version that answers.", labels=["model", "version"])
        for model in self.client.models() if self.client else []:
            key = [model.facts.name, model.facts.version]
            in_flight.add_metric(key, model.in_flight)
            ready.add_metric(key, 1)
        yield from (in_flight, ready)


def exposition(metrics: RequestMetrics) -> Callable[[], bytes]:
    """A function that renders everything in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(metrics)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return lambda: generate_latest(registry)
