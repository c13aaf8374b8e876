"""Which buckets hold a batch: against every combination there is."""

from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.buckets import plan, plans, unmeasured_plans

FLAT = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0}  # launches are all that costs: pad
STEEP = {size: 0.1 + size for size in (1, 2, 4, 8, 16)}  # rows are all that costs: split


@pytest.mark.parametrize(
    ("n", "seconds", "expected"),
    [
        (12, FLAT, (16,)),
        (12, STEEP, (8, 4)),
        (12, {8: 2.0, 4: 1.2, 16: 3.2}, (8, 4)),  # equally fast would be 3.2; this is more
        (16, FLAT, (16,)),
        (16, STEEP, (16,)),
        (3, STEEP, (2, 1)),
        (3, {4: 1.0}, (4,)),
        (20, FLAT, (16, 4)),
        (40, {16: 1.0}, (16, 16, 16)),
    ],
)
def test_twelve_rows_are_split_or_padded_by_cost(n: int, seconds: dict[int, float], expected: tuple[int, ...]) -> None:
    found = plan(n, seconds)
    cost = sum(seconds[size] for size in found)
    assert cost == pytest.approx(sum(seconds[size] for size in expected))
    assert len(found) <= len(expected)


def test_of_equally_fast_plans_the_one_with_fewer_runs_is_taken() -> None:
    assert plan(12, {4: 1.0, 8: 2.0, 16: 3.0}) == (16,)


@given(
    seconds=st.dictionaries(st.integers(1, 9), st.integers(1, 50).map(float), min_size=1, max_size=4),
    n=st.integers(1, 12),
)
def test_no_combination_of_buckets_is_faster(seconds: dict[int, float], n: int) -> None:
    found = plan(n, seconds)
    assert sum(found) >= n
    assert set(found) <= seconds.keys()
    assert list(found) == sorted(found, reverse=True)
    assert sum(found) - min(found) < n  # no bucket is for padding alone
    fastest = min(
        sum(seconds[size] for size in sizes)
        for runs in range(1, n + 1)
        for sizes in combinations_with_replacement(seconds, runs)
        if sum(sizes) >= n
    )
    assert sum(seconds[size] for size in found) == fastest


def test_plans_has_one_for_every_number_of_rows() -> None:
    assert plans(16, STEEP) == [(), *(plan(n, STEEP) for n in range(1, 17))]


def test_unmeasured_every_bucket_runs_as_itself() -> None:
    found = unmeasured_plans(12, [1, 2, 4, 8, 12])
    assert found == [(), (1,), (2,), (4,), (4,), *[(8,)] * 4, *[(12,)] * 4]
