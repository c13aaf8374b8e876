"""What the frontends count, and how Prometheus sees it.

Counts are 64-bit cells in memory that all frontends share, one region for each, made before they start
(`service/entries.py`). A frontend adds to cells of its own region alone, so there is no lock, and whichever frontend is
scraped sums over all regions: no files, and what a frontend counted survives it. On the way of a request a count is one
addition and a histogram a bisection.

    region of a frontend: entry "" │ entry mnist 3 │ entry cifar10 2 │ …      cells of an entry:
    requests by status │ histograms request, queue, compute [µs] and batch size [items] │ items in flight │ totals of
    the requests [µs, decode and encode ns] │ cache [count, ns, bytes] │ last answer [ms since 1970] │ what a shadow
    compared, and how it came out │ batches and their compute [µs] by size

An entry is a version's for as long as it is served, and after it until another version finds no free one.

`RequestMetrics.collect` makes prometheus-client families of them. Labels are bounded: a model that does not exist
is "".
The table in docs/operations.md is compared with what is exposed (tests/architecture/test_docs.py).
"""

import itertools
import logging
import mmap
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service import shadow_metrics
from service.batching.claim import FROM_CACHE, ModelObserver, SkipReason, Timings
from service.batching.client import Observer
from service.batching.engines import Engines
from service.batching.link import ModelFacts
from service.entries import Entries
from service.histogram import Histogram, family, observe
from service.lifecycle.guard import Snapshot

log = logging.getLogger(__name__)

Key = tuple[str, str]  # model, version
_ALL = ("", "")

# From what a tiny model needs to what nobody should wait for; factors of 2 to 2.5.
_MICROSECONDS = (
    *(100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000),
)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_FAULT, _OUR_FAULT = 400, 500  # statuses from here on
_STATUSES = (200, 400, 401, 403, 404, 405, 406, 408, 409, 413, 415, 429, 500, 501, 503, 504)
_CELL_OF_STATUS = {status: i for i, status in enumerate(_STATUSES)}


_REQUEST = Histogram(len(_STATUSES), _MICROSECONDS)
_QUEUE = Histogram(_REQUEST.end, _MICROSECONDS)
_COMPUTE = Histogram(_QUEUE.end, _MICROSECONDS)
_BATCH = Histogram(_COMPUTE.end, _ITEMS)
_IN_FLIGHT = _BATCH.end
# Once for each request: names of the module, as a tuple's fields take twice as long to look up.
_REQUEST_FIRST, _REQUEST_SUM = _REQUEST.first, _REQUEST.end - 1
_QUEUE_FIRST, _QUEUE_SUM = _QUEUE.first, _QUEUE.end - 1
_QUEUE_US, _COMPUTE_US, _DECODE_NS, _ENCODE_NS, _FAILED_US = range(_IN_FLIGHT + 1, _IN_FLIGHT + 6)
_CACHE_HITS, _CACHE_HIT_NS, _CACHE_MISSES, _CACHE_MISS_NS, _FROM_CACHE = range(_FAILED_US + 1, _FAILED_US + 6)
_CACHE_BYTES, _CACHE_EVICTIONS = _FROM_CACHE + 1, _FROM_CACHE + 2  # of the entry "" alone: of all versions together
_LAST_MS = _CACHE_EVICTIONS + 1
_SHADOW = _LAST_MS + 1
_N_CELLS = _SHADOW + shadow_metrics.N_CELLS
_MOST_ITEMS = 1024  # of a batch
_SIZES = _N_CELLS  # a pair of cells for each size, outside of what is summed at each scrape
_ALL_CELLS = _SIZES + 2 * (_MOST_ITEMS + 1)
_N_ENTRIES = 256  # versions that are served at once, and those that were


class SharedCounts:
    """The memory of all frontends' counts. Processes forked after this share it."""

    def __init__(self, n_frontends: int) -> None:
        self.n_frontends = n_frontends
        self.loaded = memoryview(mmap.mmap(-1, n_frontends))  # a byte each: 1 once it has models to answer with
        self.entries = Entries(n_frontends, _N_ENTRIES, _ALL_CELLS)

    def sums(self) -> dict[Key, list[int]]:
        """Every version's cells, summed over the frontends."""
        totals: dict[Key, list[int]] = {}
        for frontend in range(self.n_frontends):
            for name, cells in self.entries.read(frontend, slice(_N_CELLS)):
                total = totals.setdefault(_key_of(name), [0] * _N_CELLS)
                last_ms = max(total[_LAST_MS], cells[_LAST_MS])
                total[:] = [a + b for a, b in zip(total, cells, strict=True)]
                total[_LAST_MS] = last_ms
        return totals

    def sizes(self, key: Key) -> dict[int, tuple[int, int]]:
        """Of a version, over all frontends: how many batches of each size ran, and for how many us altogether."""
        totals: dict[int, tuple[int, int]] = {}
        for frontend in range(self.n_frontends):
            for _, cells in self.entries.read(frontend, slice(_SIZES, _ALL_CELLS), _name_of(key)):
                for size, (count, us) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
                    if count:
                        before = totals.get(size, (0, 0))
                        totals[size] = before[0] + count, before[1] + us
        return totals

    def judged(self) -> dict[Key, Snapshot]:
        """What a guard goes by, of every version that was ever counted and is not forgotten."""
        return {key: _snapshot(cells) for key, cells in self.sums().items()}


def _name_of(key: Key) -> str:
    return "/".join(key)


def _key_of(name: str) -> Key:
    model, _, version = name.rpartition("/")
    return model, version


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
        observe(self._cells, _COMPUTE, compute_us)
        observe(self._cells, _BATCH, batch_size)
        size = _SIZES + 2 * min(batch_size, _MOST_ITEMS)
        self._cells[size] += 1
        self._cells[size + 1] += compute_us
        self._cells[_LAST_MS] = time.time_ns() // 1_000_000

    def in_flight(self, items: int) -> None:
        self._cells[_IN_FLIGHT] = items

    def shadow_compared(self, items: int, disagreed: int, differences: list[float]) -> None:
        shadow_metrics.compared(self._cells, _SHADOW, items, disagreed, differences)

    def shadow_skipped(self, reason: SkipReason, items: int) -> None:
        shadow_metrics.skipped(self._cells, _SHADOW, reason, items)

    def forget(self) -> None:
        """The entry becomes another version's: what is still counted here is lost, rather than that version's."""
        self._cells = _uncounted()

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
        self._gone: dict[Key, None] = {}  # in the order in which they went
        self.engines: Engines | None = None
        self.n_frontends = shared.n_frontends
        self.unknown = self._counts(_ALL)

    def of(self, facts: ModelFacts) -> ModelCounts:
        key = facts.name, facts.version
        self._gone.pop(key, None)
        return self._counts(key)

    def gone(self, facts: ModelFacts) -> None:
        """An engine has retired the version, or is gone itself. Its counts stay until the entry is needed."""
        key = facts.name, facts.version
        self._gone.pop(key, None)
        self._gone[key] = None

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
        yield family(
            totals, "shoal_request_seconds", "From the request's head to its answer, of those answered.", _REQUEST, 1e6
        )
        yield family(totals, "shoal_queue_seconds", "How long an item waited for its batch.", _QUEUE, 1e6)
        yield family(totals, "shoal_compute_seconds", "How long a batch ran.", _COMPUTE, 1e6)
        yield family(totals, "shoal_batch_size", "How many items ran together, by batch.", _BATCH, 1)
        yield from _cache(totals)
        yield from self._gauges(totals)
        yield from shadow_metrics.families(totals, _SHADOW)

    def _counts(self, key: Key) -> ModelCounts:
        if (counts := self._models.get(key)) is None:
            counts = self._models[key] = ModelCounts(self._cells(key))
        return counts

    def _cells(self, key: Key) -> memoryview:
        entries, name = self._shared.entries, _name_of(key)
        if (cells := entries.cells(self._frontend, name)) is not None:
            return cells
        if (old := self._longest_gone()) is None:
            log.warning("more than %d versions at once: %s is not counted", _N_ENTRIES - 1, name)
            return _uncounted()
        if (counts := self._models.pop(old, None)) is not None:
            counts.forget()
        self._gone.pop(old, None)
        return entries.replace(self._frontend, _name_of(old), name)

    def _longest_gone(self) -> Key | None:
        """A version whose entry may be given up: one of a predecessor's that nobody has announced here comes first."""
        entries = map(_key_of, self._shared.entries.keys(self._frontend))
        predecessors = (key for key in entries if key not in self._models)
        gone = (key for key in self._gone if self.engines is None or self.engines.known(*key) is None)
        return next(itertools.chain(predecessors, gone), None)

    def _look_at_what_is_in_flight(self) -> None:
        """Now, of this frontend; the others' cells are as old as their last sweep (client.py)."""
        for key, items in self.engines.in_flight().items() if self.engines else ():
            self._counts(key).in_flight(items)

    def _gauges(self, totals: dict[Key, list[int]]) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("shoal_items_in_flight", "Items that hold a slot.", labels=["model", "version"])
        ready = GaugeMetricFamily("shoal_model_ready", "1 for a version that answers.", labels=["model", "version"])
        for model in self.engines.models() if self.engines else []:
            key = model.facts.name, model.facts.version
            in_flight.add_metric(list(key), totals[key][_IN_FLIGHT] if key in totals else model.in_flight)
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


def _snapshot(cells: list[int]) -> Snapshot:
    return Snapshot(
        answered=sum(cells[: len(_STATUSES)]),
        failed=sum(count for status, count in zip(_STATUSES, cells, strict=False) if status >= _OUR_FAULT),
        ran=sum(cells[_REQUEST.first : _REQUEST.end - 1]),
        latency_us=cells[_REQUEST_SUM],
        compared=cells[_SHADOW + shadow_metrics.ITEMS],
        disagreed=cells[_SHADOW + shadow_metrics.DISAGREED],
    )


def _uncounted() -> memoryview:
    """Cells that nobody reads."""
    return memoryview(bytearray(8 * _ALL_CELLS)).cast("q")
