"""The choice of instances, threads and batch, on invented rates: measuring itself needs no test of its own numbers."""

import threading
from types import SimpleNamespace

import pytest

from service.engine import tune
from service.engine.tune import Setup, batch_sizes, by_interest, candidates, choose_setup, smallest_good, take_setup


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [(1, 1)]), (2, [(2, 1), (1, 2)]), (4, [(4, 1), (2, 2), (1, 4)]), (6, [(6, 1), (3, 2), (1, 4), (1, 6)])],
)
def test_candidates_use_all_cores(cores: int, expected: list[tuple[int, int]]) -> None:
    assert candidates(cores) == expected


def test_batch_sizes_double_up_to_the_largest() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(12) == [1, 2, 4, 8, 12]
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 1400, 8: 1401, 64: 1410}, 8),  # nothing is gained beyond 8, and 1 is over within 1.5 ms
        ({1: 100, 8: 101, 64: 99}, 1),  # a slow model: 20 ms each, and batching brings nothing
        ({1: 5_000, 8: 30_000, 64: 90_000}, 64),
        ({1: 1_000_000, 64: 1_000_000}, 64),  # so fast that only the largest batch is worth the hand-over
    ],
)
def test_the_smallest_batch_that_is_nearly_as_fast_wins(rates: dict[int, float], expected: int) -> None:
    assert smallest_good(rates, n_instances=2) == expected


class FakeInstance:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def run(self, slots: range) -> None:
        pass


@pytest.mark.parametrize(
    ("rate_of_threads", "expected"),
    [({1: 100.0, 2: 105.0}, 1), ({1: 100.0, 2: 150.0}, 2), ({1: 100.0, 2: 50.0}, 1)],
)
def test_fewer_instances_must_be_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, rate_of_threads: dict[int, float], expected: int
) -> None:
    monkeypatch.setattr(tune, "measure", lambda instances, batch, give_up_at: rate_of_threads[instances[0].threads])
    setup = choose_setup(FakeInstance, cores=2, largest_batch=8, fixed=None, budget_s=60)
    assert (len(setup.instances), setup.threads) == (2 // expected, expected)


def test_fixed_instances_and_threads_are_not_measured_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "measure", lambda instances, batch, give_up_at: float(batch))
    setup = choose_setup(FakeInstance, cores=8, largest_batch=4, fixed=(3, 2), budget_s=60)
    assert [instance.threads for instance in setup.instances] == [2, 2, 2]


def test_without_a_budget_one_probe_is_enough() -> None:
    runs = []

    class Counting(FakeInstance):
        def run(self, slots: range) -> None:
            runs.append((len(slots), threading.get_ident()))

    setup = choose_setup(Counting, cores=2, largest_batch=64, fixed=None, budget_s=0)
    assert setup.max_batch_size == tune._PROBE_BATCH
    assert len(runs) == 1


def test_without_a_budget_a_fixed_setup_takes_the_batch_as_it_is() -> None:
    setup = choose_setup(FakeInstance, cores=2, largest_batch=48, fixed=(3, 2), budget_s=0)
    assert (len(setup.instances), setup.threads, setup.max_batch_size) == (3, 2, 48)
    assert list(setup.rates) == [48]


def test_a_setup_taken_from_elsewhere_is_measured_at_its_batch_only() -> None:
    runs = set()

    class Counting(FakeInstance):
        def run(self, slots: range) -> None:
            runs.add(len(slots))

    setup = take_setup(Counting, 2, 1, 16, budget_s=1.0)
    assert (len(setup.instances), setup.max_batch_size, runs) == (2, 16, {16})
    assert setup.rates[16] > 0


def test_sizes_beside_the_batch_that_was_taken_are_measured_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "measure", lambda instances, batch, give_up_at: float(batch))
    assert take_setup(FakeInstance, 1, 1, 8, 60.0, beside=[1, 2, 4, 8]).rates == {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}
    assert take_setup(FakeInstance, 1, 1, 8, 0.0, beside=[1, 2, 4, 8]).rates == {8: 8.0}


def test_making_the_only_instances_there_may_be_takes_nothing_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(FakeInstance):
        def __init__(self, threads: int) -> None:
            super().__init__(threads)
            clock[0] += 100.0

    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(tune, "measure", lambda instances, batch, give_up_at: float(batch))
    setup = choose_setup(Slow, cores=2, largest_batch=16, fixed=(1, 1), budget_s=1.0)
    assert list(setup.rates) == [1, 2, 4, 8, 16]


def test_a_run_of_one_instance_takes_what_all_together_make_of_it() -> None:
    setup = Setup([FakeInstance(1), FakeInstance(1)], 1, 8, {1: 100.0, 8: 400.0, 16: 0.0})
    assert setup.seconds == {1: 0.02, 8: 0.04}  # two at a time; nothing is known of a size that never ran to its end


def test_sizes_above_the_probe_are_measured_first() -> None:
    assert by_interest([1, 2, 4, 8, 16, 32, 64], 8) == [16, 32, 64, 4, 2, 1]
    assert by_interest([1, 2, 3], 3) == [2, 1]
