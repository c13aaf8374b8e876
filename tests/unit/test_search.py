"""The search of `tune` on an invented machine: it finds its way through noise, keeps the limit and its time."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from service.engine.tuned import Knobs, Measurement, Summary
from service.tuning.search import (
    CLIENTS,
    MOST_REPEATS,
    Outcome,
    SetupFailed,
    Space,
    best_within,
    clearly_better,
    decide,
    pareto_front,
    search,
    space_for,
    summarise,
)

DEFAULT = Knobs(2, 1, 32, 0)
SPACE = space_for("cpu", 4, 20.0, 256)
SECONDS_EACH = 2.0


@dataclass
class Machine:
    """`rate(knobs)` is what a set-up gives at most, reached with 16 clients; its p99 is that of a closed loop."""

    rate: Callable[[Knobs], float]
    noise: float = 0.0
    seed: int = 0
    now: float = 0.0
    asked: list[tuple[Knobs, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def measure(self, knobs: Knobs, clients: int, repeat: int) -> Measurement:
        self.now += SECONDS_EACH
        self.asked.append((knobs, clients, repeat))
        rate = self.rate(knobs) * min(1, clients / 16) * (1 + self.random.gauss(0, self.noise))
        p50 = 1000 * clients / rate + knobs.max_queue_delay_us / 1000
        return measurement(knobs, clients, rate, 1.5 * p50, repeat)

    def search(self, budget_s: float = 200.0, limit: float = 20.0, space: Space = SPACE) -> Outcome:
        return search(DEFAULT, space, limit, self.measure, lambda: self.now, budget_s)


def measurement(knobs: Knobs, clients: int, rate: float, p99: float, repeat: int = 0, failed: int = 0) -> Measurement:
    return Measurement(knobs, clients, rate, p99 / 1.5, p99, 1000, failed, 1.0, 0.2, repeat)


def hill(knobs: Knobs) -> float:
    """Best at 1 x 4 threads, batch 8, without delay."""
    rate = 4000.0 if (knobs.instances, knobs.threads) == (1, 4) else 3000.0
    distance = abs(knobs.max_batch_size.bit_length() - (8).bit_length())
    return rate * 0.93**distance * (0.9 if knobs.max_queue_delay_us else 1.0)


def test_the_best_of_every_knob_is_found() -> None:
    outcome = Machine(hill).search()
    assert outcome.choice is not None
    assert outcome.choice.knobs == Knobs(1, 4, 8, 0)
    assert outcome.choice.runs >= 3
    assert "against what serve chooses by itself" in outcome.verdict


@pytest.mark.parametrize("seed", range(20))
def test_with_noise_the_choice_is_near_the_best_and_never_worse_than_the_default(seed: int) -> None:
    outcome = Machine(hill, noise=0.04, seed=seed).search()
    assert outcome.choice is not None
    assert hill(outcome.choice.knobs) >= 0.85 * hill(Knobs(1, 4, 8, 0))
    assert hill(outcome.choice.knobs) >= hill(DEFAULT)


@pytest.mark.parametrize("seed", range(20))
def test_where_nothing_is_faster_noise_does_not_replace_the_default(seed: int) -> None:
    outcome = Machine(lambda knobs: 3000.0, noise=0.05, seed=seed).search()
    assert outcome.choice is not None
    assert outcome.choice.knobs == DEFAULT
    assert "is kept" in outcome.verdict


def test_a_higher_throughput_beyond_the_limit_is_not_taken() -> None:
    def measure(knobs: Knobs, clients: int, repeat: int) -> Measurement:
        fast = knobs.max_batch_size == 64
        return measurement(knobs, clients, 9000.0 if fast else 1000.0, 30.0 if fast else 10.0, repeat)

    outcome = search(DEFAULT, SPACE, 20.0, measure, iter(range(0, 10_000, 2)).__next__, 100.0)
    assert outcome.choice is not None
    assert outcome.choice.knobs.max_batch_size != 64
    assert outcome.choice.p99_ms <= 20


def test_no_choice_where_nothing_keeps_the_limit_and_the_closest_is_named() -> None:
    outcome = Machine(hill).search(limit=0.1)
    assert outcome.choice is None
    assert outcome.closest is not None
    assert outcome.closest.p99_ms == pytest.approx(min(each.p99_ms for each in outcome.evidence), abs=1e-3)


def test_a_default_that_misses_the_limit_is_replaced() -> None:
    outcome = Machine(lambda knobs: 10.0 if knobs.threads == 1 else 3000.0).search()
    assert outcome.choice is not None
    assert outcome.choice.knobs.threads > 1
    assert outcome.default_summary is None
    assert outcome.verdict == "what serve chooses by itself did not keep the limit"


@pytest.mark.parametrize("budget_s", [20.0, 60.0, 120.0])
def test_the_time_is_kept(budget_s: float) -> None:
    machine = Machine(hill)
    outcome = machine.search(budget_s)
    assert outcome.choice is not None
    assert outcome.choice.runs >= 2
    two_rounds = 2 * 5 * SECONDS_EACH  # also where the time is over
    assert machine.now <= budget_s + two_rounds


def test_nothing_is_searched_twice_and_finalists_take_turns() -> None:
    machine = Machine(hill)
    machine.search()
    rounds = [
        list(dict.fromkeys(knobs for knobs, _, repeat in machine.asked if repeat == i))
        for i in range(1, MOST_REPEATS + 1)
    ]
    assert len(rounds[0]) >= 3
    assert DEFAULT in rounds[0]
    assert all(sorted(map(str, each)) == sorted(map(str, rounds[0])) for each in rounds)
    assert rounds[1] == rounds[0][::-1]
    assert {clients for _, clients, _ in machine.asked} <= set(CLIENTS)


def test_a_set_up_that_cannot_be_measured_is_left_out() -> None:
    machine = Machine(hill)

    def measure(knobs: Knobs, clients: int, repeat: int) -> Measurement:
        if knobs.threads == 4:
            raise SetupFailed("out of memory")
        return machine.measure(knobs, clients, repeat)

    outcome = search(DEFAULT, SPACE, 20.0, measure, lambda: machine.now, 200.0)
    assert outcome.choice is not None
    assert outcome.choice.knobs.threads != 4


def test_a_default_that_cannot_be_measured_ends_the_search() -> None:
    def measure(knobs: Knobs, clients: int, repeat: int) -> Measurement:
        raise SetupFailed("the server did not start")

    with pytest.raises(SetupFailed, match="did not start"):
        search(DEFAULT, SPACE, 20.0, measure, lambda: 0.0, 100.0)


def test_a_load_that_the_default_cannot_answer_only_ends_its_climb() -> None:
    machine = Machine(hill)

    def measure(knobs: Knobs, clients: int, repeat: int) -> Measurement:
        if clients > 8:
            raise SetupFailed("nothing was answered")
        return machine.measure(knobs, clients, repeat)

    outcome = search(DEFAULT, SPACE, 20.0, measure, lambda: machine.now, 200.0)
    assert outcome.choice is not None
    assert outcome.choice.clients <= 8


@pytest.mark.parametrize(
    ("device", "cores", "pairs"),
    [
        ("cpu", 1, [(1, 1)]),
        ("cpu", 2, [(2, 1), (1, 2), (1, 1)]),
        ("cpu", 4, [(4, 1), (2, 2), (1, 4), (3, 1), (1, 3)]),
        ("cpu", 6, [(6, 1), (3, 2), (1, 4), (1, 6), (5, 1), (1, 5)]),
        ("cuda", 2, [(1, 1), (2, 1)]),
        ("cuda", 16, [(1, 1), (2, 1), (4, 1)]),
    ],
)
def test_pairs_never_have_more_instances_than_cores(device: str, cores: int, pairs: list[tuple[int, int]]) -> None:
    assert list(space_for(device, cores, 20.0, 64).pairs) == pairs


def test_a_delay_takes_at_most_half_of_the_limit() -> None:
    assert space_for("cpu", 2, 20.0, 64).delays_us == (0, 200, 1000, 4000)
    assert space_for("cpu", 2, 2.0, 64).delays_us == (0, 200, 1000)
    assert space_for("cpu", 2, 0.3, 64).delays_us == (0,)


def test_the_pareto_front_is_what_no_other_beats_on_both_axes() -> None:
    points = [(1000, 2.0), (2000, 5.0), (1500, 6.0), (2000, 7.0), (3000, 5.0), (900, 2.0), (500, 1.0)]
    found = pareto_front([summary(rate, p99) for rate, p99 in points])
    assert [(each.throughput, each.p99_ms) for each in found] == [(500, 1.0), (1000, 2.0), (3000, 5.0)]
    assert pareto_front([]) == []


def test_summaries_are_medians_and_leave_out_loads_with_failures() -> None:
    runs = [measurement(DEFAULT, 8, rate, p99) for rate, p99 in [(100, 3.0), (300, 9.0), (200, 6.0)]]
    (found,) = summarise([*runs, measurement(DEFAULT, 16, 500, 1.0, failed=1)])
    assert (found.clients, found.runs, found.lowest, found.throughput, found.highest) == (8, 3, 100, 200, 300)
    assert found.p99_ms == 6.0


def test_a_set_up_is_scored_by_its_fastest_load_within_the_limit() -> None:
    within = [summary(100, 5.0), summary(200, 19.9), summary(300, 20.1)]
    assert best_within(within, 20.0) == {DEFAULT: within[1]}
    assert best_within(within, 1.0) == {}


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ((105, 112, 115, 3), (99, 100, 101, 3), True),
        ((105, 108, 115, 3), (99, 100, 101, 3), False),  # its own runs differ by more than that
        ((105, 110, 115, 2), (99, 100, 101, 2), False),  # two runs say little about the noise
        ((109, 110, 111, 2), (99, 100, 101, 2), True),
        ((100, 110, 115, 3), (99, 100, 101, 3), False),  # one of its runs was no faster
        ((102, 102.5, 103, 3), (99, 100, 101, 3), False),  # faster each time, and not worth it
        ((300, 300, 300, 1), (99, 100, 101, 2), False),  # nothing is known of its noise
    ],
)
def test_clearly_better_is_beyond_noise(
    new: tuple[float, float, float, int], old: tuple[float, float, float, int], expected: bool
) -> None:
    def spread(lowest: float, median: float, highest: float, runs: int) -> Summary:
        return Summary(DEFAULT, 8, runs, median, lowest, highest, 1.0, 2.0)

    assert clearly_better(spread(*new), spread(*old)) is expected


def test_only_repeats_decide() -> None:
    """Who was lucky while searching and is slower when measured again does not win."""
    lucky = replace(DEFAULT, max_batch_size=64)
    evidence = [measurement(lucky, 16, 5000, 5.0), measurement(DEFAULT, 16, 3000, 5.0)]
    evidence += [measurement(lucky, 16, 2900, 5.0, i) for i in (1, 2, 3)]
    evidence += [measurement(DEFAULT, 16, 3000, 5.0, i) for i in (1, 2, 3)]
    outcome = decide(DEFAULT, evidence, 3, 20.0)
    assert outcome.choice is not None
    assert (outcome.choice.knobs, outcome.choice.throughput, outcome.choice.runs) == (DEFAULT, 3000, 3)
    assert outcome.noise == 0


def test_noise_is_the_widest_spread_of_a_set_up_measured_again() -> None:
    other = replace(DEFAULT, max_batch_size=64)
    runs = [(other, 900.0), (other, 1000.0), (other, 1050.0), (DEFAULT, 2000.0), (DEFAULT, 1600.0), (DEFAULT, 2400.0)]
    evidence = [measurement(DEFAULT, 16, 9000, 5.0), *(measurement(knobs, 16, rate, 5.0, 1) for knobs, rate in runs)]
    assert decide(DEFAULT, evidence, 3, 20.0).noise == pytest.approx(0.4)
    assert decide(DEFAULT, evidence[:1], 0, 20.0).noise is None


def summary(rate: float, p99: float) -> Summary:
    return Summary(DEFAULT, 8, 1, rate, rate, rate, p99 / 2, p99)
