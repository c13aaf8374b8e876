"""What the frontends count, and how Prometheus sees it.

Counts are 64-bit cells in memory that all frontends share, one region for each, made before they start. A frontend
adds to cells of its own region alone, so there is no lock, and whichever frontend is scraped sums over all regions: no
files, and what a frontend counted survives it. On the way of a request a count is one addition and a histogram a
bisection.

    region of a frontend: entry "" │ entry mnist 3 │ entry cifar10 2 │ …      an entry: its key, then its cells:
    requests by status │ histograms request, queue, compute [µs] and batch size [items] │ items in flight │ totals of
    the requests [µs, decode and encode ns] │ cache [count, ns, bytes] │ last answer [ms since 1970] │ batches and their
    compute [µs] by size

`RequestMetrics.collect` makes prometheus-client families of them. Labels are bounded: a model that does not exist
is "".
The table in docs/operations.md is compared with what is exposed (tests/architecture/test_docs.py).
"""

import mmap
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.batching.claim import FROM_CACHE, ModelObserver, Timings
from service.batching.client import Observer
from service.batching.engines import Engines
from service.batching.link import ModelFacts

Key = tuple[str, str]  # model, version
_ALL = ("", "")

# From what a tiny model needs to what nobody should wait for; factors of 2 to 2.5.
_MICROSECONDS = (
    *(100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000),
)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_FAULT = 400  # statuses from here on
_STATUSES = (200, 400, 401, 403, 404, 405, 406, 408, 409, 413, 415, 429, 500, 501, 503, 504)
_CELL_OF_STATUS = {status: i for i, status in enumerate(_STATUSES)}


class _Histogram(NamedTuple):
    """Cells from `first` on: a count for each bound (inclusive, as Prometheus has it), one beyond the last, the sum."""

    first: int
    bounds: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.first + len(self.bounds) + 2


_REQUEST = _Histogram(len(_STATUSES), _MICROSECONDS)
_QUEUE = _Histogram(_REQUEST.end, _MICROSECONDS)
_COMPUTE = _Histogram(_QUEUE.end, _MICROSECONDS)
_BATCH = _Histogram(_COMPUTE.end, _ITEMS)
_IN_FLIGHT = _BATCH.end
# Once for each request: names of the module, as a tuple's fields take twice as long to look up.
_REQUEST_FIRST, _REQUEST_SUM = _REQUEST.first, _REQUEST.end - 1
_QUEUE_FIRST, _QUEUE_SUM = _QUEUE.first, _QUEUE.end - 1
_QUEUE_US, _COMPUTE_US, _DECODE_NS, _ENCODE_NS, _FAILED_US = range(_IN_FLIGHT + 1, _IN_FLIGHT + 6)
_CACHE_HITS, _CACHE_HIT_NS, _CACHE_MISSES, _CACHE_MISS_NS, _FROM_CACHE = range(_FAILED_US + 1, _FAILED_US + 6)
_CACHE_BYTES, _CACHE_EVICTIONS = _FROM_CACHE + 1, _FROM_CACHE + 2  # of the entry "" alone: of all versions together
_LAST_MS = _CACHE_EVICTIONS + 1
_N_CELLS = _LAST_MS + 1
_MOST_ITEMS = 1024  # of a batch
_SIZES = _N_CELLS  # a pair of cells for each size, outside of what is summed at each scrape

_KEY_BYTES = 512
_ENTRY_BYTES = _KEY_BYTES + 8 * (_N_CELLS + 2 * (_MOST_ITEMS + 1))
_N_ENTRIES = 1024  # versions that a frontend may count over its life; beyond them all share the last
_REGION_BYTES = _N_ENTRIES * _ENTRY_BYTES


class SharedCounts:
    """The memory of all frontends' counts. Processes forked after this share it; pages cost memory once written."""

    def __init__(self, n_frontends: int) -> None:
        self.n_frontends = n_frontends
        self.loaded = memoryview(mmap.mmap(-1, n_frontends))  # a byte each: 1 once it has models to answer with
        self._memory = memoryview(mmap.mmap(-1, n_frontends * _REGION_BYTES))

    def cells(self, frontend: int, key: Key) -> memoryview:
        """The version's cells in this frontend's region, which is its own to write."""
        wanted = _key_bytes(key)
        entry = self._memory[:0]
        for found, entry in self._entries(frontend):
            if found in (b"", wanted):
                entry[: len(wanted)] = wanted
                break
        return entry[_KEY_BYTES:].cast("q")

    def sums(self) -> dict[Key, list[int]]:
        """Every version's cells, summed over the frontends."""
        totals: dict[Key, list[int]] = {}
        for frontend in range(self.n_frontends):
            for found, entry in self._entries(frontend):
                if not found:
                    break
                model, _, version = found.decode(errors="replace").rpartition("/")
                cells = entry[_KEY_BYTES : _KEY_BYTES + 8 * _N_CELLS].cast("q")
                total = totals.setdefault((model, version), [0] * _N_CELLS)
                last_ms = max(total[_LAST_MS], cells[_LAST_MS])
                total[:] = [a + b for a, b in zip(total, cells, strict=True)]
                total[_LAST_MS] = last_ms
        return totals

    def sizes(self, key: Key) -> dict[int, tuple[int, int]]:
        """Of a version, over all frontends: how many batches of each size ran, and for how many us altogether."""
        totals: dict[int, tuple[int, int]] = {}
        for frontend in range(self.n_frontends):
            for found, entry in self._entries(frontend):
                if not found:
                    break
                if found == _key_bytes(key):
                    cells = entry[_KEY_BYTES:].cast("q").tolist()[_SIZES:]
                    for size, (count, us) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
                        if count:
                            before = totals.get(size, (0, 0))
                            totals[size] = before[0] + count, before[1] + us
        return totals

    def _entries(self, frontend: int) -> Iterator[tuple[bytes, memoryview]]:
        start = frontend * _REGION_BYTES
        for at in range(start, start + _REGION_BYTES, _ENTRY_BYTES):
            entry = self._memory[at : at + _ENTRY_BYTES]
            yield bytes(entry[:_KEY_BYTES]).rstrip(b"\0"), entry


def _key_bytes(key: Key) -> bytes:
    return "/".join(key).encode()[: _KEY_BYTES - 1]


class ModelCounts(ModelObserver):
    """One version's cells in one frontend."""

    __slots__ = ("_cells",)

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def request_answered(
        self, status: int, microseconds: int, timings: Timings | None, decode_ns: int = 0, encode_ns: int = 0
    ) -> None:
        """Once for each prediction request; refused ones have no place in the histogram."""
        cells = self._cells
        cells[_CELL_OF_STATUS[status]] += 1
        if status >= _FAULT:
            cells[_FAILED_US] += microseconds
        elif timings is not None:
            cells[_REQUEST_FIRST + bisect_left(_MICROSECONDS, microseconds)] += 1
            cells[_REQUEST_SUM] += microseconds
            cells[_QUEUE_US] += timings[0]
            if timings[2] == FROM_CACHE:
                cells[_FROM_CACHE] += 1
                return
            cells[_COMPUTE_US] += timings[1]
            cells[_DECODE_NS] += decode_ns
            cells[_ENCODE_NS] += encode_ns

    def item_answered(self, queue_us: int) -> None:
        cells = self._cells
        cells[_QUEUE_FIRST + bisect_left(_MICROSECONDS, queue_us)] += 1
        cells[_QUEUE_SUM] += queue_us

    def batch_answered(self, batch_size: int, compute_us: int) -> None:
        _observe(self._cells, _COMPUTE, compute_us)
        _observe(self._cells, _BATCH, batch_size)
        size = _SIZES + 2 * min(batch_size, _MOST_ITEMS)
        self._cells[size] += 1
        self._cells[size + 1] += compute_us
        self._cells[_LAST_MS] = time.time_ns() // 1_000_000

    def in_flight(self, items: int) -> None:
        self._cells[_IN_FLIGHT] = items

    def cache_hit(self, ns: int) -> None:
        self._cells[_CACHE_HITS] += 1
        self._cells[_CACHE_HIT_NS] += ns

    def cache_missed(self, ns: int) -> None:
        self._cells[_CACHE_MISSES] += 1
        self._cells[_CACHE_MISS_NS] += ns

    def cache_changed(self, size_bytes: int, evicted: int) -> None:
        self._cells[_CACHE_BYTES] = size_bytes
        self._cells[_CACHE_EVICTIONS] += evicted


class Totals(NamedTuple):
    """Of one version since the start, over all frontends. `by_size`: batches and their compute [us], by items."""

    last_ms: int
    items: int
    batches: int
    answered: int
    answered_us: int
    queue_us: int
    compute_us: int
    decode_ns: int
    encode_ns: int
    failed: int
    failed_us: int
    answered_from_cache: int
    cache_hits: int
    cache_hit_ns: int
    cache_misses: int
    cache_miss_ns: int
    by_size: dict[int, tuple[int, int]]


class RequestMetrics(Observer, Collector):
    """Of one frontend. `engines` is set once they are known."""

    def __init__(self, shared: SharedCounts, frontend: int) -> None:
        self._shared = shared
        self._frontend = frontend
        self._models: dict[Key, ModelCounts] = {}
        self.engines: Engines | None = None
        self.n_frontends = shared.n_frontends
        self.unknown = self._counts(_ALL)

    def of(self, facts: ModelFacts) -> ModelCounts:
        return self._counts((facts.name, facts.version))

    def totals(self, keys: Iterable[Key]) -> dict[Key, Totals]:
        sums = self._shared.sums()
        return {key: _totals(sums.get(key) or [0] * _N_CELLS, self._shared.sizes(key)) for key in keys}

    def collect(self) -> Iterator[Metric]:
        self._look_at_what_is_in_flight()
        totals = self._shared.sums()
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
        items = CounterMetricFamily("shoal_items", "Items that ran and were answered.", labels=["model", "version"])
        for key, cells in totals.items():
            for status, count in zip(_STATUSES, cells, strict=False):
                if count:
                    requests.add_metric([*key, str(status)], count)
            errors.add_metric(list(key), _failed(cells))
            items.add_metric(list(key), sum(cells[_QUEUE.first : _QUEUE.end - 1]))
        yield from (requests, errors, items)
        yield _family(
            totals, "shoal_request_seconds", "From the request's head to its answer, of those answered.", _REQUEST, 1e6
        )
        yield _family(totals, "shoal_queue_seconds", "How long an item waited for its batch.", _QUEUE, 1e6)
        yield _family(totals, "shoal_compute_seconds", "How long a batch ran.", _COMPUTE, 1e6)
        yield _family(totals, "shoal_batch_size", "How many items ran together, by batch.", _BATCH, 1)
        yield from _cache(totals)
        yield from self._gauges(totals)

    def _counts(self, key: Key) -> ModelCounts:
        if (counts := self._models.get(key)) is None:
            counts = self._models[key] = ModelCounts(self._shared.cells(self._frontend, key))
        return counts

    def _look_at_what_is_in_flight(self) -> None:
        """Now, of this frontend; the others' cells are as old as their last sweep (client.py)."""
        for key, items in self.engines.in_flight().items() if self.engines else ():
            self._counts(key).in_flight(items)

    def _gauges(self, totals: dict[Key, list[int]]) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("shoal_items_in_flight", "Items that hold a slot.", labels=["model", "version"])
        ready = GaugeMetricFamily("shoal_model_ready", "1 for a version that answers.", labels=["model", "version"])
        for model in self.engines.models() if self.engines else []:
            key = model.facts.name, model.facts.version
            in_flight.add_metric(list(key), totals[key][_IN_FLIGHT])
            ready.add_metric(list(key), 1)
        yield from (in_flight, ready)


def exposition(metrics: RequestMetrics) -> Callable[[], bytes]:
    """A function that renders everything in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(metrics)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return lambda: generate_latest(registry)


def _cache(totals: dict[Key, list[int]]) -> Iterator[Metric]:
    labels = ["model", "version"]
    hits = CounterMetricFamily("shoal_cache_hits", "Requests that needed no run of their own.", labels=labels)
    misses = CounterMetricFamily("shoal_cache_misses", "Requests that were looked up and ran.", labels=labels)
    for key, cells in totals.items():
        if cells[_CACHE_HITS] or cells[_CACHE_MISSES]:
            hits.add_metric(list(key), cells[_CACHE_HITS])
            misses.add_metric(list(key), cells[_CACHE_MISSES])
    size_bytes, evictions = (totals[_ALL][cell] for cell in (_CACHE_BYTES, _CACHE_EVICTIONS))
    yield from (hits, misses)
    yield GaugeMetricFamily("shoal_cache_bytes", "What the answers that are kept take.", size_bytes)
    yield CounterMetricFamily("shoal_cache_evictions", "Answers that went to make room.", evictions)


def _totals(cells: list[int], by_size: dict[int, tuple[int, int]]) -> Totals:
    return Totals(
        last_ms=cells[_LAST_MS],
        items=sum(cells[_QUEUE.first : _QUEUE.end - 1]),
        batches=sum(cells[_BATCH.first : _BATCH.end - 1]),
        answered=sum(cells[_REQUEST.first : _REQUEST.end - 1]),
        answered_us=cells[_REQUEST_SUM],
        queue_us=cells[_QUEUE_US],
        compute_us=cells[_COMPUTE_US],
        decode_ns=cells[_DECODE_NS],
        encode_ns=cells[_ENCODE_NS],
        failed=_failed(cells),
        failed_us=cells[_FAILED_US],
        answered_from_cache=cells[_FROM_CACHE],
        cache_hits=cells[_CACHE_HITS],
        cache_hit_ns=cells[_CACHE_HIT_NS],
        cache_misses=cells[_CACHE_MISSES],
        cache_miss_ns=cells[_CACHE_MISS_NS],
        by_size=by_size,
    )


def _failed(cells: list[int]) -> int:
    return sum(count for status, count in zip(_STATUSES, cells, strict=False) if status >= _FAULT)


def _observe(cells: memoryview, histogram: _Histogram, value: int) -> None:
    first, bounds = histogram
    cells[first + bisect_left(bounds, value)] += 1
    cells[first + len(bounds) + 1] += value


def _family(totals: dict[Key, list[int]], name: str, text: str, histogram: _Histogram, unit: float) -> Metric:
    """`unit`: how many of the cells' units make one of the metric's. Versions that saw nothing are left out."""
    family = HistogramMetricFamily(name, text, labels=["model", "version"])
    first, bounds = histogram
    for key, cells in totals.items():
        counts = cells[first : histogram.end - 1]
        if not any(counts):
            continue
        buckets, total = [], 0
        for bound, count in zip((*(str(bound / unit) for bound in bounds), "+Inf"), counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(list(key), buckets, cells[histogram.end - 1] / unit)
    return family
