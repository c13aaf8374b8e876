"""Which buckets a batch runs in on a GPU, where every size that runs is fixed beforehand.

A batch of 12 fits one bucket of 16, four rows of it padding, or one of 8 and one of 4. Which is faster depends on the
model and the device, so it follows what the buckets took when they were measured.
Checked by tests/unit/test_buckets.py against every combination there is.
"""

from collections.abc import Iterable, Mapping

Plan = tuple[int, ...]
"""Bucket sizes, largest first; together at least as many rows as the batch has."""


def plan(n: int, seconds: Mapping[int, float]) -> Plan:
    """The buckets in which `n` rows (>= 1) are answered soonest; `seconds` is what one run of each size takes."""
    return plans(n, seconds)[n]


def plans(largest: int, seconds: Mapping[int, float]) -> list[Plan]:
    """`plan` for every number of rows from 0 to `largest`. Of equally fast ones, that of the fewest runs."""
    sizes = sorted(seconds, reverse=True)
    best: list[tuple[float, int, Plan]] = [(0.0, 0, ())]
    for n in range(1, largest + 1):
        ways = ((size, best[max(0, n - size)]) for size in sizes)
        took, runs, size, rest = min((seconds[size] + took, runs + 1, size, rest) for size, (took, runs, rest) in ways)
        best.append((took, runs, tuple(sorted((size, *rest), reverse=True))))
    return [found for _, _, found in best]


def unmeasured_plans(largest: int, sizes: Iterable[int]) -> list[Plan]:
    """Each number of rows in the smallest bucket that holds it: every size then runs as itself, to be measured."""
    ascending = sorted(sizes)
    return [(), *((next(size for size in ascending if size >= n),) for n in range(1, largest + 1))]
