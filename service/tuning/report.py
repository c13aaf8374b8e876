"""What a search found, for people: a table, a plot of characters for the terminal, and the same plot as an SVG.

Both plots: throughput to the right, p99 upwards on a logarithmic axis; a point for each pair of set-up and clients, the
Pareto front among them, the limit as a line, the choice. No plotting library: the service has none.
Checked by tests/unit/test_tuning_report.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from service.engine.tuned import Knobs, Summary
from service.tuning.search import Outcome, best_within, pareto_front, summarise

_COLUMNS, _ROWS = 64, 16  # of the terminal's plot, without its axes
_WIDTH, _HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 96, 56
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
_INK, _SOFT, _GRID, _FRONT, _LIMIT, _CHOICE = "#1f2933", "#66727f", "#e4e7eb", "#2563a8", "#c0392b", "#12805c"


@dataclass(frozen=True)
class Axes:
    """The ranges of both axes, with some air around the points."""

    x_most: float
    y_least: float
    y_most: float

    def across(self, throughput: float) -> float:
        """0 at the left to 1 at the right."""
        return throughput / self.x_most

    def up(self, p99_ms: float) -> float:
        """0 at the bottom to 1 at the top."""
        return math.log(max(p99_ms, self.y_least) / self.y_least) / math.log(self.y_most / self.y_least)


def table(outcome: Outcome, slo_p99_ms: float) -> str:
    """Each set-up at the clients that are best for it within the limit, fastest first; then those that miss it."""
    summaries = _told(outcome)
    best = best_within(summaries, slo_p99_ms)
    closest: dict[Knobs, Summary] = {}
    for summary in sorted(summaries, key=lambda each: each.p99_ms):
        if summary.knobs not in best:
            closest.setdefault(summary.knobs, summary)
    ordered = sorted(best.values(), key=lambda each: -each.throughput)
    ordered += sorted(closest.values(), key=lambda each: each.p99_ms)
    lines = [
        "  instances  threads  batch  delay µs  clients  requests/s       (lowest to highest, runs)   p50 ms   p99 ms"
    ]
    for each in ordered:
        knobs = each.knobs
        runs = f"({each.lowest:,.0f} to {each.highest:,.0f}, {each.runs})" if each.runs > 1 else ""
        lines.append(
            f"{_mark(each, outcome)} {knobs.instances:>9}  {knobs.threads:>7}  {knobs.max_batch_size:>5}  "
            f"{knobs.max_queue_delay_us:>8}  {each.clients:>7}  {each.throughput:>10,.{_digits(each.throughput)}f}  "
            f"{runs:>30}  {each.p50_ms:>7.2f}  {each.p99_ms:>7.2f}" + ("" if each.knobs in best else "  over the limit")
        )
    return "\n".join([*lines, "* the choice   = what serve chooses by itself"])


def terminal_plot(outcome: Outcome, slo_p99_ms: float) -> str:
    """The points as characters: `.` measured, `o` on the front, `*` the choice; `-` the limit."""
    summaries = _points(outcome)
    if not summaries:
        return ""
    axes = axes_for(summaries, slo_p99_ms)
    cells = [[" "] * _COLUMNS for _ in range(_ROWS)]
    cells[_row(axes, slo_p99_ms)] = ["-"] * _COLUMNS
    front = pareto_front(summaries)
    for each in [*(each for each in summaries if each not in front), *front]:
        _put(cells, axes, each, "o" if each in front else ".")
    if outcome.choice is not None:
        _put(cells, axes, outcome.choice, "*")
    labels = {_row(axes, tick): _number(tick) for tick in _log_ticks(axes.y_least, axes.y_most)}
    labels[_row(axes, slo_p99_ms)] = f"limit {slo_p99_ms:g}"
    lines = ["p99 ms"] + [f"{labels.get(i, ''):>12} |{''.join(row)}".rstrip() for i, row in enumerate(cells)]
    ticks = _ticks(axes.x_most)
    scale = [" "] * (_COLUMNS + 12)
    for tick in ticks:
        at = round(axes.across(tick) * (_COLUMNS - 1))
        scale[at : at + len(f"{tick:,.0f}")] = f"{tick:,.0f}"
    return "\n".join(
        [*lines, f"{'':>13}+{'-' * _COLUMNS}", f"{'':>14}{''.join(scale)}".rstrip(), f"{'':>14}requests/s"]
    )


def svg_plot(outcome: Outcome, slo_p99_ms: float, title: str, subtitle: str) -> str:
    """A picture that stands alone; every point says its set-up when pointed at."""
    summaries = _points(outcome)
    axes = axes_for(summaries, slo_p99_ms)
    front = pareto_front(summaries)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' "
        f"height='{_HEIGHT}' {_FONT} font-size='12' fill='{_INK}'>",
        f"<rect width='{_WIDTH}' height='{_HEIGHT}' fill='#fff'/>",
        f"<text x='{_LEFT}' y='30' font-size='17' font-weight='600'>{escape(title)}</text>",
        f"<text x='{_LEFT}' y='50' fill='{_SOFT}'>{escape(subtitle)}</text>",
        *_legend(outcome),
        *_svg_axes(axes),
        *_svg_limit(axes, slo_p99_ms),
        *_svg_front(axes, front),
        *(_svg_point(axes, each, each in front, outcome) for each in summaries),
        *_svg_choice(axes, outcome),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def axes_for(summaries: Sequence[Summary], slo_p99_ms: float) -> Axes:
    slowest = [slo_p99_ms, *(each.p99_ms for each in summaries)]
    positive = [p99 for p99 in slowest if p99 > 0]
    return Axes(1.08 * max([each.throughput for each in summaries] or [1.0]), min(positive) / 1.3, max(positive) * 1.3)


def describe(summary: Summary) -> str:
    knobs = summary.knobs
    return (
        f"{knobs.instances} x {knobs.threads} threads, batch {knobs.max_batch_size}, "
        f"delay {knobs.max_queue_delay_us} µs, {summary.clients} clients: "
        f"{summary.throughput:,.{_digits(summary.throughput)}f} requests/s, p99 {summary.p99_ms:.2f} ms"
    )


def _points(outcome: Outcome) -> list[Summary]:
    """Every pair of set-up and clients, by its repeats alone where it has some."""
    repeated = {(each.knobs, each.clients) for each in outcome.evidence if each.repeat}
    return summarise(each for each in outcome.evidence if each.repeat or (each.knobs, each.clients) not in repeated)


def _told(outcome: Outcome) -> list[Summary]:
    """Finalists by their repeats alone, as they were judged; the others by what the search saw."""
    repeated = {each.knobs for each in outcome.evidence if each.repeat}
    return summarise(each for each in outcome.evidence if each.repeat or each.knobs not in repeated)


def _mark(summary: Summary, outcome: Outcome) -> str:
    if outcome.choice is not None and summary.knobs == outcome.choice.knobs:
        return "*"
    return "=" if summary.knobs == outcome.default else " "


def _row(axes: Axes, p99_ms: float) -> int:
    return _ROWS - 1 - round(min(1.0, axes.up(p99_ms)) * (_ROWS - 1))


def _put(cells: list[list[str]], axes: Axes, summary: Summary, mark: str) -> None:
    cells[_row(axes, summary.p99_ms)][round(axes.across(summary.throughput) * (_COLUMNS - 1))] = mark


def _digits(number: float) -> int:
    return 0 if number >= 100 else 1


def _number(value: float) -> str:
    return f"{value:g}"


def _ticks(most: float) -> list[float]:
    """0 and four to eight round numbers up to `most`."""
    step = 10 ** math.floor(math.log10(most))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if most / s <= 8)
    return [i * step for i in range(int(most / step) + 1)]


def _log_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    found = (digit * 10.0**power for power in powers for digit in (1, 2, 5))
    return [round(tick, 6) for tick in found if least <= tick <= most]


def _x(axes: Axes, throughput: float) -> float:
    return round(_LEFT + axes.across(throughput) * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(axes: Axes, p99_ms: float) -> float:
    return round(_HEIGHT - _BOTTOM - axes.up(p99_ms) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _svg_axes(axes: Axes) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in _ticks(axes.x_most):
        x = _x(axes, tick)
        yield f"<line x1='{x}' y1='{_TOP}' x2='{x}' y2='{bottom}' stroke='{_GRID}'/>"
        yield f"<text x='{x}' y='{bottom + 18}' text-anchor='middle' fill='{_SOFT}'>{tick:,g}</text>"
    for tick in _log_ticks(axes.y_least, axes.y_most):
        y = _y(axes, tick)
        yield f"<line x1='{_LEFT}' y1='{y}' x2='{right}' y2='{y}' stroke='{_GRID}'/>"
        yield f"<text x='{_LEFT - 8}' y='{y + 4}' text-anchor='end' fill='{_SOFT}'>{_number(tick)}</text>"
    yield f"<line x1='{_LEFT}' y1='{bottom}' x2='{right}' y2='{bottom}' stroke='{_SOFT}'/>"
    yield f"<text x='{right}' y='{bottom + 40}' text-anchor='end'>throughput, requests/s</text>"
    yield f"<text x='{_LEFT - 8}' y='{_TOP - 10}' text-anchor='end'>p99, ms</text>"


def _svg_limit(axes: Axes, slo_p99_ms: float) -> Iterator[str]:
    y = _y(axes, slo_p99_ms)
    yield (
        f"<line x1='{_LEFT}' y1='{y}' x2='{_WIDTH - _RIGHT}' y2='{y}' stroke='{_LIMIT}' stroke-width='1.5' "
        "stroke-dasharray='6 4'/>"
    )
    yield f"<text x='{_LEFT + 6}' y='{y - 6}' fill='{_LIMIT}'>limit {slo_p99_ms:g} ms</text>"


def _svg_front(axes: Axes, front: Sequence[Summary]) -> Iterator[str]:
    """Steps: between two points of the front, the slower one is what can be had."""
    if not front:
        return
    path = f"M {_x(axes, front[0].throughput)} {_y(axes, front[0].p99_ms)}"
    for _, after in pairwise(front):
        path += f" V {_y(axes, after.p99_ms)} H {_x(axes, after.throughput)}"
    yield f"<path d='{path}' fill='none' stroke='{_FRONT}' stroke-width='1.5' opacity='0.55'/>"


def _svg_point(axes: Axes, summary: Summary, on_front: bool, outcome: Outcome) -> str:
    x, y = _x(axes, summary.throughput), _y(axes, summary.p99_ms)
    fill = _FRONT if on_front else "#b3bcc5"
    is_default = summary.knobs == outcome.default
    shape = (
        f"<rect x='{x - 4}' y='{y - 4}' width='8' height='8'" if is_default else f"<circle cx='{x}' cy='{y}' r='4.5'"
    )
    return f"{shape} fill='{fill}' stroke='#fff'><title>{escape(describe(summary))}</title></{shape[1:].split(' ')[0]}>"


def _svg_choice(axes: Axes, outcome: Outcome) -> Iterator[str]:
    if (choice := outcome.choice) is None:
        return
    x, y = _x(axes, choice.throughput), _y(axes, choice.p99_ms)
    low, high = _x(axes, choice.lowest), _x(axes, choice.highest)
    yield f"<line x1='{low}' y1='{y}' x2='{high}' y2='{y}' stroke='{_CHOICE}' stroke-width='2'/>"
    yield (
        f"<circle cx='{x}' cy='{y}' r='8' fill='none' stroke='{_CHOICE}' stroke-width='2.5'>"
        f"<title>{escape(describe(choice))}</title></circle>"
    )


def _legend(outcome: Outcome) -> Iterator[str]:
    entries: list[tuple[str, Callable[[int], str]]] = [
        ("measured", lambda x: f"<circle cx='{x}' cy='70' r='4.5' fill='#b3bcc5'/>"),
        ("Pareto front", lambda x: f"<circle cx='{x}' cy='70' r='4.5' fill='{_FRONT}'/>"),
        ("what serve chooses by itself", lambda x: f"<rect x='{x - 4}' y='66' width='8' height='8' fill='{_SOFT}'/>"),
    ]
    if outcome.choice is not None:
        ring = f"r='7' fill='none' stroke='{_CHOICE}' stroke-width='2.5'"
        entries.append((f"choice: {outcome.choice.knobs}", lambda x: f"<circle cx='{x}' cy='70' {ring}/>"))
    x = _LEFT + 6
    for text, shape in entries:
        yield shape(x)
        yield f"<text x='{x + 14}' y='74'>{escape(text)}</text>"
        x += 40 + round(6.3 * len(text))
