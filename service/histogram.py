"""A histogram in cells of shared memory, and as Prometheus has it."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.core import HistogramMetricFamily


class Histogram(NamedTuple):
    """Cells from `first` on: a count for each bound (inclusive, as Prometheus has it), one beyond the last, the sum."""

    first: int
    bounds: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.first + len(self.bounds) + 2


def observe(cells: memoryview, histogram: Histogram, value: int) -> None:
    first, bounds = histogram
    cells[first + bisect_left(bounds, value)] += 1
    cells[first + len(bounds) + 1] += value


def family(
    totals: Mapping[tuple[str, str], list[int]], name: str, text: str, histogram: Histogram, unit: float
) -> HistogramMetricFamily:
    """`unit`: how many of the cells' units make one of the metric's. Versions that saw nothing are left out."""
    metric = HistogramMetricFamily(name, text, labels=["model", "version"])
    first, bounds = histogram
    for key, cells in totals.items():
        counts = cells[first : histogram.end - 1]
        if not any(counts):
            continue
        buckets, total = [], 0
        for bound, count in zip((*(str(bound / unit) for bound in bounds), "+Inf"), counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        metric.add_metric(list(key), buckets, cells[histogram.end - 1] / unit)
    return metric
