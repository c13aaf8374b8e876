"""What a shadow compared: cells of the shadow version's entry, from `first` on, and the metrics made of them."""

import math
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from service.batching.claim import SKIP_REASONS, SkipReason
from service.histogram import Histogram, family, observe

_NANO = 1_000_000_000
# Of differences, in billionths: from where no tolerance tells them apart to where there is no likeness left.
_POWERS_OF_TEN = tuple(10**power for power in range(2, 13))
_MOST_SUM = 1 << 62  # a sum of differences ends there: it must not leave its cell

ITEMS, DISAGREED, _SKIPPED = 0, 1, 2
_DIFFERENCE = _SKIPPED + len(SKIP_REASONS)
N_CELLS = Histogram(_DIFFERENCE, _POWERS_OF_TEN).end


def compared(cells: memoryview, first: int, items: int, disagreed: int, differences: list[float]) -> None:
    """`differences`: the largest of each item that has floats. Beyond the largest bound is just beyond it."""
    cells[first + ITEMS] += items
    cells[first + DISAGREED] += disagreed
    histogram = Histogram(first + _DIFFERENCE, _POWERS_OF_TEN)
    most = _POWERS_OF_TEN[-1]
    for difference in differences:
        nano = difference * _NANO
        observe(cells, histogram, math.ceil(nano) if nano <= most else most + 1)
    total = histogram.end - 1
    cells[total] = min(cells[total], _MOST_SUM)


def skipped(cells: memoryview, first: int, reason: SkipReason, items: int) -> None:
    cells[first + _SKIPPED + SKIP_REASONS.index(reason)] += items


def families(totals: Mapping[tuple[str, str], list[int]], first: int) -> Iterator[Metric]:
    """Of the versions that were a shadow; the labels are theirs."""
    labels = ["model", "version"]
    items = CounterMetricFamily("shoal_shadow_items", "Items whose answers were compared.", labels=labels)
    disagreements = CounterMetricFamily("shoal_shadow_disagreements", "Those whose answers differed.", labels=labels)
    left_out = CounterMetricFamily(
        "shoal_shadow_skipped_items", "Items that were not repeated, or not answered.", labels=[*labels, "reason"]
    )
    for key, cells in totals.items():
        if count := cells[first + ITEMS]:
            items.add_metric(list(key), count)
            disagreements.add_metric(list(key), cells[first + DISAGREED])
        for i, reason in enumerate(SKIP_REASONS):
            if count := cells[first + _SKIPPED + i]:
                left_out.add_metric([*key, reason], count)
    yield from (items, disagreements, left_out)
    histogram = Histogram(first + _DIFFERENCE, _POWERS_OF_TEN)
    yield family(totals, "shoal_shadow_difference", "Largest difference of an item's floats.", histogram, _NANO)
