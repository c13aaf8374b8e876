"""Which set-ups to try, with how many clients, and which to take. Pure: it is given `measure` and a clock.

    1  what `serve` chose by itself, from one client up, until p99 passes the limit or throughput stops growing
    2  one knob after another, from the best set-up so far: instances x threads, then the batch, doubled and halved,
       then the delay; twice round, or until SEARCH_SHARE of the time is gone. Each with the clients that were best for
       the best, then up or down from there: a set-up that is slower there is left at once. Before each knob the best
       is measured again: it must not stand on luck, nor the others fall because the machine is slower by now
    3  the finalists and the default again, in turn, round after round, for the rest of the time, LEAST_REPEATS at least

Only step 3 decides: who was best among many in one measurement each was also lucky. Score of a set-up: the highest
median throughput whose median p99 keeps the limit and whose requests were all answered. The default stays unless
another is clearly better: each of its runs faster than each of the default's, the median by CLEAR_GAIN and by more
than the runs of one differ.
Checked by tests/unit/test_search.py.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from msgspec.structs import replace

from service.engine.tuned import Knobs, Measurement, Summary

CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SEARCH_SHARE = 0.5
GROWS = 1.03  # less from twice the clients is no growth
CLEAR_GAIN = 0.03
LEAST_CLIMB = 16  # clients up to which a climb does not stop for want of growth: a moment's noise looks like that
FINALISTS = 3
LEAST_REPEATS, MOST_REPEATS = 2, 5
_ROUNDS = 2

Measure = Callable[[Knobs, int, int], Measurement]
"""(knobs, clients, repeat). Raises SetupFailed where that set-up cannot be measured."""


class SetupFailed(Exception):
    """A set-up that cannot be measured; the search goes on without it. The message says why."""


@dataclass(frozen=True)
class Space:
    """What may be tried: pairs of instances and threads, batches up to a size, delays in µs."""

    pairs: tuple[tuple[int, int], ...]
    largest_batch: int
    delays_us: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """`choice` is None where nothing keeps the limit; `closest` is then what missed it by least.

    noise   the widest spread of a set-up's repeated throughputs over their median; None where nothing was repeated
    """

    choice: Summary | None
    default: Knobs
    default_summary: Summary | None
    closest: Summary | None
    verdict: str
    noise: float | None
    evidence: tuple[Measurement, ...]


def space_for(device: str, cores: int, slo_p99_ms: float, largest_batch: int) -> Space:
    """On a CPU all cores or one left over, in instances or in threads; a GPU takes some instances of one thread.

    Never more instances than cores: the engine has no more executors. A delay is part of p99, so at most half of it.
    """
    pairs = [(n, 1) for n in (1, 2, 4) if n <= cores]
    if device == "cpu":
        doubling = [1 << power for power in range(cores.bit_length())]
        pairs = [(cores // threads, threads) for threads in (*doubling, cores)]
        pairs += [(max(1, cores - 1), 1), (1, max(1, cores - 1))]
    delays = (0, *(delay for delay in (200, 1000, 4000) if delay <= 500 * slo_p99_ms))
    return Space(tuple(dict.fromkeys(pairs)), largest_batch, delays)


def search(
    default: Knobs,
    space: Space,
    slo_p99_ms: float,
    measure: Measure,
    clock: Callable[[], float],
    budget_s: float,
) -> Outcome:
    """Raises SetupFailed only for the default; any other set-up that fails is left out."""
    begun = clock()
    looking = _Search(measure, slo_p99_ms, clock, begun + SEARCH_SHARE * budget_s)
    looking.climb(default)
    looking.turn_knobs(default, space)
    finalists = looking.finalists(default)
    repeats = looking.repeat(finalists, default, begun + budget_s) if finalists else 0
    return decide(default, looking.evidence, repeats, slo_p99_ms)


def summarise(measurements: Iterable[Measurement]) -> list[Summary]:
    """One for each pair of knobs and clients whose requests were all answered."""
    ordered = sorted(measurements, key=_pair)
    return [_summary(runs) for runs in (list(group) for _, group in groupby(ordered, _pair)) if _all_answered(runs)]


def best_within(summaries: Iterable[Summary], slo_p99_ms: float) -> dict[Knobs, Summary]:
    """By knobs, the summary of highest throughput that keeps the limit."""
    best: dict[Knobs, Summary] = {}
    for summary in summaries:
        before = best.get(summary.knobs)
        if summary.p99_ms <= slo_p99_ms and (before is None or summary.throughput > before.throughput):
            best[summary.knobs] = summary
    return best


def pareto_front(summaries: Iterable[Summary]) -> list[Summary]:
    """Those that no other beats in throughput without being slower in p99, by throughput."""
    front: list[Summary] = []
    for summary in sorted(summaries, key=lambda each: (-each.throughput, each.p99_ms)):
        if not front or summary.p99_ms < front[-1].p99_ms:
            front.append(summary)
    return front[::-1]


def decide(default: Knobs, evidence: Sequence[Measurement], repeats: int, slo_p99_ms: float) -> Outcome:
    """`repeats`: how often finalists were measured again; 0 leaves only the search's own numbers."""
    judged = [measurement for measurement in evidence if measurement.repeat or not repeats]
    scores = best_within(_often_enough(summarise(judged), repeats), slo_p99_ms)
    ours = scores.get(default)
    best = max(scores.values(), key=lambda summary: summary.throughput, default=None)
    noise = max((_spread(each) for each in scores.values() if each.runs > 1), default=None)
    closest = min(summarise(evidence), key=lambda summary: summary.p99_ms, default=None)
    if best is None:
        return Outcome(None, default, None, closest, "no set-up keeps the limit", noise, tuple(evidence))
    if best.knobs == default:
        verdict = "what serve chooses by itself is kept: nothing was faster"
    elif ours is None:
        verdict = "what serve chooses by itself did not keep the limit"
    elif clearly_better(best, ours):
        verdict = (
            f"{_gain(best, ours)} against what serve chooses by itself: the slowest of its "
            f"{best.runs} runs was faster than the fastest of the other's {ours.runs}"
        )
    else:
        verdict = (
            f"what serve chooses by itself is kept: the best other ({best.knobs}) gave {_gain(best, ours)}, "
            "which is not clear of the noise"
        )
        best = ours
    return Outcome(best, default, ours, closest, verdict, noise, tuple(evidence))


def clearly_better(new: Summary, old: Summary) -> bool:
    """One run says nothing about the noise. Two say little, so twice of what they say is asked for."""
    gain = new.throughput / old.throughput - 1
    runs = min(new.runs, old.runs)
    noise = max(_spread(new), _spread(old))
    return runs > 1 and new.lowest > old.highest and gain >= max(CLEAR_GAIN, noise if runs > 2 else 2 * noise)


@dataclass
class _Search:
    """`evidence` is everything measured, in order; `_best` what is best so far, by its latest measurement."""

    measure: Measure
    slo_p99_ms: float
    clock: Callable[[], float]
    search_until: float
    evidence: list[Measurement] = field(default_factory=list)
    _tried: set[Knobs] = field(default_factory=set)
    _best: Measurement | None = None

    def climb(self, knobs: Knobs) -> None:
        """From one client up. It stops at the limit, or when twice doubling the clients brought nothing."""
        self._tried.add(knobs)
        top = 0.0
        stalled = 0
        for clients in CLIENTS:
            try:
                found = self._once(knobs, clients)
            except SetupFailed:
                if clients == CLIENTS[0]:
                    raise
                break
            stalled = 0 if found.throughput > GROWS * top else stalled + 1
            top = max(top, found.throughput)
            if not self._keeps(found) or (stalled >= 2 and clients >= LEAST_CLIMB) or self._over():
                break

    def turn_knobs(self, default: Knobs, space: Space) -> None:
        for _ in range(_ROUNDS):
            before = self._centre(default)
            for turn in (self._turn_pairs, self._turn_batch, self._turn_delay):
                self._refresh()
                turn(default, space)
            if self._over() or self._centre(default) == before:
                return

    def finalists(self, default: Knobs) -> list[Summary]:
        """The best few, and the default among them where it keeps the limit."""
        scores = best_within(summarise(self.evidence), self.slo_p99_ms)
        ranked = sorted(scores.values(), key=lambda summary: -summary.throughput)
        chosen = ranked[:FINALISTS]
        if default in scores and scores[default] not in chosen:
            chosen.append(scores[default])
        return chosen

    def repeat(self, finalists: list[Summary], default: Knobs, until: float) -> int:
        """Measure each again at its best clients, or fewer where it misses the limit; rounds done."""
        levels = {finalist.knobs: CLIENTS.index(finalist.clients) for finalist in finalists}
        rounds = 0
        round_s = 0.0
        while rounds < MOST_REPEATS and (rounds < LEAST_REPEATS or self.clock() + round_s <= until):
            round_at = self.clock()
            # Forwards, then backwards: a machine that warms up or slows down favours nobody.
            for knobs in list(levels)[:: 1 if rounds % 2 == 0 else -1]:
                try:
                    levels[knobs] = self._repeat_one(knobs, levels[knobs], rounds + 1)
                except SetupFailed:
                    if knobs == default:
                        raise
            rounds += 1
            round_s = self.clock() - round_at
        return rounds

    def _repeat_one(self, knobs: Knobs, level: int, repeat: int) -> int:
        """The level to start from in the next round: where CLIENTS[level + 1] proved better, that."""
        found = self._once(knobs, CLIENTS[level], repeat)
        if repeat == 1 and 2 * found.p99_ms <= self.slo_p99_ms and level + 1 < len(CLIENTS):
            with suppress(SetupFailed):  # p99 of a closed loop grows with its clients: there is room for twice as many
                more = self._once(knobs, CLIENTS[level + 1], repeat)
                return level + 1 if self._keeps(more) and more.throughput > GROWS * found.throughput else level
        at = level
        while not self._keeps(found) and at:
            at -= 1
            found = self._once(knobs, CLIENTS[at], repeat)
        return level

    def _turn_pairs(self, default: Knobs, space: Space) -> None:
        for instances, threads in space.pairs:
            self._try(replace(self._centre(default), instances=instances, threads=threads))

    def _turn_batch(self, default: Knobs, space: Space) -> None:
        """Up while it helps; where up never did, down while it helps. A single step may be noise, so two are tried."""
        for step in (2.0, 0.5):
            start = self._centre(default).max_batch_size
            missed = 0
            size = start * step
            while missed < 2 and 1 <= size <= space.largest_batch and not self._over():
                before = self._best
                self._try(replace(self._centre(default), max_batch_size=int(size)))
                missed = 0 if self._best is not before else missed + 1
                size *= step

    def _turn_delay(self, default: Knobs, space: Space) -> None:
        for delay in space.delays_us:
            self._try(replace(self._centre(default), max_queue_delay_us=delay))

    def _refresh(self) -> None:
        """Measure the best again, with fewer clients where it misses the limit by now."""
        if (best := self._best) is None:
            return
        for clients in CLIENTS[CLIENTS.index(best.clients) :: -1]:
            if self._over():
                return
            try:
                found = self._once(best.knobs, clients)
            except SetupFailed:
                continue
            if self._keeps(found):
                self._best = found
                return

    def _try(self, knobs: Knobs) -> None:
        """Measure a set-up near the clients that are best so far, and remember it if it is better there."""
        if knobs in self._tried or self._over():
            return
        self._tried.add(knobs)
        at = CLIENTS.index(self._best.clients) if self._best else 0
        top = self._best.throughput if self._best else 0.0
        try:
            found = self._once(knobs, CLIENTS[at])
            if self._keeps(found):
                self._go_up(knobs, at + 1, found, top)
            else:
                self._go_down(knobs, at - 1, top)
        except SetupFailed:
            return

    def _go_up(self, knobs: Knobs, at: int, found: Measurement, top: float) -> None:
        while at < len(CLIENTS) and found.throughput > 0.95 * top and not self._over():
            more = self._once(knobs, CLIENTS[at])
            if not self._keeps(more) or more.throughput < GROWS * found.throughput:
                return
            found, at = more, at + 1

    def _go_down(self, knobs: Knobs, at: int, top: float) -> None:
        """Fewer clients are hardly ever faster: once below the best, it stays there."""
        while at >= 0 and not self._over():
            less = self._once(knobs, CLIENTS[at])
            if self._keeps(less) or less.throughput < top:
                return
            at -= 1

    def _once(self, knobs: Knobs, clients: int, repeat: int = 0) -> Measurement:
        found = self.measure(knobs, clients, repeat)
        self.evidence.append(found)
        if not repeat and self._keeps(found) and (self._best is None or found.throughput > self._best.throughput):
            self._best = found
        return found

    def _keeps(self, found: Measurement) -> bool:
        return not found.failed and found.p99_ms <= self.slo_p99_ms

    def _centre(self, default: Knobs) -> Knobs:
        return self._best.knobs if self._best else default

    def _over(self) -> bool:
        return self.clock() >= self.search_until


def _pair(measurement: Measurement) -> tuple[int, int, int, int, int]:
    knobs = measurement.knobs
    return knobs.instances, knobs.threads, knobs.max_batch_size, knobs.max_queue_delay_us, measurement.clients


def _all_answered(runs: Sequence[Measurement]) -> bool:
    return not any(run.failed for run in runs)


def _summary(runs: Sequence[Measurement]) -> Summary:
    throughputs = [run.throughput for run in runs]
    return Summary(
        knobs=runs[0].knobs,
        clients=runs[0].clients,
        runs=len(runs),
        throughput=round(statistics.median(throughputs), 2),
        lowest=min(throughputs),
        highest=max(throughputs),
        p50_ms=round(statistics.median(run.p50_ms for run in runs), 3),
        p99_ms=round(statistics.median(run.p99_ms for run in runs), 3),
    )


def _often_enough(summaries: Sequence[Summary], repeats: int) -> Iterator[Summary]:
    """Without those measured in less than half of the rounds: the fewer clients that were tried on a bad day."""
    return (summary for summary in summaries if 2 * summary.runs >= repeats)


def _spread(summary: Summary) -> float:
    return (summary.highest - summary.lowest) / summary.throughput


def _gain(new: Summary, old: Summary) -> str:
    return f"{100 * (new.throughput / old.throughput - 1):+.1f} % throughput"
