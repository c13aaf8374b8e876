"""When a canary is rolled back, as tables: what both sides counted, what the guard says."""

import pytest

from service.lifecycle.guard import Moment, Snapshot, Window, verdict
from service.lifecycle.routing import Guard

START = Moment(Snapshot(), {"1": Snapshot()})


def moment(guarded: Snapshot, **others: Snapshot) -> Moment:
    return Moment(guarded, {name.removeprefix("v"): snapshot for name, snapshot in others.items()} or {"1": Snapshot()})


def counts(answered: int = 0, failed: int = 0, ms: float = 1.0, compared: int = 0, disagreed: int = 0) -> Snapshot:
    ran = answered - failed
    return Snapshot(answered, failed, ran, int(ran * ms * 1000), compared, disagreed)


ERRORS = Guard(max_error_rate=0.01, min_requests=100)
LATENCY = Guard(max_error_rate=None, max_latency_ratio=1.5, min_requests=100)
DISAGREEMENT = Guard(max_error_rate=None, max_disagreement=0.02, min_requests=100)


@pytest.mark.parametrize(
    ("guard", "guarded", "others", "named"),
    [
        (ERRORS, counts(200, failed=2), counts(1000), None),  # 1 % is allowed
        (ERRORS, counts(200, failed=3), counts(1000), "max_error_rate"),
        (ERRORS, counts(200, failed=3), counts(1000, failed=10), None),  # the others fail as well
        (ERRORS, counts(200, failed=5), counts(1000, failed=10), "max_error_rate"),
        (ERRORS, counts(99, failed=99), counts(1000), None),  # too few to judge
        (ERRORS, counts(100, failed=100), counts(0), "max_error_rate"),  # nobody else is needed to see that
        (Guard(max_error_rate=None), counts(200, failed=200), counts(1000), None),
        (LATENCY, counts(200, ms=1.5), counts(1000, ms=1.0), None),
        (LATENCY, counts(200, ms=1.6), counts(1000, ms=1.0), "max_latency_ratio"),
        (LATENCY, counts(99, ms=9), counts(1000, ms=1.0), None),
        (LATENCY, counts(200, ms=9), counts(99, ms=1.0), None),  # too few to be held against
        (LATENCY, counts(200, failed=200), counts(1000), None),  # none ran: errors are for the other rule
        (DISAGREEMENT, counts(compared=100, disagreed=2), counts(), None),
        (DISAGREEMENT, counts(compared=100, disagreed=3), counts(), "max_disagreement"),  # a shadow has no clients
        (DISAGREEMENT, counts(compared=99, disagreed=99), counts(), None),
        (DISAGREEMENT, counts(1000), counts(1000), None),
        (Guard(min_requests=0), counts(), counts(), None),  # nothing counted divides nothing
    ],
)
def test_a_version_is_rolled_back_for_what_the_guard_names(
    guard: Guard, guarded: Snapshot, others: Snapshot, named: str | None
) -> None:
    reason = verdict(guard, START, moment(guarded, v1=others))
    assert reason is None if named is None else f"guard.{named} is" in str(reason)


def test_only_what_was_counted_in_between_is_judged() -> None:
    before = moment(counts(1000, failed=1000), v1=counts(1000))
    assert verdict(ERRORS, before, moment(counts(1200, failed=1000), v1=counts(2000))) is None
    assert verdict(ERRORS, before, moment(counts(1200, failed=1100), v1=counts(2000))) is not None


def test_a_version_that_joins_the_others_is_not_judged_with_its_past() -> None:
    before = moment(counts(), v1=counts())
    now = moment(counts(200, failed=20), v1=counts(100), v2=counts(10_000, failed=10_000))
    assert "0.00% of the others' 100" in str(verdict(ERRORS, before, now))


def test_counts_that_went_down_began_anew() -> None:
    before = moment(counts(5000, failed=4000), v1=counts(9000))
    reason = verdict(ERRORS, before, moment(counts(200, failed=20), v1=counts(300)))
    assert "10.00% of 200 requests failed, 0.00% of the others' 300" in str(reason)


def test_a_window_forgets_what_is_older_than_it() -> None:
    window = Window(Guard(max_error_rate=0.01, min_requests=100, window_s=60))
    assert window.add(0, moment(counts(0), v1=counts(0))) is None
    assert window.add(10, moment(counts(99, failed=99), v1=counts(100))) is None, "too few to judge"
    for second in range(11, 100):  # none of its requests fails any more
        assert window.add(second, moment(counts(99, failed=99), v1=counts(100 + second))) is None
    assert window.add(100, moment(counts(1099, failed=99), v1=counts(300))) is None
    assert window.add(101, moment(counts(1299, failed=299), v1=counts(300))) is not None


def test_a_window_that_is_not_full_yet_judges_what_there_is() -> None:
    window = Window(Guard(min_requests=100, window_s=3600))
    window.add(0, moment(counts(5000, failed=2500), v1=counts(0)))
    assert window.add(1, moment(counts(5100, failed=2600), v1=counts(100))) is not None


def test_a_window_begins_anew_after_a_restart_although_counts_have_overtaken_since() -> None:
    window = Window(Guard(min_requests=100, window_s=60))
    window.add(0, moment(counts(1000), v1=counts(1000)))
    assert window.add(1, moment(counts(50, failed=0), v1=counts(1200))) is None
    assert "of 1050 requests" in str(window.add(2, moment(counts(1100, failed=500), v1=counts(1200))))


def test_a_window_keeps_a_bounded_number_of_moments() -> None:
    window = Window(Guard(window_s=60))
    for tick in range(10_000):
        window.add(tick / 50, START)
    assert len(window._kept) <= 62
