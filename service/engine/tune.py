"""Picks instances, threads and batch size for a model on this machine by measuring, within a second.

On a CPU, `cores` instances of one thread usually beat one instance of `cores` threads, most of all at batch 1, but not
for every model; and past some size a larger batch only adds latency. So: run each way for a moment with all its
instances at once, keep the one with most instances unless another is clearly faster, then keep the smallest batch that
comes within `GOOD_ENOUGH` of the best rate and runs for `LONG_ENOUGH_S`.

What is timed is `Instance.run` on the arena, gather and scatter included, as it will be under load.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.engine.instance import Instance

CLEARLY_FASTER = 1.1  # else more instances of fewer threads: they are better at small batches, which are usual
GOOD_ENOUGH = 0.9  # measurements differ by several percent; and smaller batches keep instances out of step
LONG_ENOUGH_S = 0.0015  # taking, waking and answering cost a batch time outside its run
WAKING_S = 0.0001  # until another executor runs: a system call, its wake-up, the interpreter's lock
_PROBE_SECONDS = 0.04
_PROBE_BATCH = 8

MakeInstance = Callable[[int], Instance]
"""An instance with that many threads."""


@dataclass(frozen=True)
class Setup:
    """`rates` is the evidence: items/s of all instances together, by batch size."""

    instances: list[Instance]
    threads: int
    max_batch_size: int
    rates: dict[int, float]

    @property
    def seconds(self) -> dict[int, float]:
        """What a run of one instance takes, by batch size."""
        return {size: size * len(self.instances) / rate for size, rate in self.rates.items() if rate}

    @property
    def smallest_share(self) -> int:
        """Items that one instance runs in the time it takes to wake another."""
        rate = self.rates.get(self.max_batch_size, 0.0) / len(self.instances)
        return max(1, min(self.max_batch_size, int(rate * WAKING_S)))


def choose_setup(
    make: MakeInstance, cores: int, largest_batch: int, fixed: tuple[int, int] | None, budget_s: float
) -> Setup:
    """The fastest way to use `cores`, found in about `budget_s`; `fixed` (instances, threads) leaves only the batch.

    With `fixed` and no budget there is nothing left to choose: `largest_batch` is taken as it is.
    """
    if fixed and not budget_s:
        return take_setup(make, *fixed, largest_batch, budget_s)
    give_up_at = time.monotonic() + budget_s
    probe = min(_PROBE_BATCH, largest_batch)
    best: tuple[float, int, list[Instance]] | None = None
    for n_instances, threads in [fixed] if fixed else candidates(cores):
        if best is not None and time.monotonic() > give_up_at:
            break
        instances = [make(threads) for _ in range(n_instances)]  # no more than the best's and these exist at a time
        if fixed:  # nothing to choose between: making them, which on a GPU captures graphs, takes nothing of the budget
            give_up_at = time.monotonic() + budget_s
        found = measure(instances, probe, give_up_at)
        if best is None or found > CLEARLY_FASTER * best[0]:
            best = found, threads, instances
    assert best is not None, "bug: no candidate"
    found, threads, instances = best
    rates = _measure_beside({probe: found}, instances, by_interest(batch_sizes(largest_batch), probe), give_up_at)
    return Setup(instances, threads, smallest_good(rates, len(instances)), rates)


def take_setup(
    make: MakeInstance, n_instances: int, threads: int, batch: int, budget_s: float, beside: Iterable[int] = ()
) -> Setup:
    """What somebody else chose, with its rate at that batch for the log, and at the sizes `beside` it."""
    instances = [make(threads) for _ in range(n_instances)]
    give_up_at = time.monotonic() + budget_s
    rates = {batch: measure(instances, batch, give_up_at)}
    return Setup(instances, threads, batch, _measure_beside(rates, instances, beside, give_up_at))


def planned_setup(make: MakeInstance, n_instances: int, threads: int, batch: int, rates: dict[int, float]) -> Setup:
    """What was measured before, elsewhere. Each runs once, as a first run allocates."""
    instances = [make(threads) for _ in range(n_instances)]
    for instance in instances:
        instance.run(range(batch))
    return Setup(instances, threads, batch, rates)


def unmeasured_setup(make: MakeInstance, cores: int, largest_batch: int, fixed: tuple[int, int] | None) -> Setup:
    """For a model that nothing is known to run on: what is usually best."""
    n_instances, threads = fixed or candidates(cores)[0]
    return Setup([make(threads) for _ in range(n_instances)], threads, min(_PROBE_BATCH, largest_batch), {})


def candidates(cores: int) -> list[tuple[int, int]]:
    """(instances, threads) that use all cores, most instances first: halving instances, doubling threads."""
    found = []
    threads = 1
    while threads < cores:
        found.append((cores // threads, threads))
        threads *= 2
    return [*found, (1, cores)]


def batch_sizes(largest: int) -> list[int]:
    """1, 2, 4, … up to and including `largest`."""
    return sorted({*(1 << power for power in range(largest.bit_length())), largest})


def by_interest(sizes: list[int], probe: int) -> list[int]:
    """In the order in which they are worth measuring while there is time: upwards from the probe, then downwards."""
    return [size for size in sizes if size > probe] + [size for size in reversed(sizes) if size < probe]


def smallest_good(rates: dict[int, float], n_instances: int) -> int:
    """The smallest batch size that is nearly as fast as the best, and long enough to carry what surrounds a run."""
    good = [size for size, rate in sorted(rates.items()) if rate >= GOOD_ENOUGH * max(rates.values())]
    return next((size for size in good if size * n_instances / rates[size] >= LONG_ENOUGH_S), good[-1])


def _measure_beside(
    rates: dict[int, float], instances: list[Instance], sizes: Iterable[int], give_up_at: float
) -> dict[int, float]:
    """`rates` with those of `sizes` that there is time for, by size."""
    found = dict(rates)
    for size in sizes:
        if size not in found and time.monotonic() < give_up_at:
            found[size] = measure(instances, size, give_up_at)
    return dict(sorted(found.items()))


def measure(instances: list[Instance], batch: int, give_up_at: float) -> float:
    """Items/s of all instances running at once, by the shortest run of a window, as a disturbance only ever slows.

    The first run of each allocates, so it counts only when time is up: for a model of seconds it is all there is.
    """
    slots = range(batch)
    begun = time.monotonic()
    for instance in instances:
        instance.run(slots)
        if time.monotonic() > give_up_at:
            return batch * len(instances) / (time.monotonic() - begun)
    times, _ = _run_all(instances, slots, _PROBE_SECONDS)
    return batch * len(instances) / min(times)


def rate(instances: list[Instance], slots: range, seconds: float) -> float:
    """Items/s of all instances running these slots at once, for `seconds`."""
    times, elapsed = _run_all(instances, slots, seconds)
    return len(times) * len(slots) / elapsed


def _run_all(instances: list[Instance], slots: range, seconds: float) -> tuple[list[float], float]:
    """How long each run took, of all instances running at once, at least one each; and how long it was in all."""
    times: list[float] = []
    start = threading.Barrier(len(instances) + 1)
    stop_at = [0.0]

    def loop(instance: Instance) -> None:
        start.wait()
        begun = time.monotonic()
        while True:
            instance.run(slots)
            ended = time.monotonic()
            times.append(ended - begun)
            if ended >= stop_at[0]:
                return
            begun = ended

    threads = [threading.Thread(target=loop, args=(instance,)) for instance in instances]
    for thread in threads:
        thread.start()
    stop_at[0] = (begun := time.monotonic()) + seconds
    start.wait()
    for thread in threads:
        thread.join()
    return times, time.monotonic() - begun
